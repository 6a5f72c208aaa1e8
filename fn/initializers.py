"""Initial weights, drawn from a generator: the same seed gives the same weights on every device.

fan_in and fan_out are the inputs and outputs of one unit: shape[1] and shape[0], times the kernel's area.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

RELU_GAIN = math.sqrt(2)


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) < 2:
        raise ValueError(f"fan in and fan out need at least two axes, not the shape {tuple(shape)}")
    area = math.prod(shape[2:])
    return shape[1] * area, shape[0] * area


def _uniform(rng: torch.Generator, shape: Sequence[int], bound: float) -> Float[Tensor, "..."]:
    return (torch.rand(*shape, generator=rng) * 2 - 1) * bound


def kaiming_std(shape: Sequence[int], mode: Literal["fan_in", "fan_out"], gain: float) -> float:
    """gain / √fan: keeps the variance through ReLU layers, forward (fan_in) or backward (fan_out). He et al. 2015."""
    fan_in, fan_out = _fans(shape)
    return gain / math.sqrt(fan_in if mode == "fan_in" else fan_out)


def kaiming_uniform(
    rng: torch.Generator,
    shape: Sequence[int],
    *,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    gain: float = RELU_GAIN,
) -> Float[Tensor, "..."]:
    """U(-√3·std, √3·std), std = gain / √fan"""
    return _uniform(rng, shape, math.sqrt(3) * kaiming_std(shape, mode, gain))


def kaiming_normal(
    rng: torch.Generator,
    shape: Sequence[int],
    *,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    gain: float = RELU_GAIN,
) -> Float[Tensor, "..."]:
    """N(0, std²), std = gain / √fan"""
    return torch.randn(*shape, generator=rng) * kaiming_std(shape, mode, gain)


def xavier_std(shape: Sequence[int], gain: float) -> float:
    """gain · √(2 / (fan_in + fan_out)): a compromise between forward and backward. Glorot and Bengio 2010."""
    return gain * math.sqrt(2 / sum(_fans(shape)))


def xavier_uniform(rng: torch.Generator, shape: Sequence[int], *, gain: float = 1.0) -> Float[Tensor, "..."]:
    """U(-√3·std, √3·std), std = gain · √(2 / (fan_in + fan_out))"""
    return _uniform(rng, shape, math.sqrt(3) * xavier_std(shape, gain))


def xavier_normal(rng: torch.Generator, shape: Sequence[int], *, gain: float = 1.0) -> Float[Tensor, "..."]:
    """N(0, std²), std = gain · √(2 / (fan_in + fan_out))"""
    return torch.randn(*shape, generator=rng) * xavier_std(shape, gain)
