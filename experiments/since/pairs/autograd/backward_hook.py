"""The old hook of a module sees the gradients of its last operation

Old: module.register_backward_hook(hook)

New: module.register_full_backward_hook(hook)

Since: 1.8

Today: warns "when the forward contains multiple autograd Nodes"

Why: The old hook sits on the last node of the graph. Of a module with two
layers it sees what flows into the second, here into its bias. The full
hook hands out the gradient of the module's own input.

Read: torch.nn.Module.register_full_backward_hook

Gone: .register_backward_hook
"""

import torch
from torch import Tensor, nn


def given(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    return layers, torch.randn(4, 3, requires_grad=True)


def old(model: nn.Module, x: Tensor) -> Tensor:
    seen = []
    model.register_backward_hook(lambda _, into, out: seen.append(into[0]))
    model(x).sum().backward()
    return seen[0]


def new(model: nn.Module, x: Tensor) -> Tensor:
    seen = []
    model.register_full_backward_hook(
        lambda _, into, out: seen.append(into[0])
    )
    model(x).sum().backward()
    return seen[0]


def wanted(model: nn.Module, x: Tensor) -> Tensor:
    return torch.autograd.grad(model(x).sum(), x)[0]
