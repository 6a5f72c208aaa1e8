"""The default dtype and the default device are two settings

Old: torch.set_default_tensor_type(torch.DoubleTensor)

New: torch.set_default_dtype(torch.float64)

Since: 2.1

Today: warns "set_default_tensor_type() is deprecated as of PyTorch 2.1"

Why: One name, torch.cuda.FloatTensor, stood for a dtype and a device.
Today: torch.set_default_dtype, and torch.set_default_device or
`with torch.device("cuda"):`, which also places a module's weights.

Read: torch.set_default_dtype, torch.set_default_device

Gone: set_default_tensor_type
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[float]:
    return (0.1 + seed % 5,)


def old(value: float) -> Tensor:
    torch.set_default_tensor_type(torch.DoubleTensor)
    return torch.tensor([value]) + torch.zeros(1)


def new(value: float) -> Tensor:
    torch.set_default_dtype(torch.float64)
    return torch.tensor([value]) + torch.zeros(1)


def wanted(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)
