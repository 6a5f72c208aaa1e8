"""The gradient of what is broadcast is a sum, left out here

Expect: A line is fitted to 16 noisy points, with gradients written by hand.
How low can the loss on these points go, and on 16 others?

Cause: One bias serves all rows, so its gradient is the sum over the rows.
Left out, it has a row per example, and b - ηg broadcasts: the bias becomes
a column of 16, a bias for each example, which memorizes its noise.

Find: Print the shapes of parameters and gradients after the first step:
they must be equal. Or compare with torch.func.grad.

Fix: db = dy.sum(dim=0). What broadcasting repeats, the gradient sums.

Checks: caught by fn.layers.linear: bias is " d_out". The product written
out here takes any bias that broadcasts. The optimizers of fn.optim refuse
a gradient of another shape than its parameter's, by name.
"""

import torch
from experiments.gallery.failures import Seen
from fn.layers import linear
from fn.losses import mse_loss
from fn.rng import generator


def broken(seed: int) -> Seen:
    rng = generator(seed)
    x, others = torch.randn(2, 16, 1, generator=rng)
    y = 2 * x + 1 + torch.randn(16, 1, generator=rng)
    w, b, losses = torch.zeros(1, 1), torch.zeros(1), []
    for _ in range(300):
        h = x @ w.T + b
        losses.append(mse_loss(h, y).item())
        dy = 2 * (h - y) / 16
        dw, db = dy.T @ x, dy
        w, b = w - 0.3 * dw, b - 0.3 * db
    held_out = (others @ w.T + b - (2 * others + 1)).square().mean()
    return {
        "loss": losses,
        "loss, other points": held_out.item(),
        "numbers in the bias": b.numel(),
    }


def fixed(seed: int) -> Seen:
    rng = generator(seed)
    x, others = torch.randn(2, 16, 1, generator=rng)
    y = 2 * x + 1 + torch.randn(16, 1, generator=rng)
    w, b, losses = torch.zeros(1, 1), torch.zeros(1), []
    for _ in range(300):
        h = x @ w.T + b
        losses.append(mse_loss(h, y).item())
        dy = 2 * (h - y) / 16
        dw, db = dy.T @ x, dy.sum(dim=0)
        w, b = w - 0.3 * dw, b - 0.3 * db
    held_out = (others @ w.T + b - (2 * others + 1)).square().mean()
    return {
        "loss": losses,
        "loss, other points": held_out.item(),
        "numbers in the bias": b.numel(),
    }


def shows(seen: Seen) -> bool:
    """A line is fitted to points with noise of variance 1, and the loss on
    them comes to 0, as no line can do."""
    return seen["loss"][-1] < 0.01


def solves(seen: Seen) -> bool:
    """Fit a line, a slope and a bias, to 16 noisy points by gradients that
    are written by hand; other points of that line are met."""
    return (
        seen["numbers in the bias"] == 1 and seen["loss, other points"] < 1
    )


def checked(seed: int) -> None:
    x = torch.randn(16, 1, generator=generator(seed))
    b = torch.zeros(1) - 0.3 * (x - 1)
    linear(x, torch.zeros(1, 1), b)
