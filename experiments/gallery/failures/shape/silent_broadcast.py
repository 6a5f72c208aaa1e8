"""(batch, 1) minus (batch,) is a (batch, batch) table

Expect: A line is fitted to y = 3x. Where does the loss end, and the slope?

Cause: Broadcasting lines shapes up from the right: (64, 1) against (64,)
becomes (64, 64), every prediction against every target. The best answer to
all targets at once is their mean.

Find: Print the shape of the difference before it is averaged. A network
that predicts the mean whatever it is shown is the sign.

Fix: Drop the last axis, and use a loss that wants equal shapes.

Checks: caught by fn.losses.mse_loss: both arguments are "*shape".
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import descend
from fn.layers import linear, linear_init
from fn.losses import mse_loss
from fn.rng import generator


def broken(seed: int) -> Seen:
    x = torch.randn(64, 1, generator=generator(seed))
    y = 3 * x[:, 0]
    params, losses = descend(
        lambda p: (linear(x, **p) - y).square().mean(),
        linear_init(generator(seed, 1), 1, 1),
        lr=0.1,
    )
    return {"loss": losses, "slope": params["weight"].item()}


def fixed(seed: int) -> Seen:
    x = torch.randn(64, 1, generator=generator(seed))
    y = 3 * x[:, 0]
    params, losses = descend(
        lambda p: mse_loss(linear(x, **p).squeeze(1), y),
        linear_init(generator(seed, 1), 1, 1),
        lr=0.1,
    )
    return {"loss": losses, "slope": params["weight"].item()}


def shows(seen: Seen) -> bool:
    """A line is fitted to y = 3x, without noise: the loss stops far above
    0, and the slope ends near 0."""
    return seen["loss"][-1] > 1 and abs(seen["slope"]) < 0.1


def solves(seen: Seen) -> bool:
    """Fit a line to y = 3x, without noise: the loss comes to 0, the slope
    to 3."""
    return seen["loss"][-1] < 0.01 and abs(seen["slope"] - 3) < 0.1


def checked(seed: int) -> None:
    mse_loss(torch.zeros(64, 1), torch.zeros(64))
