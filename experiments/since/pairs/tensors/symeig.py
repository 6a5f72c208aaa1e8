"""Decompositions have moved to torch.linalg, with NumPy's names

Old: torch.symeig(a, eigenvectors=True)

New: torch.linalg.eigh(a)

Since: 1.9

Today: raises RuntimeError "deprecated since version 1.9 and is now removed"

Why: symeig, qr, solve, lstsq, eig, cholesky and matrix_rank are removed.
Beware: symeig read the upper triangle, eigh reads the lower, and
linalg.solve takes (A, B) where solve took (B, A).

Read: torch.linalg.eigh, torch.linalg.solve, torch.linalg.lstsq

Gone: symeig
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor]:
    torch.manual_seed(seed)
    a = torch.randn(4, 4, dtype=torch.float64)
    return (a + a.T,)


def old(a: Tensor) -> Tensor:
    values, _ = torch.symeig(a, eigenvectors=True)
    return values[-1]


def new(a: Tensor) -> Tensor:
    values, _ = torch.linalg.eigh(a)
    return values[-1]


def wanted(a: Tensor) -> Tensor:
    """The largest eigenvalue: in a high power of a it outgrows the rest"""
    power = a + a.abs().sum() * torch.eye(len(a), dtype=a.dtype)
    for _ in range(16):
        power = power @ power
        power = power / power.norm()
    v = power[0] / power[0].norm()
    return v @ a @ v
