"""The learning rate is hundreds of times too low

Expect: Gradient descent with a rate of 0.0005. Where is the loss after a
hundred steps?

Cause: The loss falls by about η‖∇‖² a step. With η a thousandth of what
the valley allows, a hundred steps are a tenth of one.

Find: The curve is nearly a straight line, slightly down: nothing is wrong
with gradient or data. (Small batches would hide it in their noise: look
at averages.) Try ten times the rate.

Fix: Raise the rate until the loss jumps, then take a third of it.

Checks: blind: a rate is a number.
"""

from itertools import pairwise

from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import (
    descend,
    digits,
    mlp,
    perceptron,
)
from fn.losses import cross_entropy


def broken(seed: int) -> Seen:
    x, y = digits()[0]
    _, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y), perceptron(seed), lr=5e-4
    )
    return {"loss": losses}


def fixed(seed: int) -> Seen:
    x, y = digits()[0]
    _, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y), perceptron(seed), lr=0.3
    )
    return {"loss": losses}


def shows(seen: Seen) -> bool:
    """The loss goes down with every single step, and yet after a hundred
    it has lost less than a tenth."""
    losses = seen["loss"]
    falls = all(b < a for a, b in pairwise(losses))
    return falls and losses[-1] > 0.9 * losses[0]


def solves(seen: Seen) -> bool:
    """Learn to read digits in a hundred steps: the loss comes below a half
    of its start."""
    return seen["loss"][-1] < seen["loss"][0] / 2
