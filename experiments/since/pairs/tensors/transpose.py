"""x.T turns all axes around; of a batch of matrices .mT is meant

Old: batch.T

New: batch.mT

Since: 1.11

Today: warns "The use of `x.T` on tensors of dimension other than 2"

Why: Of (batch, rows, columns) .T makes (columns, rows, batch). .mT swaps
the last two axes alone, and .mH conjugates too.

Read: torch.Tensor.mT, torch.Tensor.T, torch.adjoint

Gone: .T
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor]:
    torch.manual_seed(seed)
    return (torch.randn(4, 3, 2),)


def old(batch: Tensor) -> Tensor:
    return batch.T


def new(batch: Tensor) -> Tensor:
    return batch.mT


def wanted(batch: Tensor) -> Tensor:
    return torch.stack([matrix.t() for matrix in batch])
