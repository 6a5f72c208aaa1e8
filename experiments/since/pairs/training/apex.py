"""Mixed precision is part of torch

Old: from apex import amp; amp.initialize(model, optimizer)

New: with torch.autocast(device, torch.bfloat16):

Since: 1.6

Today: raises ModuleNotFoundError "No module named 'apex'"

Why: apex patched torch's functions, and had to be compiled against them.
autocast is a block: matrix products in half, losses in float32. Only
float16 needs torch.amp.GradScaler; bfloat16 has float32's range.

Read: torch.autocast, torch.amp.GradScaler

Gone: apex
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def given(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(4, 4), torch.randn(5, 4)


def old(model: nn.Module, x: Tensor) -> tuple[torch.dtype, torch.dtype]:
    from apex import amp

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = amp.initialize(model, optimizer, opt_level="O1")
    y = model(x)
    return y.dtype, F.mse_loss(y, x).dtype


def new(model: nn.Module, x: Tensor) -> tuple[torch.dtype, torch.dtype]:
    with torch.autocast(x.device.type, torch.bfloat16):
        y = model(x)
        return y.dtype, F.mse_loss(y, x).dtype


def wanted(model: nn.Module, x: Tensor) -> tuple[torch.dtype, torch.dtype]:
    return torch.bfloat16, torch.float32
