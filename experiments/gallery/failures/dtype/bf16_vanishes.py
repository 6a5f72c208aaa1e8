"""In bfloat16 a step below 1/512 of a weight is lost

Expect: A weight of 1 is to become 1.5; everything is in bfloat16, the
rate is small. How far does it get?

Cause: bfloat16 has 8 significant bits: above 1 the next number is
1 + 1/128. A step less than half of that, 1/256, leaves 1 where it was.
Below 1 the gap is half as wide.

Find: Count the weights that a step does not change, (after == before).
Loss that falls fast and then stands still at a small rate is the sign.

Fix: Keep parameters and optimizer in float32; do only the products in
bfloat16, as torch.autocast and fn.train_variants.mixed_precision do.

Checks: blind: bfloat16 is a Float, and rounding is no matter of shape.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import descend
from fn.layers import linear
from fn.losses import mse_loss
from fn.rng import generator


def broken(seed: int) -> Seen:
    x = torch.randn(256, 1, generator=generator(seed)).bfloat16()
    params, losses = descend(
        lambda p: mse_loss(linear(x, **p), 1.5 * x),
        {"weight": torch.ones(1, 1, dtype=torch.bfloat16)},
        lr=2e-3,
        steps=400,
    )
    return {"loss": losses, "weight": params["weight"].item()}


def fixed(seed: int) -> Seen:
    x = torch.randn(256, 1, generator=generator(seed)).bfloat16()
    params, losses = descend(
        lambda p: mse_loss(linear(x, p["weight"].bfloat16()), 1.5 * x),
        {"weight": torch.ones(1, 1)},
        lr=2e-3,
        steps=400,
    )
    return {"loss": losses, "weight": params["weight"].item()}


def shows(seen: Seen) -> bool:
    """A weight starts at 1 and should become 1.5. The loss is not 0,
    and yet after 400 steps the weight is still exactly 1."""
    return seen["weight"] == 1 and seen["loss"][-1] > 0.1


def solves(seen: Seen) -> bool:
    """Fit the slope of y = 1.5 x in bfloat16, by small steps: it starts at
    1, and gets most of the way to 1.5."""
    return abs(seen["weight"] - 1.5) < 0.2
