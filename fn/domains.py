"""Domains of numbers, checked as shapes are: a number outside is a TypeCheckError that names the argument."""

from typing import Annotated

from beartype.vale import Is
from jaxtyping import Int
from torch import Tensor
from torch._subclasses import FakeTensor

from fn.workarounds import unwrap

Count = Annotated[int, Is[lambda n: n >= 1]]
Natural = Annotated[int, Is[lambda n: n >= 0]]
Probability = Annotated[float, Is[lambda p: 0 <= p <= 1]]
Beta = Annotated[float, Is[lambda beta: 0 <= beta < 1]]
NonNegative = Annotated[float, Is[lambda x: x >= 0]]
Positive = Annotated[float, Is[lambda x: x > 0]]


def require_indices(x: Int[Tensor, "*batch"], rows: int) -> None:
    """Raise ValueError for an index outside 0 to rows - 1; while a step is traced there are none to look at.

    >>> import torch
    >>> require_indices(torch.tensor([0, 2]), 3)
    """
    x = unwrap(x)
    if not isinstance(x, FakeTensor) and x.numel():
        least, greatest = int(x.min()), int(x.max())
        if least < 0 or greatest >= rows:
            raise ValueError(f"index {least if least < 0 else greatest} is none of {rows} rows")
