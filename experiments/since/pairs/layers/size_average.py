"""One word, reduction, in place of two flags

Old: F.mse_loss(y, target, size_average=False)

New: F.mse_loss(y, target, reduction="sum")

Since: 0.4.1

Today: warns "size_average and reduce args will be deprecated"

Why: The flags size_average and reduce had four settings for three meanings.
The warning's own "please use reduction='…'" names the right one.

Read: torch.nn.functional.mse_loss, torch.nn.functional.cross_entropy

Gone: size_average  reduce=
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def given(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(6), torch.randn(6)


def old(y: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(y, target, size_average=False)


def new(y: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(y, target, reduction="sum")


def wanted(y: Tensor, target: Tensor) -> Tensor:
    return (y - target) @ (y - target)
