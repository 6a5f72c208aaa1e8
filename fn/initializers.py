"""Initial weights, drawn from a generator: the same seed gives the same weights on every device.

fan_in and fan_out are the inputs and outputs of one unit: shape[1] and shape[0], times the area of the kernel.
ValueError for a shape with fewer than two axes.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fn.domains import Counts, Magnitude

RELU_GAIN = math.sqrt(2)


def _fans(shape: Counts) -> tuple[int, int]:
    if len(shape) < 2:
        raise ValueError(f"fan in and fan out need at least two axes, not the shape {tuple(shape)}")
    area = math.prod(shape[2:])
    return shape[1] * area, shape[0] * area


def _uniform(rng: torch.Generator, shape: Counts, bound: float) -> Float[Tensor, "..."]:
    return (torch.rand(tuple(shape), generator=rng) * 2 - 1) * bound


def kaiming_std(shape: Counts, mode: Literal["fan_in", "fan_out"], gain: Magnitude) -> float:
    """Return gain / √fan. He et al. 2015.

    It keeps the variance through ReLU layers, forward (fan_in) or backward (fan_out).

    >>> kaiming_std((256, 128), mode="fan_in", gain=RELU_GAIN)  # √(2 / 128)
    0.125
    """
    fan_in, fan_out = _fans(shape)
    return gain / math.sqrt(fan_in if mode == "fan_in" else fan_out)


def kaiming_uniform(
    rng: torch.Generator,
    shape: Counts,
    *,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    gain: Magnitude = RELU_GAIN,
) -> Float[Tensor, "..."]:
    """Draw weights from U(-√3·std, √3·std), std = gain / √fan.

    >>> weight = kaiming_uniform(torch.Generator().manual_seed(0), (64, 600))  # std = √(2 / 600)
    >>> weight.shape, bool(weight.abs().max() < 0.1)
    (torch.Size([64, 600]), True)
    """
    return _uniform(rng, shape, math.sqrt(3) * kaiming_std(shape, mode, gain))


def kaiming_normal(
    rng: torch.Generator,
    shape: Counts,
    *,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    gain: Magnitude = RELU_GAIN,
) -> Float[Tensor, "..."]:
    """Draw weights from N(0, std²), std = gain / √fan.

    >>> weight = kaiming_normal(torch.Generator().manual_seed(0), (64, 32, 5, 5))  # std = √(2 / 800) = 0.05
    >>> weight.shape, round(float(weight.std()), 2)
    (torch.Size([64, 32, 5, 5]), 0.05)
    """
    std = kaiming_std(shape, mode, gain)
    return torch.randn(tuple(shape), generator=rng) * std


def xavier_std(shape: Counts, gain: Magnitude) -> float:
    """Return gain · √(2 / (fan_in + fan_out)), a compromise between forward and backward. Glorot and Bengio 2010.

    >>> xavier_std((100, 100), gain=1)
    0.1
    """
    return gain * math.sqrt(2 / sum(_fans(shape)))


def xavier_uniform(rng: torch.Generator, shape: Counts, *, gain: Magnitude = 1.0) -> Float[Tensor, "..."]:
    """Draw weights from U(-√3·std, √3·std), std = gain · √(2 / (fan_in + fan_out)).

    >>> weight = xavier_uniform(torch.Generator().manual_seed(0), (100, 200))  # √3·std = √(6 / 300)
    >>> weight.shape, bool(weight.abs().max() < 0.1415)
    (torch.Size([100, 200]), True)
    """
    return _uniform(rng, shape, math.sqrt(3) * xavier_std(shape, gain))


def xavier_normal(rng: torch.Generator, shape: Counts, *, gain: Magnitude = 1.0) -> Float[Tensor, "..."]:
    """Draw weights from N(0, std²), std = gain · √(2 / (fan_in + fan_out)).

    >>> weight = xavier_normal(torch.Generator().manual_seed(0), (100, 100))  # std = 0.1
    >>> weight.shape, round(float(weight.std()), 2)
    (torch.Size([100, 100]), 0.1)
    """
    std = xavier_std(shape, gain)
    return torch.randn(tuple(shape), generator=rng) * std
