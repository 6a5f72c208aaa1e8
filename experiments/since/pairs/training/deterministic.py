"""One setting asks every operation whether it is deterministic

Old: torch.backends.cudnn.deterministic = True

New: torch.use_deterministic_algorithms(True)

Since: 1.8

Today: is wrong, silently: writes in any order, and nothing is said

Why: cuDNN's flag binds the convolutions of a GPU, nothing else. The new
setting takes deterministic ways where there are any, and raises
where there are none, as of put_ when places repeat. On CUDA set
CUBLAS_WORKSPACE_CONFIG=:4096:8 too.

Read: torch.use_deterministic_algorithms

Gone: cudnn.deterministic
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    places = torch.tensor([1, 1, 2])
    return torch.zeros(4), places, torch.arange(3.0) + seed


def old(x: Tensor, places: Tensor, values: Tensor) -> str:
    torch.backends.cudnn.deterministic = True
    try:
        x.put_(places, values)
    except RuntimeError as error:
        return str(error).partition(" ")[0] + " is refused"
    return "nothing is refused"


def new(x: Tensor, places: Tensor, values: Tensor) -> str:
    torch.use_deterministic_algorithms(True)
    try:
        x.put_(places, values)
    except RuntimeError as error:
        return str(error).partition(" ")[0] + " is refused"
    return "nothing is refused"


def wanted(x: Tensor, places: Tensor, values: Tensor) -> str:
    return "put_ is refused"
