"""float16 ends at 65,504, which 256 squared exceeds

Expect: A norm written by hand gets activations of about 300 in float16.
What comes out?

Cause: The variance is a mean of squares, and 300² = 90,000 is infinite in
float16. One over the root of infinity is 0, so all that is left is 0.

Find: The greatest |x| of each layer beside torch.finfo(x.dtype).max, and
isfinite() of what lies between, not only of the result.

Fix: Sums of squares, exponentials and losses in float32, or bfloat16,
which has the range of float32.

Checks: blind: infinity is a Float too. fn.layers.layer_norm computes in
float32 whatever half it is given, as torch's own does.
"""

import torch
from experiments.gallery.failures import Seen
from fn.layers import layer_norm
from fn.rng import generator
from torch import Tensor


def norm_by_hand(h: Tensor) -> Tensor:
    h = h - h.mean(dim=-1, keepdim=True)
    return h / h.square().mean(dim=-1, keepdim=True).sqrt()


def broken(seed: int) -> Seen:
    h = 300 * torch.randn(64, 128, generator=generator(seed))
    y = norm_by_hand(h.half())
    return {"greatest in": h.max().item(), "spread out": y.std().item()}


def fixed(seed: int) -> Seen:
    h = 300 * torch.randn(64, 128, generator=generator(seed))
    y = layer_norm(h.half(), [128])
    return {"greatest in": h.max().item(), "spread out": y.std().item()}


def shows(seen: Seen) -> bool:
    """After the norm everything is 0, though the activations before it
    vary, and not one of them is infinite."""
    return seen["spread out"] == 0 and seen["greatest in"] < 65504


def solves(seen: Seen) -> bool:
    """Bring each row of activations in float16 to a mean of 0 and a spread
    of 1."""
    return abs(seen["spread out"] - 1) < 0.05
