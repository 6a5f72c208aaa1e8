"""A softmax is told its axis

Old: F.softmax(scores)

New: F.softmax(scores, dim=-1)

Since: 0.3

Today: warns "Implicit dimension choice for softmax has been deprecated"

Why: Without dim it takes axis 0 of a tensor with one or three axes, else
axis 1. So for scores of (heads, queries, keys) it sums to 1 over
the heads. Wrong, and the warning is shown once.

Read: torch.nn.functional.softmax

Gone: softmax(scores)
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def given(seed: int) -> tuple[Tensor]:
    torch.manual_seed(seed)
    return (torch.randn(2, 3, 4),)


def old(scores: Tensor) -> Tensor:
    return F.softmax(scores)


def new(scores: Tensor) -> Tensor:
    return F.softmax(scores, dim=-1)


def wanted(scores: Tensor) -> Tensor:
    e = scores.exp()
    return e / e.sum(dim=-1, keepdim=True)
