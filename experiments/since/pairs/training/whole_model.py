"""torch.load runs no code of the file, so it loads weights alone

Old: torch.save(model, file); torch.load(file)

New: torch.save(model.state_dict(), file); load_state_dict

Since: 2.6

Today: raises UnpicklingError "Weights only load failed"

Why: A pickle names functions to be called: a file from elsewhere could run
anything. Since 2.6 weights_only=True is the default, and only tensors
and plain values come out. weights_only=False brings the danger back.

Read: torch.load, torch.save, torch.serialization.add_safe_globals

Gone: weights_only=False  torch.save(model,  pickle
"""

import io

import torch
from torch import Tensor, nn


def given(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(3, 2), torch.randn(4, 3)


def old(model: nn.Module, x: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file)
    return loaded(x)


def new(model: nn.Module, x: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = nn.Linear(3, 2)
    loaded.load_state_dict(torch.load(file))
    return loaded(x)


def wanted(model: nn.Linear, x: Tensor) -> Tensor:
    return x @ model.weight.mT + model.bias
