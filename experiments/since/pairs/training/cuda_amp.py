"""autocast is told the device's type, not imported from it

Old: with torch.cuda.amp.autocast():

New: with torch.amp.autocast(x.device.type, torch.bfloat16):

Since: 2.4

Today: warns "`torch.cuda.amp.autocast(args...)` is deprecated"

Why: torch.cuda.amp casts on CUDA alone; without a GPU it does nothing, and
the result is float32. GradScaler moved to torch.amp likewise.

Read: torch.amp.autocast, torch.amp.GradScaler

Gone: cuda.amp
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor, Tensor]:
    return torch.ones(2, 3 + seed % 5), torch.ones(3 + seed % 5, 2)


def old(x: Tensor, weight: Tensor) -> Tensor:
    with torch.cuda.amp.autocast(dtype=torch.bfloat16):
        return x @ weight


def new(x: Tensor, weight: Tensor) -> Tensor:
    with torch.amp.autocast(x.device.type, torch.bfloat16):
        return x @ weight


def wanted(x: Tensor, weight: Tensor) -> Tensor:
    return torch.full((2, 2), float(len(weight)), dtype=torch.bfloat16)
