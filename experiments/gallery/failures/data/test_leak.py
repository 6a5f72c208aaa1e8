"""Features were chosen with the test labels in sight

Expect: 100 people, 5,000 random numbers each, and labels tossed by a coin.
The 20 numbers that go best with the labels are kept, then half of the
people are held out. What accuracy is possible?

Cause: Of 5,000 columns of noise some go with any labels by chance, those
of the held-out people included. The choice has seen the test labels.

Find: Shuffle the labels, and run everything again from the first step. If
that is better than chance, there is a leak.

Fix: Split first. Whatever is fitted (scales, choices, thresholds) sees
the training half alone.

Checks: blind: that a row was seen before is not in its shape.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import descend
from fn.layers import linear, linear_init
from fn.losses import cross_entropy
from fn.metrics import accuracy
from fn.rng import generator
from torch import Tensor


def noise(seed: int) -> tuple[Tensor, Tensor]:
    rng = generator(seed)
    x = torch.randn(100, 5000, generator=rng)
    return x, torch.randint(2, (100,), generator=rng)


def best_columns(x: Tensor, y: Tensor) -> Tensor:
    between = x[y == 1].mean(dim=0) - x[y == 0].mean(dim=0)
    return between.abs().topk(20).indices


def broken(seed: int) -> Seen:
    x, y = noise(seed)
    x = x[:, best_columns(x, y)]
    params, losses = descend(
        lambda p: cross_entropy(linear(x[:50], **p), y[:50]),
        linear_init(generator(seed, 1), 20, 2),
        lr=0.1,
    )
    score = accuracy(linear(x[50:], **params), y[50:])
    return {"loss": losses, "accuracy, held out": score.item()}


def fixed(seed: int) -> Seen:
    x, y = noise(seed)
    x = x[:, best_columns(x[:50], y[:50])]
    params, losses = descend(
        lambda p: cross_entropy(linear(x[:50], **p), y[:50]),
        linear_init(generator(seed, 1), 20, 2),
        lr=0.1,
    )
    score = accuracy(linear(x[50:], **params), y[50:])
    return {"loss": losses, "accuracy, held out": score.item()}


def shows(seen: Seen) -> bool:
    """Labels tossed by a coin are foretold on held-out examples, far more
    often than half of the time."""
    return seen["accuracy, held out"] > 0.75


def solves(seen: Seen) -> bool:
    """Keep 20 of 5,000 columns, train on half of the people, and tell
    honestly how well the rest is foretold: a coin has set the labels."""
    learned = seen["loss"][-1] < 0.6
    return learned and 0.25 < seen["accuracy, held out"] < 0.75
