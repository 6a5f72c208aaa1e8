"""Channels last is how a tensor lies in memory, not its shape

Old: x.permute(0, 2, 3, 1).contiguous() around each layer

New: x.to(memory_format=torch.channels_last), once

Since: 1.5

Today: costs 4 times as much: copies of the image

Why: Tensor cores want a pixel's channels side by side. Kept as a shape
(batch, height, width, channels), each convolution needs a copy
there and one back. As a memory format the shape stays, and what
comes out of one layer lies as the next wants it.

Read: torch.channels_last, torch.Tensor.contiguous, torch.Tensor.to

Gone: permute
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from experiments.since.counting import operations
from torch import Tensor


def given(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3)


def old(x: Tensor, weight: Tensor) -> Tensor:
    for _ in range(2):
        x = x.permute(0, 2, 3, 1).contiguous()
        x = x.relu()  # and other work on channels
        x = x.permute(0, 3, 1, 2).contiguous()
        x = F.conv2d(x, weight)
    return x


def new(x: Tensor, weight: Tensor) -> Tensor:
    x = x.to(memory_format=torch.channels_last)
    for _ in range(2):
        x = x.relu()  # and other work on channels
        x = F.conv2d(x, weight)
    return x


def wanted(x: Tensor, weight: Tensor) -> Tensor:
    for _ in range(2):
        windows = x.relu().unfold(2, 3, 1).unfold(3, 3, 1)
        x = torch.einsum("bchwij,ocij->bohw", windows, weight)
    return x


def cost(f: Callable[..., Any], *given: Tensor) -> int:
    return operations(lambda: f(*given), "clone", "_to_copy")
