"""A leaf that wants a gradient is changed in place

Expect: Descent written by hand: the weight wants a gradient, and a multiple
of it is taken off with -=. What does the first step do?

Cause: Autograd records what happens to a tensor with requires_grad. A leaf
is where gradients end; changed in place under record it would be a result
of itself, so that is refused.

Find: weight.is_leaf and weight.grad_fn, before the line and after it.

Fix: with torch.no_grad(): around the update, as every optimizer of torch
does. weight = weight - … is no way out: that is a new tensor, no leaf, and
its .grad stays None.

Checks: blind: whether a tensor is a leaf is not in its shape. Parameters
that are values, never changed in place, do not have the problem.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import message
from fn.losses import mse_loss
from fn.rng import generator


def fit(weight, x, losses) -> None:
    for _ in range(50):
        loss = mse_loss(weight * x, 3 * x)
        losses.append(loss.item())
        loss.backward()
        weight -= 0.1 * weight.grad
        weight.grad.zero_()


def fit_unrecorded(weight, x, losses) -> None:
    for _ in range(50):
        loss = mse_loss(weight * x, 3 * x)
        losses.append(loss.item())
        loss.backward()
        with torch.no_grad():
            weight -= 0.1 * weight.grad
        weight.grad.zero_()


def broken(seed: int) -> Seen:
    x, losses = torch.randn(64, generator=generator(seed)), []
    weight = torch.zeros(1, requires_grad=True)
    error = message(lambda: fit(weight, x, losses))
    return {"loss": losses, "weight": weight.item(), "error": error}


def fixed(seed: int) -> Seen:
    x, losses = torch.randn(64, generator=generator(seed)), []
    weight = torch.zeros(1, requires_grad=True)
    error = message(lambda: fit_unrecorded(weight, x, losses))
    return {"loss": losses, "weight": weight.item(), "error": error}


def shows(seen: Seen) -> bool:
    """Forward and backward go well. The update that follows stops with an
    error, and the weight is where it was."""
    return seen["weight"] == 0 and "in-place" in seen["error"]


def solves(seen: Seen) -> bool:
    """Fit the slope of y = 3x by descent, written by hand: the weight goes
    from 0 to 3 in fifty steps."""
    return abs(seen["weight"] - 3) < 0.1 and len(seen["loss"]) == 50
