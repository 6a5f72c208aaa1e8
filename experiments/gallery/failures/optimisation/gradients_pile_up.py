"""Without zero_grad each step follows all past gradients

Expect: A loop of forward, backward, step. What does backward do with the
.grad that the step before has left?

Cause: backward adds to .grad. Left there, the gradients of all steps pile
up: a momentum that never fades. It rolls through the bottom of the valley
and up the other side.

Find: Compare .grad after the second step with a gradient taken afresh. A
loss that swings up to where it began, in even time, is the sign.

Fix: optimizer.zero_grad() in every step, before backward.

Checks: blind: a sum of gradients has the shape of one. But torch.func.grad
returns its gradients and keeps none: there is nothing to zero.
"""

import torch
from experiments.gallery.failures import Seen
from fn import tree
from fn.layers import linear, linear_init
from fn.losses import mse_loss
from fn.rng import generator
from torch import nn
from torch.func import grad


def line(seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(64, 1)
    return nn.Linear(1, 1), x, 3 * x


def broken(seed: int) -> Seen:
    (model, x, y), losses = line(seed), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(100):
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"loss": losses}


def fixed(seed: int) -> Seen:
    (model, x, y), losses = line(seed), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"loss": losses}


def shows(seen: Seen) -> bool:
    """A line is fitted: the loss falls to almost nothing, and climbs back
    to where it began, again and again."""
    losses = seen["loss"]
    low = losses.index(min(losses[:50]))
    return (
        losses[low] < 0.1 * losses[0] and max(losses[low:]) > losses[0] / 2
    )


def solves(seen: Seen) -> bool:
    """Fit a line to y = 3x: the loss falls to 0 and stays there."""
    return max(seen["loss"][-10:]) < 0.01


def checked(seed: int) -> None:
    x = torch.randn(64, 1, generator=generator(seed))
    params = linear_init(generator(seed), 1, 1)
    total = tree.map(torch.zeros_like, params)
    for _ in range(2):
        grads = grad(lambda p: mse_loss(linear(x, **p), 3 * x))(params)
        total = tree.map(torch.add, total, grads)
        params = tree.map(lambda p, g: p - 0.05 * g, params, total)
