"""Attention is one operation, which never holds the table of scores

Old: softmax(q @ k.mT / sqrt(d)) @ v

New: F.scaled_dot_product_attention(q, k, v)

Since: 2.0

Today: costs 15 times as much: bytes kept for the backward pass

Why: By hand the queries × keys table is kept for the gradient. The fused
kernels go through it in tiles and keep one number per query. At
256 positions of 16 channels it is a factor of 15, and it grows
with the length.

Read: torch.nn.functional.scaled_dot_product_attention

Gone: softmax
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from experiments.since.counting import bytes_saved
from torch import Tensor


def given(seed: int) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    return torch.randn(3, 1, 2, 256, 16, requires_grad=True).unbind()


def old(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return F.softmax(scores, dim=-1) @ v


def new(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def wanted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The weighted mean of v, query after query"""
    one = [(k @ q[..., i, :, None])[..., 0] for i in range(q.shape[-2])]
    weights = [(s / math.sqrt(q.shape[-1])).exp() for s in one]
    means = [
        (w[..., None] * v).sum(dim=-2) / w.sum(dim=-1)[..., None]
        for w in weights
    ]
    return torch.stack(means, dim=-2)


def cost(f: Callable[..., Any], *given: Tensor) -> int:
    return bytes_saved(lambda: f(*given), given)
