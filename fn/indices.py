"""Indices: one that is no row is a ValueError, in a step that `fn.jit` has compiled too.

While a step is traced there are no numbers to look at, and compiled code must not raise: in several threads that ends
the process. So a traced step takes indices that are kept inside, and says with its results whether one was outside.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch._subclasses import FakeTensor

from fn.domains import Integer, Natural
from fn.workarounds import unwrap

_outside: ContextVar[list[Bool[Tensor, "..."]] | None] = ContextVar("_outside", default=None)


@contextmanager
def collect_outside() -> Iterator[list[Bool[Tensor, "..."]]]:
    """Collect, of the step that is traced in this context, which of its indices are no rows."""
    outside: list[Bool[Tensor, "..."]] = []
    token = _outside.set(outside)
    try:
        yield outside
    finally:
        _outside.reset(token)


def is_counted(target: Int[Tensor, "*batch"], ignore_index: Integer) -> Bool[Tensor, "*batch"]:
    """Return where a target is not `ignore_index`, compared in int64: in int8, -1 would equal 255.

    >>> is_counted(torch.tensor([-1, 3], dtype=torch.int8), 255)
    tensor([True, True])
    """
    return target.long() != ignore_index


def require_indices(x: Int[Tensor, "*batch"], rows: Natural, name: str = "x") -> Int64[Tensor, "*batch"]:
    """Return `x` in int64, by which torch indexes; ValueError for an index outside 0 to rows - 1.

    >>> require_indices(torch.tensor([0, 2], dtype=torch.int8), 3)
    tensor([0, 2])
    """
    x = x.long()
    numbers = unwrap(x)
    if isinstance(numbers, FakeTensor):
        return _keep_inside(x, rows)
    if numbers.numel():
        least, largest = int(numbers.min()), int(numbers.max())
        if least < 0 or largest >= rows:
            raise ValueError(f"{name}: index {least if least < 0 else largest} is none of {rows} rows")
    return x


def _keep_inside(x: Int[Tensor, "*batch"], rows: Natural) -> Int[Tensor, "*batch"]:
    """Return the indices of a traced step, kept inside where `jit` looks at them; else a negative one is no row."""
    outside = _outside.get()
    if outside is None or x.device.type != "cpu" or not rows or not unwrap(x).numel():
        return torch.where(x < 0, rows, x)  # on an accelerator a look would wait for the step to end
    inside = x.clamp(0, rows - 1)
    outside.append(unwrap(inside != x))
    return inside


def gather_classes(
    input: Float[Tensor, "batch classes *positions"],
    target: Int[Tensor, " batch *positions"],
    name: str = "target",
) -> Float[Tensor, " batch *positions"]:
    """Return the entry of `input` at each target; ValueError for a target that is no class.

    >>> gather_classes(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
    tensor([2., 3.])
    """
    target = target.long()
    if isinstance(unwrap(target), FakeTensor):
        target = _keep_inside(target, input.shape[1])
    try:
        return input.gather(1, target.unsqueeze(1)).squeeze(1)
    except RuntimeError:
        require_indices(target, input.shape[1], name)
        raise
