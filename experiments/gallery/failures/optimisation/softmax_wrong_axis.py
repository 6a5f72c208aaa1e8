"""Softmax over the batch, not over the classes

Expect: 300 digits, ten classes. An untrained network gives each class a
tenth. What is its loss, and what is it here?

Cause: dim is a position, and dim=0 is the batch: the examples compete for
each class, in place of the classes for each example.

Find: An untrained model's loss is log(classes). Here it is log(batch).
And p.sum(dim=1) is not 1.

Fix: dim=1, or dim=-1 where classes come last; or cross_entropy, which
needs no dim.

Checks: blind: a softmax has the same shape along any axis.
"""

from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import (
    descend,
    digits,
    mlp,
    perceptron,
)
from fn.layers import log_softmax, softmax


def broken(seed: int) -> Seen:
    x, y = digits()[0]
    params, losses = descend(
        lambda p: -log_softmax(mlp(p, x), dim=0)[range(300), y].mean(),
        perceptron(seed),
        lr=0.3,
    )
    rows = softmax(mlp(params, x), dim=0).sum(dim=1)
    return {"loss": losses, "a row sums up to": rows.mean().item()}


def fixed(seed: int) -> Seen:
    x, y = digits()[0]
    params, losses = descend(
        lambda p: -log_softmax(mlp(p, x), dim=1)[range(300), y].mean(),
        perceptron(seed),
        lr=0.3,
    )
    rows = softmax(mlp(params, x), dim=1).sum(dim=1)
    return {"loss": losses, "a row sums up to": rows.mean().item()}


def shows(seen: Seen) -> bool:
    """Ten classes, so an untrained network's loss should be near log 10 =
    2.3; it starts at more than twice that."""
    return seen["loss"][0] > 5 and abs(seen["a row sums up to"] - 1) > 0.1


def solves(seen: Seen) -> bool:
    """Learn to read digits with a probability for each class, which sum up
    to 1 for each image; an untrained network's loss is about log 10."""
    sums_up = abs(seen["a row sums up to"] - 1) < 1e-3
    return sums_up and seen["loss"][-1] < 1 < seen["loss"][0] < 5
