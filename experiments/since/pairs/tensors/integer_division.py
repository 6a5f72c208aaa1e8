"""The / of integers is a true division; // or rounding_mode floors

Old: index / width

New: index // width

Since: 1.7

Today: is wrong, silently: rows 0.33 and 0.67 in place of row 0

Why: Up to 1.5 the / of integer tensors gave an integer, in 1.6 an error.
Code that takes a pixel's row from its place in the flattened image now
gets fractions. Up to 1.12 // cut towards 0; it now floors, as Python's.

Read: torch.div, torch.floor_divide, torch.unravel_index

Gone: index / width
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor, int]:
    return torch.arange(6), 3 + seed % 5


def old(index: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return index / width, index % width


def new(index: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return index // width, index % width


def wanted(index: Tensor, width: int) -> tuple[Tensor, Tensor]:
    rows, columns = zip(
        *(divmod(i, width) for i in index.tolist()), strict=True
    )
    return torch.tensor(rows), torch.tensor(columns)
