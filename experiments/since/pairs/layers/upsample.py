"""Images are resized by interpolate

Old: F.upsample(x, scale_factor=2, mode="bilinear")

New: F.interpolate(x, scale_factor=2, mode="bilinear")

Since: 0.4.1

Today: warns "`nn.functional.upsample` is deprecated"

Why: It makes images smaller too, so the name was wrong. Beware of weights
older than 0.4: align_corners was true by default up to 0.3.1.

Read: torch.nn.functional.interpolate, torch.nn.Upsample

Gone: upsample
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def given(seed: int) -> tuple[Tensor]:
    torch.manual_seed(seed)
    return (torch.randn(1, 1, 3, 3),)


def old(x: Tensor) -> Tensor:
    return F.upsample(x, scale_factor=2, mode="bilinear")


def new(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def wanted(x: Tensor) -> Tensor:
    """A pixel is 3/4 of its nearest and 1/4 of the next, on each axis"""
    for _ in range(2):
        x = x.mT
        ends = torch.cat([x[..., :1], x, x[..., -1:]], dim=-1)
        low = 0.75 * x + 0.25 * ends[..., :-2]
        high = 0.75 * x + 0.25 * ends[..., 2:]
        x = torch.stack([low, high], dim=-1).flatten(-2)
    return x
