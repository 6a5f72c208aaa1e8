"""What `jit` makes of a step: a graph traced on shapes alone, compiled by TorchInductor.

Three things decide the speed on a CPU: the whole step is one graph, images lie channels last, and the memory that a
step frees is there for the next.
"""

import ctypes
import logging
import math
import sys
import warnings
from collections.abc import Callable
from functools import cache
from itertools import repeat
from typing import Any, NamedTuple, no_type_check

import torch
from torch import Tensor

HOLE = object()
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
OPTIONS = {"cpp.fallback_scatter_reduce_sum": False}
"""the gradient of `gather` in the loop that makes its input, not in a call of its own"""


class Program(NamedTuple):
    run: Callable[..., tuple[Tensor, ...]] | None
    """None where there is nothing to compile with"""
    strides: list[tuple[int, ...]]
    """the layout that each tensor is to have"""
    output: Any
    """the tree that the step returned, a `HOLE` for each tensor"""
    donated: int = 0
    """how many of the tensors, the first ones, hold the first result afterwards"""


class JitError(TypeError):
    """A step that cannot be traced, and what to change in it."""


# These three run at every call: a check of theirs would cost more than they do.
@no_type_check
def flatten_call(tree, leaves, signature):
    """Append the tensors of a tree to `leaves`, and all that makes it what it is to `signature`."""
    kind = type(tree)
    if kind is dict:
        signature += (kind, len(tree))
        for name, value in tree.items():
            signature.append(name)
            flatten_call(value, leaves, signature)
    elif isinstance(tree, Tensor):
        leaves.append(tree)
        signature += (tree.shape, tree.dtype, tree.device)
    elif isinstance(tree, tuple | list):
        signature += (kind, len(tree))
        for value in tree:
            flatten_call(value, leaves, signature)
    else:
        signature += (kind, tree)


@no_type_check
def rebuild(tree, leaves):
    """The tree with the next of `leaves` in place of each tensor or hole."""
    kind = type(tree)
    if kind is dict:
        return {name: rebuild(value, leaves) for name, value in tree.items()}
    if tree is HOLE or isinstance(tree, Tensor):
        return next(leaves)
    if isinstance(tree, tuple | list):
        values = [rebuild(value, leaves) for value in tree]
        return kind(*values) if hasattr(kind, "_fields") else kind(values)
    return tree


@no_type_check
def lay(x, strides):
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def compile_step(step: Callable, args: tuple, kwargs: dict[str, Any], *, donate: bool = False) -> Program:
    # here, not above: they take seconds, which a run without jit need not wait for
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses a CUDA that no one asked for
    import torch._inductor
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    leaves: list[Tensor] = []
    flatten_call((args, kwargs), leaves, [])
    try:
        laid: list[Any] = [lay(x, _contiguous(x.shape)) for x in leaves]
        graph, output, donated = _trace(step, args, kwargs, laid, donate)
        if any(node.target is torch.ops.aten.convolution.default for node in graph.graph.nodes):
            laid = [lay(x, _channels_last(x.shape)) if _is_images(x) else x for x in laid]
            graph, output, donated = _trace(step, args, kwargs, laid, donate)
        run: Any = torch._inductor.compile(graph, laid, options=OPTIONS)
    except (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode) as error:
        raise JitError(
            "the step needs the values of a tensor, as .item(), `if`, or x[mask] do; while it is traced there are "
            "shapes only (torch.where chooses without `if`)"
        ) from error
    except InductorError as error:
        reason = error.inner_exception
        if not isinstance(reason, InvalidCxxCompiler | CppCompileError):
            raise
        _warn_of_no_compiler(str(reason).splitlines()[0])
        return Program(None, [], None)
    _keep_freed_memory()
    return Program(run, [x.stride() for x in laid], output, donated)


@cache
def _warn_of_no_compiler(said: str) -> None:
    """Once, however many steps there are."""
    warnings.warn(f"jit: no C++ compiler that works ({said}), so steps run as they are", stacklevel=1)


@cache
def _keep_freed_memory() -> None:
    """glibc hands large blocks back to the system when they are freed, and each page of them faults when met again.

    In the step of a small CNN that was a quarter of the time. Other C libraries have no such setting.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)


def _trace(
    step: Callable, args: tuple, kwargs: dict[str, Any], leaves: list[Tensor], donate: bool
) -> tuple[torch.fx.GraphModule, Any, int]:
    """(the graph of the step on shapes alone, the tree that it returns, how many inputs it writes to)"""
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs, made = (args, kwargs), []

    def flat_step(*leaves: Tensor) -> list[Tensor]:
        args, kwargs = rebuild(inputs, iter(leaves))
        result = step(*args, **kwargs)
        outputs: list[Tensor] = []
        flatten_call(result, outputs, [])
        donated = _write_back(args[:1], result) if donate else 0
        made.append((rebuild(result, repeat(HOLE)), donated))
        return outputs[donated:]

    try:
        graph = make_fx(flat_step, tracing_mode="fake")(*leaves)
    except AssertionError as error:
        if "allow_non_fake_inputs" not in str(error):
            raise
        raise JitError(
            "the step uses a tensor that is not among its arguments; it would be frozen at what it holds now"
        ) from error
    return graph, *made[-1]


@no_type_check
def _write_back(given, result):
    """Write the first of the results into the tensors given, and say how many they are."""
    old, before, new, after = [], [], [], []
    flatten_call(given, old, before)
    flatten_call(result[:1] if isinstance(result, tuple) else (result,), new, after)
    if before != after:
        raise JitError("donate: the first result must have the tree, shapes and dtypes of the first argument")
    for x, y in zip(old, new, strict=True):
        x.copy_(y)
    return len(old)


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _channels_last(shape: torch.Size) -> tuple[int, ...]:
    """Of one channel, `.contiguous(memory_format=channels_last)` would keep strides that read as channels first."""
    _, channels, height, width = shape
    return (height * width * channels, 1, width * channels, channels)


def _is_images(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_floating_point() and x.device.type == "cpu"
