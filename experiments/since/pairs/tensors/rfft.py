"""torch.fft is a module, and its numbers are complex

Old: torch.rfft(x, 1)

New: torch.fft.rfft(x)

Since: 1.8

Today: raises AttributeError "module 'torch' has no attribute 'rfft'"

Why: rfft gave a last axis of two, the real and the imaginary part. Since
1.8 torch.fft is NumPy's module of that name, on complex tensors;
torch.view_as_real gives the old form.

Read: torch.fft.rfft, torch.view_as_real, torch.stft

Gone: torch.rfft
"""

import math

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor]:
    torch.manual_seed(seed)
    return (torch.randn(16, dtype=torch.float64),)


def old(x: Tensor) -> Tensor:
    real, imaginary = torch.rfft(x, 1).unbind(-1)
    return real.square() + imaginary.square()


def new(x: Tensor) -> Tensor:
    return torch.fft.rfft(x).abs().square()


def wanted(x: Tensor) -> Tensor:
    """The power of each frequency, from the definition"""
    n = torch.arange(len(x), dtype=x.dtype)
    angle = 2 * math.pi / len(x) * n[: len(x) // 2 + 1, None] * n
    return (angle.cos() @ x).square() + (angle.sin() @ x).square()
