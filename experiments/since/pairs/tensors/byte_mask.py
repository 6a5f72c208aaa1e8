"""A mask is a tensor of bool, no longer one of bytes

Old: x[mask.byte()]

New: x[mask]

Since: 1.2

Today: warns "indexing with dtype torch.uint8 is now deprecated"

Why: Comparisons gave uint8 until 1.2, and masks were kept as bytes. Of
bytes, ~mask is 254 and 255, which are both true; of bools it is what
it says.

Read: torch.masked_select, torch.Tensor.bool

Gone: .byte(  uint8
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(6), torch.randn(6) > 0


def old(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask.byte()].sum()


def new(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask].sum()


def wanted(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum()
