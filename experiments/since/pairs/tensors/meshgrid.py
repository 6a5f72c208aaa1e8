"""meshgrid wants to be told which of its axes is first

Old: torch.meshgrid(y, x)

New: torch.meshgrid(y, x, indexing="ij")

Since: 1.10

Today: warns "it will be required to pass the indexing argument"

Why: torch counts rows first, "ij"; NumPy's default is "xy", which torch
announces as its own. Code that says which one it means stays right.

Read: torch.meshgrid, torch.cartesian_prod

Gone: meshgrid(y, x)
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor, Tensor]:
    return torch.arange(3.0), torch.arange(4.0 + seed % 5)


def old(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return torch.meshgrid(y, x)


def new(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return torch.meshgrid(y, x, indexing="ij")


def wanted(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    zeros = torch.zeros(len(y), len(x))
    return zeros + y[:, None], zeros + x
