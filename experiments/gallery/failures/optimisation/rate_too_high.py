"""The rate is beyond 2 / curvature: every step overshoots

Expect: A linear model with squared error is a valley, of curvature λ
where it is steepest. Its descent has a rate of 2.2 / λ. Where does the
loss go?

Cause: A step of η along the gradient multiplies the distance to the
bottom of a valley of curvature λ by 1 - ηλ. Above η = 2/λ that is below
-1: each step lands on the other side, and higher.

Find: The loss of the first steps: it rises, or jumps up and down, from
the very beginning. Try a tenth of the rate.

Fix: A lower rate, found by a sweep (just sweep). The λ of a network
changes as it learns, so 2/λ at the start is a hint there, no bound.

Checks: blind: a rate is a number. That the loss is finite is checked by
fn.train.check_finite, which names the step where it is not.

Akin: dead_relus, no_warmup
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import descend, digits
from fn.layers import flatten, linear, linear_init
from fn.losses import mse_loss
from fn.rng import generator
from torch import Tensor


def valley() -> tuple[Tensor, Tensor, float]:
    """Pixels, a number for each image, and the greatest eigenvalue of the
    Hessian of the mean squared error, 2 XᵀX / n with 1 for the bias"""
    x, y = flatten(digits()[0].images), digits()[0].labels
    ones = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    hessian = 2 * ones.T @ ones / len(x)
    return x, y.float(), torch.linalg.eigvalsh(hessian)[-1].item()


def broken(seed: int) -> Seen:
    x, y, curvature = valley()
    lr = 2.2 / curvature
    _, losses = descend(
        lambda p: mse_loss(linear(x, **p).squeeze(1), y),
        linear_init(generator(seed), 64, 1),
        lr=lr,
    )
    factor = losses[-1] / losses[-2]
    return {
        "loss": losses,
        "curvature": curvature,
        "learning rate": lr,
        "last step, times": factor,
    }


def fixed(seed: int) -> Seen:
    x, y, curvature = valley()
    lr = 1.0 / curvature
    _, losses = descend(
        lambda p: mse_loss(linear(x, **p).squeeze(1), y),
        linear_init(generator(seed), 64, 1),
        lr=lr,
    )
    factor = losses[-1] / losses[-2]
    return {
        "loss": losses,
        "curvature": curvature,
        "learning rate": lr,
        "last step, times": factor,
    }


def shows(seen: Seen) -> bool:
    """A linear model with squared error: the loss grows without end, and
    in the last step by a factor of 1.44 = 1.2²."""
    as_told = abs(seen["last step, times"] - 1.2**2) < 0.01
    return as_told and seen["loss"][-1] > 1000 * seen["loss"][0]


def solves(seen: Seen) -> bool:
    """Fit a linear model with squared error: the loss falls, to less than
    half of its start."""
    return seen["loss"][-1] < seen["loss"][0] / 2
