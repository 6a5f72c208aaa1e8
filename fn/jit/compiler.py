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


@no_type_check
def hollow(tree):
    """The tree with a hole in place of each tensor."""
    kind = type(tree)
    if kind is dict:
        return {name: hollow(value) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [hollow(value) for value in tree]
        return kind(*values) if hasattr(kind, "_fields") else kind(values)
    if isinstance(tree, Tensor):
        return HOLE
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise JitError(f"the step returns a {kind.__name__}; jit knows dicts, tuples, lists, tensors and plain values")


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
        made.append((hollow(result), _count_donated(args, result) if donate else 0))
        return outputs

    try:
        graph = make_fx(flat_step, tracing_mode="fake")(*leaves)
    except AssertionError as error:
        if "allow_non_fake_inputs" not in str(error):
            raise
        raise JitError(
            "the step uses a tensor that is not among its arguments; it would be frozen at what it holds now"
        ) from error
    output, donated = made[-1]
    _require_pure(graph)
    _judge_by_result(graph)
    if donated:
        _write_back(graph, donated)
    return graph, output, donated


@no_type_check
def _count_donated(args, result):
    """How many tensors the first argument has; JitError unless the first result can take their place."""
    old, before, new, after = [], [], [], []
    flatten_call(args[:1], old, before)
    flatten_call(result[:1] if isinstance(result, tuple) else (result,), new, after)
    if not args or before != after:
        raise JitError(
            "donate: the first result must have the tree, shapes and dtypes of the first argument, given by position"
        )
    return len(old)


def _source(node: torch.fx.Node) -> torch.fx.Node:
    """What a node is a view or a copy of."""
    clone = torch.ops.aten.clone.default
    while node.op == "call_function" and (node.target is clone or getattr(node.target, "is_view", False)):
        node = node.all_input_nodes[0]
    return node


def _require_pure(graph: torch.fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema and schema.is_mutable and _source(node.args[0]).op == "placeholder":
            raise JitError(f"the step writes to an argument ({node.target}); it must return something new")


def _judge_by_result(graph: torch.fx.GraphModule) -> None:
    """The gradient of y = where(x <= 0, 0, x) asks for y <= 0 instead, which says the same of every number and of NaN.

    So y alone is kept until then, which the gradient of the next layer needs too, and not x beside it.
    """
    where, at_most = torch.ops.aten.where.self, torch.ops.aten.le.Scalar
    for y in graph.graph.find_nodes(op="call_function", target=where):
        closed, zero, x = y.args
        if closed.target is at_most and closed.args == (x, 0) and _is_zero(zero):
            with graph.graph.inserting_after(y):
                also_closed = graph.graph.call_function(at_most, (y, 0))
                also_closed.meta |= closed.meta
            closed.replace_all_uses_with(
                also_closed, delete_user_cb=lambda user, y=y, new=also_closed: user not in (y, new)
            )
    graph.recompile()


def _is_zero(node: torch.fx.Node) -> bool:
    made = (torch.ops.aten.scalar_tensor.default, torch.ops.aten.full.default)
    return node.target in made and bool(node.args[-1] == 0)


def _write_back(graph: torch.fx.GraphModule, donated: int) -> None:
    """Copy the first outputs into the first inputs, and output the rest.

    An input among the results, moved or viewed, would be read after it was written to, so that is refused.
    """
    nodes = list(graph.graph.nodes)
    inputs, last = [node for node in nodes if node.op == "placeholder"][:donated], nodes[-1]
    results = list(last.args[0])
    for i, result in enumerate(results):
        if _source(result) in inputs and not (i < donated and result is inputs[i]):
            raise JitError("donate: a result is a tensor of the first argument, in another place or as a view or copy")
    with graph.graph.inserting_before(last):
        for given, result in zip(inputs, results[:donated], strict=True):
            if result is not given:
                graph.graph.call_function(torch.ops.aten.copy_.default, (given, result))
    last.args = (results[donated:],)
    graph.recompile()


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _channels_last(shape: torch.Size) -> tuple[int, ...]:
    """Of one channel, `.contiguous(memory_format=channels_last)` would keep strides that read as channels first."""
    _, channels, height, width = shape
    return (height * width * channels, 1, width * channels, channels)


def _is_images(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_floating_point() and x.device.type == "cpu"
