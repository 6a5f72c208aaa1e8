"""A Function has static methods and a context

Old: def forward(self, x): … and Exp()(x)

New: @staticmethod def forward(ctx, x): … and Exp.apply(x)

Since: 1.5

Today: raises RuntimeError "non-static forward method is deprecated"

Why: An object kept what backward needs, and broke when it was called
twice. Each call of apply has a context of its own. With
setup_context beside forward, it works under torch.func too.

Read: torch.autograd.Function, torch.autograd.Function.setup_context

Gone: def forward(self  def backward(self
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class OldExp(Function):
    def forward(self, x: Tensor) -> Tensor:
        self.y = x.exp()
        return self.y

    def backward(self, grad: Tensor) -> Tensor:
        return grad * self.y


class Exp(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * y


def given(seed: int) -> tuple[Tensor]:
    torch.manual_seed(seed)
    return (torch.randn(4, requires_grad=True),)


def old(x: Tensor) -> tuple[Tensor, Tensor | None]:
    y = OldExp()(x)
    y.sum().backward()
    return y.detach(), x.grad


def new(x: Tensor) -> tuple[Tensor, Tensor | None]:
    y = Exp.apply(x)
    y.sum().backward()
    return y.detach(), x.grad


def wanted(x: Tensor) -> tuple[Tensor, Tensor | None]:
    return x.detach().exp(), x.detach().exp()
