"""torch.Tensor(3) is three numbers of whatever lay in memory

Old: torch.Tensor(3)

New: torch.tensor(3)

Since: 0.4

Today: is wrong, silently: three numbers in place of the number 3

Why: The class takes sizes, or a list, which it makes float32. The function
takes values and keeps their dtype. To want memory that nothing has
written, say torch.empty(3).

Read: torch.tensor, torch.empty

Gone: torch.Tensor(
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[int]:
    return (3 + seed % 5,)


def old(count: int) -> Tensor:
    return torch.Tensor(count)


def new(count: int) -> Tensor:
    return torch.tensor(count)


def wanted(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.int64).sum()
