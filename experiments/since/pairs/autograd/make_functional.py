"""A module as a function of its parameters: functional_call

Old: f, params = functorch.make_functional(model)

New: torch.func.functional_call(model, params, x)

Since: 2.0

Today: warns "`functorch.make_functional` is deprecated as of PyTorch 2.0"

Why: make_functional copied the module and handed out a list without names.
functional_call takes the module as it is and a dict of its named
parameters. grad, vmap and jacrev are in torch.func too.

Read: torch.func.functional_call, torch.func.vmap, torch.func.grad

Gone: functorch  make_functional
"""

import functorch
import torch
from torch import Tensor, nn


def given(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(3, 1), torch.randn(4, 3)


def old(model: nn.Module, x: Tensor) -> Tensor:
    """The gradient of each example by itself"""
    f, params = functorch.make_functional(model)

    def loss(params: tuple[Tensor, ...], x: Tensor) -> Tensor:
        return f(params, x).square().sum()

    grads = functorch.vmap(functorch.grad(loss), in_dims=(None, 0))
    return grads(params, x)[0]


def new(model: nn.Module, x: Tensor) -> Tensor:
    """The gradient of each example by itself"""
    params = dict(model.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        y = torch.func.functional_call(model, params, x)
        return y.square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    return grads(params, x)["weight"]


def wanted(model: nn.Linear, x: Tensor) -> Tensor:
    return (2 * model(x) * x)[:, None].detach()
