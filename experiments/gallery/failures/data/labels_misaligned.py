"""Images and labels are shuffled in different orders

Expect: Images are shuffled, then labels are. Where does the training loss
go, and where the accuracy on held-out digits?

Cause: Two calls of randperm are two orders. The labels are now no more
than noise; a large network would memorise even these.

Find: Look at a dozen images with their labels beside them. Training that
ends at log(classes), or memorises and does not generalise, is the sign.

Fix: One order for both: order = randperm(n); x[order], y[order].

Checks: blind: the right number of labels, in the wrong places.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import (
    descend,
    digits,
    mlp,
    perceptron,
)
from fn.losses import cross_entropy
from fn.metrics import accuracy
from fn.rng import generator


def broken(seed: int) -> Seen:
    (x, y), test = digits()
    rng = generator(seed)
    x = x[torch.randperm(300, generator=rng)]
    y = y[torch.randperm(300, generator=rng)]
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y), perceptron(seed), lr=0.3
    )
    score = accuracy(mlp(params, test.images), test.labels)
    return {"loss": losses, "accuracy, held out": score.item()}


def fixed(seed: int) -> Seen:
    (x, y), test = digits()
    rng = generator(seed)
    order = torch.randperm(300, generator=rng)
    x, y = x[order], y[order]
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y), perceptron(seed), lr=0.3
    )
    score = accuracy(mlp(params, test.images), test.labels)
    return {"loss": losses, "accuracy, held out": score.item()}


def shows(seen: Seen) -> bool:
    """The training loss creeps down, and held-out digits are read no
    better than by guessing, one in ten."""
    return seen["loss"][-1] > 1 and seen["accuracy, held out"] < 0.25


def solves(seen: Seen) -> bool:
    """Shuffle the images and what they show, and learn to read digits: most
    of the held-out ones."""
    return seen["loss"][-1] < 1 and seen["accuracy, held out"] > 0.7
