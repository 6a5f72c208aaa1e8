"""All weights start at zero, and none gets a gradient

Expect: Every weight and bias starts at 0. Which of them will move?

Cause: With W₂ = 0 no gradient reaches W₁, and with h = 0 none reaches
W₂. Only the last bias learns: how frequent each class is. Weights that
are equal but not zero have a milder form of it: all units stay equal.

Find: The gradient's norm, layer by layer, at the first step.

Fix: Random weights of a variance that suits the layer (fn.initializers).
Biases may start at 0.

Checks: blind: zeros have a shape and a dtype like any other numbers.
"""

import math

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import (
    descend,
    digits,
    mlp,
    perceptron,
)
from fn import tree
from fn.losses import cross_entropy


def broken(seed: int) -> Seen:
    x, y = digits()[0]
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y),
        tree.map(torch.zeros_like, perceptron(seed)),
        lr=0.3,
    )
    moved = {k: v.count_nonzero() for k, v in tree.flatten(params).items()}
    return {
        "loss": losses,
        "moved": ", ".join(k for k in moved if moved[k]),
    }


def fixed(seed: int) -> Seen:
    x, y = digits()[0]
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y),
        perceptron(seed),
        lr=0.3,
    )
    moved = {k: v.count_nonzero() for k, v in tree.flatten(params).items()}
    return {
        "loss": losses,
        "moved": ", ".join(k for k in moved if moved[k]),
    }


def shows(seen: Seen) -> bool:
    """With ten classes the loss begins at log 10 to the last digit, and
    stays near it; only the last bias differs from where it started."""
    if abs(seen["loss"][0] - math.log(10)) > 1e-5:
        return False
    return seen["loss"][-1] > 2.25 and seen["moved"] == "fc2.bias"


def solves(seen: Seen) -> bool:
    """Train both layers on digits: every weight moves, and the loss ends
    below 1."""
    return "fc1.weight" in seen["moved"] and seen["loss"][-1] < 1
