"""What is changed through .data, autograd does not see

Old: y.data.mul_(100)

New: y.detach() * 100

Since: 0.4

Today: is wrong, silently: gradients of numbers that were changed since

Why: A sigmoid's gradient is y (1 - y), from the y that it keeps. .data
shares the memory and hides the change. y.detach().mul_(100) shares it
too, but counts as a change: backward refuses. A copy harms nothing.

Read: torch.Tensor.detach

Gone: .data
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor]:
    torch.manual_seed(seed)
    return (torch.randn(4, requires_grad=True),)


def old(x: Tensor) -> tuple[Tensor, Tensor | None]:
    y = x.sigmoid()
    percent = y.data.mul_(100)  # to be printed
    y.sum().backward()
    return percent, x.grad


def new(x: Tensor) -> tuple[Tensor, Tensor | None]:
    y = x.sigmoid()
    percent = y.detach() * 100  # to be printed
    y.sum().backward()
    return percent, x.grad


def wanted(x: Tensor) -> tuple[Tensor, Tensor | None]:
    s = 1 / (1 + (-x.detach()).exp())
    return 100 * s, s * (1 - s)
