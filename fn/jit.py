"""Trace once with every check on, then run compiled with none.

A step is a pure function of trees of tensors, so one run of it on shapes alone, with all shape checks on, says what it
does for every input of those shapes. That run is recorded whole (forward, gradient, optimizer) by
torch.fx.experimental.proxy_tensor.make_fx and compiled by TorchInductor; afterwards no line of the step's Python runs.
"""

import logging
import math
import warnings
from collections.abc import Callable
from functools import cache, wraps
from itertools import repeat
from typing import Any, NamedTuple, no_type_check

import torch
from torch import Tensor

MANY = 8
HOLE = object()


class Program(NamedTuple):
    run: Callable[..., tuple[Tensor, ...]] | None
    """None where there is nothing to compile with"""
    strides: list[tuple[int, ...]]
    """the layout that each tensor is to have"""
    output: Any
    """the tree that the step returned, a `HOLE` for each tensor"""


class JitError(TypeError):
    """A step that cannot be traced, and what to change in it."""


def jit(step: Callable) -> Callable:
    """`step`, compiled once for each signature: tree, shapes, dtypes, devices, and the values that are no tensors.

    Whatever a new signature violates surfaces as it would without `jit`, as the same TypeCheckError. Where there is a
    convolution on a CPU, images and kernels are laid out channels last. Inputs are never written to. Under `grad`,
    `vmap` or another `jit` it is the step itself.

    JitError for a step that needs the value of a tensor while being traced (`.item()`, `if tensor:`), or that uses a
    tensor which is not among its arguments, as that would be frozen at what it holds now. Without a C++ compiler: one
    warning, and the step runs as it is.
    """
    programs: dict[tuple, Program] = {}

    @wraps(step)
    @no_type_check
    def jitted(*args, **kwargs):
        if torch._C._functorch.peek_interpreter_stack() or torch._C._len_torch_dispatch_stack():
            return step(*args, **kwargs)
        leaves, signature = [], []
        _flatten((args, kwargs), leaves, signature)
        try:
            program = programs.get(key := tuple(signature))
        except TypeError:
            raise JitError("an argument that is no tensor must be hashable, as it tells signatures apart") from None
        if program is None:
            program = programs[key] = _compile(step, args, kwargs, leaves)
            if len(programs) == MANY:
                warnings.warn(
                    f"jit: {MANY} signatures of {getattr(step, '__name__', step)}; a number that changes from call to "
                    "call should be a tensor, and batches should have one size",
                    stacklevel=1,
                )
        if program.run is None:
            return step(*args, **kwargs)
        laid = [t if t.stride() == s else _lay(t, s) for t, s in zip(leaves, program.strides, strict=True)]
        return _rebuild(program.output, iter(program.run(*laid)))

    return jitted


# These three run at every call: a check of theirs would cost more than they do.
@no_type_check
def _flatten(tree, leaves, signature):
    """Append the tensors of a tree to `leaves`, and all that makes it what it is to `signature`."""
    kind = type(tree)
    if isinstance(tree, Tensor):
        leaves.append(tree)
        signature += (tree.shape, tree.dtype, tree.device)
    elif kind is dict:
        signature += (kind, len(tree))
        for name, value in tree.items():
            signature.append(name)
            _flatten(value, leaves, signature)
    elif isinstance(tree, tuple | list):
        signature += (kind, len(tree))
        for value in tree:
            _flatten(value, leaves, signature)
    else:
        signature += (kind, tree)


@no_type_check
def _rebuild(tree, leaves):
    """The tree with the next of `leaves` in place of each tensor or hole."""
    kind = type(tree)
    if tree is HOLE or isinstance(tree, Tensor):
        return next(leaves)
    if kind is dict:
        return {name: _rebuild(value, leaves) for name, value in tree.items()}
    if isinstance(tree, tuple | list):
        values = [_rebuild(value, leaves) for value in tree]
        return kind(*values) if hasattr(kind, "_fields") else kind(values)
    return tree


@no_type_check
def _lay(x, strides):
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def _compile(step: Callable, args: tuple, kwargs: dict[str, Any], leaves: list[Tensor]) -> Program:
    # here, not above: they take seconds, which a run without jit need not wait for
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses a CUDA that no one asked for
    import torch._inductor
    from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    try:
        laid: list[Any] = [_lay(x, _contiguous(x.shape)) for x in leaves]
        graph, output = _trace(step, args, kwargs, laid)
        if any(node.target is torch.ops.aten.convolution.default for node in graph.graph.nodes):
            laid = [_lay(x, _channels_last(x.shape)) if _is_images(x) else x for x in laid]
            graph, output = _trace(step, args, kwargs, laid)
        run: Any = torch._inductor.compile(graph, laid)
        return Program(run, [x.stride() for x in laid], output)
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


@cache
def _warn_of_no_compiler(said: str) -> None:
    """Once, however many steps there are."""
    warnings.warn(f"jit: no C++ compiler that works ({said}), so steps run as they are", stacklevel=1)


def _trace(
    step: Callable, args: tuple, kwargs: dict[str, Any], leaves: list[Tensor]
) -> tuple[torch.fx.GraphModule, Any]:
    """(the graph of the step on shapes alone, the tree that it returns)"""
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs, trees = (args, kwargs), []

    def flat_step(*leaves: Tensor) -> list[Tensor]:
        args, kwargs = _rebuild(inputs, iter(leaves))
        result = step(*args, **kwargs)
        outputs: list[Tensor] = []
        _flatten(result, outputs, [])
        trees.append(_rebuild(result, repeat(HOLE)))
        return outputs

    try:
        graph = make_fx(flat_step, tracing_mode="fake")(*leaves)
    except AssertionError as error:
        if "allow_non_fake_inputs" not in str(error):
            raise
        raise JitError(
            "the step uses a tensor that is not among its arguments; it would be frozen at what it holds now"
        ) from error
    return graph, trees[-1]


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _channels_last(shape: torch.Size) -> tuple[int, ...]:
    """Of one channel, `.contiguous(memory_format=channels_last)` would keep strides that read as channels first."""
    _, channels, height, width = shape
    return (height * width * channels, 1, width * channels, channels)


def _is_images(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_floating_point() and x.device.type == "cpu"
