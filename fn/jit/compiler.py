"""Trace a step on shapes alone, and compile the graph with TorchInductor.

Three things decide the speed on a CPU: the whole step is one graph, images are stored channels last, and the memory
that a step frees is kept for the next step.
"""

import contextlib
import ctypes
import logging
import math
import sys
import warnings
from collections.abc import Callable
from functools import cache
from threading import Thread
from types import NoneType
from typing import Any, NamedTuple, no_type_check

import torch
from torch import Tensor

from fn.indices import collect_outside
from fn.jit import disk
from fn.jit.contents import JitError, append_contents
from fn.jit.fingerprint import digest, environment, fingerprint
from fn.jit.pooling import is_relu, move_relus_behind_pools
from fn.jit.scalars import compute_numbers_once


class Hole:
    """Stands for a tensor; the same one in every process."""

    def __reduce__(self) -> str:
        return "HOLE"


HOLE = Hole()
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
OPTIONS = {"cpp.fallback_scatter_reduce_sum": False}
"""fuses the gradient of `gather` with the loop that computes its input"""
FIRST_KERNEL = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C" void kernel(float* x) { at::vec::Vectorized<float>(0.0f).store(x); }
"""
NEEDS_VALUES = (
    "the step needs the values of a tensor, as .item(), `if`, or x[mask] do; while it is traced there are shapes only "
    "(torch.where chooses without `if`)"
)


class Program(NamedTuple):
    run: Callable[..., tuple[Tensor, ...]] | None
    """None without a C++ compiler"""
    strides: list[tuple[int, ...]]
    """the memory layout of each input"""
    output: Any
    """the tree that the step returned, with a `HOLE` in place of each tensor"""
    donated: int = 0
    """the number of inputs, from the first on, whose memory holds the first result afterwards"""
    has_indices: bool = False
    """whether the last result says that an index is no row, see fn.indices"""


# These three run at every call, and a shape check would cost more than their work.
@no_type_check
def flatten_call(tree, leaves, signature):
    """Append the tensors of a tree to `leaves`, and its structure, shapes and other values to `signature`."""
    kind = type(tree)
    if kind is dict:
        signature += (kind, len(tree))
        for name, value in tree.items():
            if type(name) is str:
                signature.append(name)
            else:
                append_contents(name, signature)
            flatten_call(value, leaves, signature)
    elif isinstance(tree, Tensor):
        leaves.append(tree.resolve_conj().resolve_neg() if tree.is_neg() or tree.is_conj() else tree)
        signature += (tree.shape, tree.dtype, tree.device)
    elif isinstance(tree, tuple | list):
        signature += (kind, len(tree))
        for value in tree:
            flatten_call(value, leaves, signature)
    elif kind in (int, bool, str, NoneType):
        signature += (kind, tree)
    else:
        append_contents(tree, signature)


@no_type_check
def rebuild(tree, leaves):
    """Return the tree with the next of `leaves` in place of each tensor or hole."""
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
    """Return a copy of x with those strides."""
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


@no_type_check
def hollow(tree):
    """Return the tree with a `HOLE` in place of each tensor."""
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
    """Trace the step on its arguments and compile the graph; without a C++ compiler the program runs nothing."""
    leaves: list[Tensor] = []
    signature: list[Any] = []
    flatten_call((args, kwargs), leaves, signature)
    on_cpu = all(x.device.type == "cpu" for x in leaves)
    key = fingerprint((step, donate, signature)) if on_cpu else None
    if key and (kept := disk.load(key)):
        _keep_freed_memory()
        return Program(kept.run, *kept.beside)
    # here, not above: they take seconds, which neither a run without jit nor a program from the disk waits for
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses a CUDA that no one asked for
    preparation = _prepare_compiler() if disk.is_empty() else None
    try:
        rows: list[Any] = [lay(x.detach(), _contiguous(x.shape)) for x in leaves]
        laid = [lay(x, _channels_last(x.shape)) if _is_images(x) else x for x in rows]
        graph, output, donated, has_indices = _trace(step, args, kwargs, laid, donate)
        if any(map(_is_images, leaves)) and not _convolves(graph):  # then they are no images: as torch lays them
            laid = rows
            graph, output, donated, has_indices = _trace(step, args, kwargs, laid, donate)
    except (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode) as error:
        raise JitError(NEEDS_VALUES) from error
    constants = _take_constants(graph)
    run, parts = _compile_once(graph, laid, constants) if on_cpu else _compile(graph, laid, constants)
    if run is None:
        return Program(None, [], None)
    if preparation:
        preparation.join()
    _keep_freed_memory()
    program = Program(run, [x.stride() for x in laid], output, donated, has_indices)
    if key and parts and key == fingerprint((step, donate, signature)):  # its Python left no trace elsewhere
        disk.keep(key, parts, program[1:])
    return program


def _compile_once(
    graph: torch.fx.GraphModule, laid: list[Tensor], constants: list[Tensor]
) -> tuple[Any, disk.Parts | None]:
    """Return the graph compiled and its parts, from the disk if any process ever compiled the same graph.

    No parts where a result shares memory with an argument or another result: then the kept function would not do.
    """
    if _shares_memory(graph):
        return _compile(graph, laid, constants)[0], None
    layouts = [f"{x.dtype} {tuple(x.shape)} {x.stride()}" for x in (*laid, *constants)]
    key = digest([*environment(), graph.code, *layouts])
    if kept := disk.load(key, constants):
        return kept.run, kept.parts
    run, parts = _compile(graph, laid, constants)
    if not parts:
        return run, None
    disk.keep(key, parts, ())
    return disk.link(parts), parts


def _compile(graph: torch.fx.GraphModule, laid: list[Tensor], constants: list[Tensor]) -> tuple[Any, disk.Parts | None]:
    """Return the graph compiled and its parts; nothing without a C++ compiler.

    Unfused where TorchInductor fails to fuse loops around a write in place, github.com/pytorch/pytorch/issues/196570.
    """
    from torch._inductor import compile
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv())  # without a ShapeEnv torch keeps no program on the disk
    shapes: list[Any] = [mode.from_tensor(x, static_shapes=True) for x in (*laid, *constants)]
    before = len(PyCodeCache.modules)
    try:
        try:
            run: Any = compile(graph, shapes, options=OPTIONS)
        except InductorError as error:
            if not isinstance(error.inner_exception, KeyError):
                raise
            run = compile(graph, shapes, options=OPTIONS | {"max_fusion_size": 1})
    except InductorError as error:
        reason = error.inner_exception
        if not isinstance(reason, InvalidCxxCompiler | CppCompileError | OSError):  # the last: a disk without a place
            raise
        _warn_of_no_compiler(str(reason).splitlines()[0])
        return None, None
    written = PyCodeCache.modules[before:]
    parts = disk.find_parts(written[0], constants) if len(written) == 1 else None
    return (lambda *leaves: run(*leaves, *constants)) if constants else run, parts


def _take_constants(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Return the tensors that the step holds, such as anchors, and have the graph take them as its last arguments."""
    held = graph.graph.find_nodes(op="get_attr")
    first = next(node for node in graph.graph.nodes if node.op != "placeholder")
    inputs: dict[str, torch.fx.Node] = {}
    for node in held:
        if node.target not in inputs:
            with graph.graph.inserting_before(first):
                inputs[node.target] = graph.graph.placeholder(node.target)
            inputs[node.target].meta |= node.meta
        node.replace_all_uses_with(inputs[node.target])
    for node in held:
        graph.graph.erase_node(node)
    constants = [getattr(graph, name) for name in inputs]
    graph.recompile()
    for name in inputs:
        delattr(graph, name)
    return constants


@cache
def _prepare_compiler() -> Thread:
    """Return the thread that compiles a first kernel, for which the compiler is tried out and all headers are compiled.

    On a machine that never did it this takes longer than to trace a step, and the trace needs one core only.
    """
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    def compile_first() -> None:
        with contextlib.suppress(Exception):  # the step's own kernels will say what is wrong
            CppPythonBindingsCodeCache.load_pybinding(["float*"], FIRST_KERNEL)

    thread = Thread(target=compile_first, daemon=True)
    thread.start()
    return thread


@cache
def _warn_of_no_compiler(said: str) -> None:
    """Warn, once per process, that there is no compiler."""
    warnings.warn(f"jit: no C++ compiler that works ({said}), so steps run as they are", stacklevel=1)


@cache
def _keep_freed_memory() -> None:
    """Have glibc keep the memory that a step frees.

    By default it returns large blocks to the system, and every page faults when it is used again: a quarter of the time
    of a small CNN's step. Other C libraries have no such setting.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)


def _trace(
    step: Callable, args: tuple, kwargs: dict[str, Any], leaves: list[Tensor], donate: bool
) -> tuple[torch.fx.GraphModule, Any, int, bool]:
    """Return the graph of the step on shapes alone, and the last three fields of its Program."""
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs, traced = (args, kwargs), []

    def flat_step(*leaves: Tensor) -> list[Tensor]:
        args, kwargs = rebuild(inputs, iter(leaves))
        with collect_outside() as outside:
            result = step(*args, **kwargs)
        outputs: list[Tensor] = []
        structure = hollow(result)
        flatten_call(result, outputs, [])
        traced.append((structure, _count_donated(args, result) if donate else 0, bool(outside)))
        return [*outputs, torch.stack([x.any() for x in outside]).any()] if outside else outputs

    try:
        graph = make_fx(flat_step, tracing_mode="fake")(*leaves)
    except AssertionError as error:
        if "allow_non_fake_inputs" not in str(error):
            raise
        raise JitError(
            "the step uses a tensor that is not among its arguments; it would be frozen at what it holds now"
        ) from error
    output, donated, has_indices = traced[-1]
    try:
        _require_pure(graph)
        _require_known(graph)
    except JitError as error:  # the graph has no lines of Python: once more, to stop at the one
        _stop_at_fault(flat_step, leaves, str(error))
        raise
    _mask_gradient_by_result(graph)
    move_relus_behind_pools(graph)
    compute_numbers_once(graph)
    if donated:
        _write_back(graph, donated)
    return graph, output, donated, has_indices


@no_type_check
def _count_donated(args, result):
    """Count the tensors of the first argument; JitError unless the first result can take their memory."""
    old, before, new, after = [], [], [], []
    flatten_call(args[:1], old, before)
    flatten_call(result[:1] if isinstance(result, tuple) else (result,), new, after)
    if not args or before != after:
        raise JitError(
            "donate: the first result must have the tree, shapes and dtypes of the first argument, given by position"
        )
    return len(old)


def _source(node: torch.fx.Node) -> torch.fx.Node:
    """Return the node that a node is a view or a copy of."""
    clone = torch.ops.aten.clone.default
    while node.op == "call_function" and (node.target is clone or getattr(node.target, "is_view", False)):
        node = node.all_input_nodes[0]
    return node


def _require_pure(graph: torch.fx.GraphModule) -> None:
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema and schema.is_mutable and _source(node.args[0]).op == "placeholder":
            raise JitError(f"the step writes to an argument ({node.target}); it must return something new")


def _require_known(graph: torch.fx.GraphModule) -> None:
    """Raise JitError if a number or a size in the graph depends on the values of a tensor."""
    for node in graph.graph.nodes:
        found = node.meta.get("val")
        for size in found.shape if isinstance(found, Tensor) else (found,):
            if isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
                raise JitError(NEEDS_VALUES)


def _stop_at_fault(flat_step: Callable, leaves: list[Tensor], said: str) -> None:
    """Raise JitError at the operation that writes to an argument or has a size that depends on values."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.utils._python_dispatch import TorchDispatchMode

    mode = FakeTensorMode(shape_env=ShapeEnv())
    fakes = [mode.from_tensor(x, static_shapes=True) for x in leaves]
    memory = {x.untyped_storage()._cdata for x in fakes}

    class Stop(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._schema.is_mutable and args[0].untyped_storage()._cdata in memory:
                raise RuntimeError(said)  # of a TypeError in `x -= 1` Python tries `x = x - 1` next
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and any(isinstance(size, torch.SymInt) for size in result.shape):
                raise RuntimeError(said)
            return result

    try:
        with mode, Stop():
            flat_step(*fakes)
    except RuntimeError as error:
        raise JitError(said) from error


def _mask_gradient_by_result(graph: torch.fx.GraphModule) -> None:
    """Have the gradient of y = where(x <= 0, 0, x) test y <= 0 instead of x <= 0: equal for all numbers and for NaN.

    Then only y is kept for the gradient. The next layer's gradient needs y as well, but not x.
    """
    where, at_most = torch.ops.aten.where.self, torch.ops.aten.le.Scalar
    for y in graph.graph.find_nodes(op="call_function", target=where):
        if is_relu(y):
            closed = y.args[0]
            with graph.graph.inserting_after(y):
                also_closed = graph.graph.call_function(at_most, (y, 0))
                also_closed.meta |= closed.meta
            closed.replace_all_uses_with(
                also_closed, delete_user_cb=lambda user, y=y, new=also_closed: user not in (y, new)
            )
    graph.recompile()


def _write_back(graph: torch.fx.GraphModule, donated: int) -> None:
    """Copy the first outputs into the first inputs, and output the rest.

    JitError if an input is among the results, moved or viewed: it would be read after it was overwritten.
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


def _shares_memory(graph: torch.fx.GraphModule) -> bool:
    """Return whether a result shares memory with an argument or another result, as a view does."""
    *nodes, last = graph.graph.nodes
    ends = [*last.args[0], *(node for node in nodes if node.op == "placeholder")]
    return len({node.meta["val"].untyped_storage()._cdata for node in ends}) < len(ends)


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _channels_last(shape: torch.Size) -> tuple[int, ...]:
    """Return channels-last strides; for one channel, `.contiguous` with that format keeps channels first."""
    _, channels, height, width = shape
    return (height * width * channels, 1, width * channels, channels)


def _convolves(graph: torch.fx.GraphModule) -> bool:
    return any(node.target is torch.ops.aten.convolution.default for node in graph.graph.nodes)


def _is_images(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_floating_point() and x.device.type == "cpu"
