"""Evaluation without a graph is a block, no property of the input

Old: Variable(x, volatile=True)

New: with torch.no_grad():

Since: 0.4

Today: warns "volatile was removed and now has no effect"

Why: Tensor and Variable are one since 0.4, and the flag does nothing: the
graph of every evaluation is built and kept with its result. For
prediction alone 1.9 has torch.inference_mode(), whose tensors can never
enter a graph again.

Read: torch.no_grad, torch.inference_mode

Gone: Variable  volatile
"""

import torch
from torch import Tensor
from torch.autograd import Variable


def given(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(3, requires_grad=True), torch.randn(5, 3)


def old(weight: Tensor, x: Tensor) -> tuple[Tensor, bool]:
    x = Variable(x, volatile=True)
    y = x @ weight
    return y, y.requires_grad


def new(weight: Tensor, x: Tensor) -> tuple[Tensor, bool]:
    with torch.no_grad():
        y = x @ weight
    return y, y.requires_grad


def wanted(weight: Tensor, x: Tensor) -> tuple[Tensor, bool]:
    return (x * weight.detach()).sum(dim=1), False
