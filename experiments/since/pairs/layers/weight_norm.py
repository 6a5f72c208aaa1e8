"""A weight under a constraint is a parametrization

Old: torch.nn.utils.weight_norm(layer)

New: torch.nn.utils.parametrizations.weight_norm(layer)

Since: 2.1

Today: warns "`torch.nn.utils.weight_norm` is deprecated"

Why: The old one computed the weight in a hook before each forward pass:
until the next one it is stale, and the layer cannot be deep-copied.
A parametrization computes the weight whenever it is read.

Read: torch.nn.utils.parametrizations.weight_norm

Gone: utils.weight_norm
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def given(seed: int) -> tuple[nn.Linear]:
    torch.manual_seed(seed)
    return (nn.Linear(3, 2),)


def old(layer: nn.Linear) -> tuple[Tensor, int]:
    layer = torch.nn.utils.weight_norm(layer)
    return layer.weight.detach(), len(list(layer.parameters()))


def new(layer: nn.Linear) -> tuple[Tensor, int]:
    layer = parametrizations.weight_norm(layer)
    return layer.weight.detach(), len(list(layer.parameters()))


def wanted(layer: nn.Linear) -> tuple[Tensor, int]:
    """The weight as it was; a bias, a direction and a length"""
    return layer.weight.detach().clone(), 3
