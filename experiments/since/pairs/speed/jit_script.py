"""Python is compiled as it runs, no longer as a language of its own

Old: torch.jit.script(f)

New: torch.compile(f)

Since: 2.0

Today: warns "Please switch to `torch.compile` or `torch.export`"

Why: TorchScript is a subset of Python that code had to be rewritten into.
torch.compile watches the bytecode, compiles what it can and leaves
the rest to Python; fullgraph=True makes such a break an error.
To ship a model, torch.export. Here backend="eager" only captures
the graph, which saves the compiler's seconds.

Read: torch.compile, torch.export.export

Gone: torch.jit
"""

import torch
from torch import Tensor


def smooth(x: Tensor) -> Tensor:
    if x.shape[0] > 2:
        return torch.tanh(x) + x
    return x


def given(seed: int) -> tuple[Tensor]:
    torch.manual_seed(seed)
    return (torch.randn(4),)


def old(x: Tensor) -> Tensor:
    return torch.jit.script(smooth)(x)


def new(x: Tensor) -> Tensor:
    return torch.compile(smooth, backend="eager", fullgraph=True)(x)


def wanted(x: Tensor) -> Tensor:
    e = (2 * x).exp()
    return (e - 1) / (e + 1) + x
