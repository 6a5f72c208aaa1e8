"""Checkpointing says which of its two ways it means

Old: checkpoint(block, x)

New: checkpoint(block, x, use_reentrant=False)

Since: 1.11

Today: warns "the use_reentrant parameter should be passed explicitly"

Why: The first way runs a backward pass inside the backward pass. It gives
the weights no gradient at all where the input needs none, as here, and
takes no keyword arguments. The second has neither flaw. Who names none
is warned since 2.1.

Read: torch.utils.checkpoint.checkpoint

Gone: checkpoint(block, x)  use_reentrant=True
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def given(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(3, 1), torch.randn(4, 3)


def old(block: nn.Module, x: Tensor) -> Tensor | None:
    y = checkpoint(block, x)
    if y.requires_grad:
        y.sum().backward()
    return next(block.parameters()).grad


def new(block: nn.Module, x: Tensor) -> Tensor | None:
    y = checkpoint(block, x, use_reentrant=False)
    if y.requires_grad:
        y.sum().backward()
    return next(block.parameters()).grad


def wanted(block: nn.Module, x: Tensor) -> Tensor | None:
    return x.sum(dim=0, keepdim=True)
