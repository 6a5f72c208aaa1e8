"""A loss is a tensor without axes; .item() takes its number

Old: loss.data[0]

New: loss.item()

Since: 0.4

Today: raises IndexError "invalid index of a 0-dim tensor"

Why: Before 0.4 the smallest tensor had one axis of size 1. Since then a
sum has no axis, so there is nothing to index.

Read: torch.Tensor.item

Gone: data[0]
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    y = torch.randn(8, dtype=torch.float64, requires_grad=True)
    return y, torch.randn(8, dtype=torch.float64)


def old(y: Tensor, target: Tensor) -> float:
    total = 0.0
    for _ in range(2):
        loss = (y - target).square().mean()
        total += loss.data[0]
    return total


def new(y: Tensor, target: Tensor) -> float:
    total = 0.0
    for _ in range(2):
        loss = (y - target).square().mean()
        total += loss.item()
    return total


def wanted(y: Tensor, target: Tensor) -> float:
    pairs = zip(y.tolist(), target.tolist(), strict=True)
    return 2 * sum((a - b) ** 2 for a, b in pairs) / len(y)
