"""Examples come class by class; the last class wins

Expect: A file has all the zeros, then all the ones, up to the nines. One
epoch in that order: how many digits can it read?

Cause: A batch stands for the whole only if it is drawn from the whole.
Here each pulls all weights to one class; the last ones win.

Find: The labels of one batch. A training loss that drops and leaps, class
by class, is the sign, and a confusion matrix with one full column.

Fix: shuffle=True for training; here an order from (seed, epoch).

Checks: blind: an order has no shape.
"""

from itertools import pairwise

from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import (
    descend,
    digits,
    mlp,
    perceptron,
)
from fn.data.loader import batches
from fn.losses import cross_entropy
from fn.metrics import accuracy


def broken(seed: int) -> Seen:
    (x, y), test = digits(1438)
    by_class = x[y.argsort()], y.sort().values
    params, losses = perceptron(seed), []
    for x, y in batches(by_class, 16):
        params, loss = descend(
            lambda p, x=x, y=y: cross_entropy(mlp(p, x), y),
            params,
            lr=0.2,
            steps=1,
        )
        losses += loss
    score = accuracy(mlp(params, test.images), test.labels)
    return {"loss": losses, "accuracy, held out": score.item()}


def fixed(seed: int) -> Seen:
    (x, y), test = digits(1438)
    by_class = x[y.argsort()], y.sort().values
    params, losses = perceptron(seed), []
    for x, y in batches(by_class, 16, seed=seed):
        params, loss = descend(
            lambda p, x=x, y=y: cross_entropy(mlp(p, x), y),
            params,
            lr=0.2,
            steps=1,
        )
        losses += loss
    score = accuracy(mlp(params, test.images), test.labels)
    return {"loss": losses, "accuracy, held out": score.item()}


def shows(seen: Seen) -> bool:
    """In one epoch of ten classes the training loss falls and leaps up
    again and again; held-out digits are hardly read at all."""
    leaps = sum(b - a > 1 for a, b in pairwise(seen["loss"]))
    return leaps >= 5 and seen["accuracy, held out"] < 0.4


def solves(seen: Seen) -> bool:
    """Learn to read digits in one epoch: most of the held-out ones."""
    return seen["accuracy, held out"] > 0.75
