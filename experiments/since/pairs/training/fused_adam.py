"""One fused call updates all parameters

Old: Adam(parameters, lr), a loop in Python over parameters

New: Adam(parameters, lr, fused=True)

Since: 2.4

Today: costs 10 times as much: operations in ten steps

Why: The loop starts a dozen operations for each parameter, each through
all of memory. fused=True is one for all of them: on GPUs since 1.13,
on CPUs since 2.4. Without a flag, GPUs get foreach, a few.

Read: torch.optim.Adam, torch.optim.AdamW

Gone: foreach=False  fused=False
"""

from collections.abc import Callable
from typing import Any

import torch
from experiments.since.counting import operations
from torch import Tensor


def given(seed: int) -> tuple[list[Tensor]]:
    torch.manual_seed(seed)
    parameters = [torch.randn(4, requires_grad=True) for _ in range(8)]
    for p in parameters:
        p.grad = torch.ones(4)
    return (parameters,)


def old(parameters: list[Tensor]) -> list[Tensor]:
    optimizer = torch.optim.Adam(parameters, lr=0.1, foreach=False)
    for _ in range(10):
        optimizer.step()
    return [p.detach() for p in parameters]


def new(parameters: list[Tensor]) -> list[Tensor]:
    optimizer = torch.optim.Adam(parameters, lr=0.1, fused=True)
    for _ in range(10):
        optimizer.step()
    return [p.detach() for p in parameters]


def wanted(parameters: list[Tensor]) -> list[Tensor]:
    """Along a gradient that stays, each step has the size of the rate"""
    return [p.detach() - 1.0 for p in parameters]


def cost(f: Callable[..., Any], parameters: list[Tensor]) -> int:
    return operations(lambda: f(parameters))
