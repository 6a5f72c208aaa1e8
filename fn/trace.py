"""Trace a network: every layer that runs in a call, with its named axes, shapes and parameters.

Python's profiling hook shows each op of MODULES enter with its arguments and leave with its result; the names of the
axes are those of the op's signature. The model needs no change to be traced.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from math import prod
from types import FrameType
from typing import Any, NamedTuple, get_args

from torch import Tensor

from fn import attention, attention_tiled, conv, layers, positions, tree
from fn.conv import pair, pool_padding, resolve_padding
from fn.domains import Window
from fn.tree import Params

MODULES = (layers, conv, positions, attention, attention_tiled)
COMPOSED = {"multi_head_attention", "scaled_dot_product_attention"}
"""ops that consist of other ops, which are shown instead"""
KEEPS_SHAPE = {"relu", "gelu", "softmax", "log_softmax", "dropout", "layer_norm", "batch_norm"}
KEEPS_SHAPE |= {"add_positions", "rotary_encoding"}

Axes = tuple[tuple[str, int], ...]


class Call(NamedTuple):
    layer: str
    """the dotted name of its parameters in the tree, or the op's own name"""
    op: str
    arguments: dict[str, Any]
    input: Axes
    output: Axes
    by_hand: str
    """the arithmetic that gives the new sizes"""
    expected: tuple[int, ...] | None
    """the output's shape by that arithmetic; None for an op that has no rule here"""
    parameters: int
    multiply_adds: int
    """of the convolutions and matrix products; the rest counts as free"""
    result: Tensor


def _ops() -> dict[Any, Callable]:
    functions = [f for module in MODULES for _, f in inspect.getmembers(module, inspect.isfunction)]
    ops = [f for f in functions if _tensor_annotation(f, _first(f)) and f.__name__ not in COMPOSED]
    return {inspect.unwrap(f).__code__: f for f in ops}


def _first(op: Callable) -> str:
    """Return the name of the argument that is followed through the network."""
    return next(iter(inspect.signature(op).parameters), "")


def trace(params: Params, f: Callable, *args: Any, **kwargs: Any) -> tuple[Any, list[Call]]:
    """Return (f(*args, **kwargs), the outermost layers that it ran, in order); `params` gives the layers their names.

    >>> import torch
    >>> params = {"fc": {"weight": torch.zeros(2, 3)}}
    >>> y, [call] = trace(params, lambda x: layers.linear(x, **params["fc"]), torch.ones(4, 3))
    >>> call.layer, call.output, call.multiply_adds
    ('fc', (('batch', 4), ('d_out', 2)), 24)
    """
    ops, names = _ops(), {id(leaf): name.rpartition(".")[0] for name, leaf in tree.flatten(params).items()}
    calls: list[Call] = []
    axes = _name_arguments(f, args, kwargs)
    running: list[tuple[FrameType, dict[str, Any]]] = []

    def watch(frame: FrameType, event: str, result: Any) -> None:
        if event == "call" and not running and frame.f_code in ops:
            running.append((frame, dict(frame.f_locals)))
        elif event == "return" and running and running[-1][0] is frame:
            _, arguments = running.pop()
            if result is None or any(result is x for x in arguments.values()):  # it raised, or had nothing to do
                return
            calls.append(_call(ops[frame.f_code], arguments, result, names, axes))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        result = f(*args, **kwargs)
    finally:
        sys.setprofile(before)
    return result, calls


def _name_arguments(f: Callable, args: Any, kwargs: Any) -> dict[int, tuple[Tensor, Axes]]:
    """Return the axes of each tensor by its id, with the tensor, so that its id is not used again."""
    given = inspect.signature(f).bind(*args, **kwargs).arguments
    named = {name: x for name, x in given.items() if isinstance(x, Tensor) and _tensor_annotation(f, name)}
    return {id(x): (x, _name_axes(_tensor_annotation(f, name), x, ())) for name, x in named.items()}


def _call(op: Callable, arguments: dict[str, Any], result: Any, names: dict[int, str], axes: dict) -> Call:
    x, y = arguments[_first(op)], result[0] if isinstance(result, tuple) else result
    before = _name_axes(_tensor_annotation(op, _first(op)), x, _known(x, axes))
    after = _name_axes(_tensor_annotation(op, "return"), y, before)
    axes[id(y)] = (y, after)
    tensors = {name: t for name, t in arguments.items() if isinstance(t, Tensor) and id(t) in names}
    layer = next((names[id(t)] for t in tensors.values()), op.__name__)
    by_hand, expected, multiply_adds = _arithmetic(op.__name__, arguments)
    parameters = sum(t.numel() for t in tensors.values())
    return Call(layer, op.__name__, arguments, before, after, by_hand, expected, parameters, multiply_adds, y)


def _known(x: Tensor, axes: dict[int, tuple[Tensor, Axes]]) -> Axes:
    """Return the names of a tensor's axes; for a sum, as of a residual, those of the first result of its shape."""
    if id(x) in axes:
        return axes[id(x)][1]
    return next((names for y, names in axes.values() if y.shape == x.shape), ())


def _tensor_annotation(op: Callable, name: str) -> Any:
    """Return the jaxtyping annotation of an argument or of the (first) result, or None."""
    signature = inspect.signature(op)
    annotation = (
        signature.return_annotation if name == "return" else getattr(signature.parameters.get(name), "annotation", None)
    )
    return next((a for a in (annotation, *get_args(annotation)) if hasattr(a, "dim_str")), None)


def _name_axes(annotation: Any, tensor: Tensor, known: Axes) -> Axes:
    """Pair the names in an annotation with sizes; the axes of a starred name keep the names that they have."""
    words = annotation.dim_str.split()
    starred = next((i for i, word in enumerate(words) if word.startswith("*")), None)
    if starred is not None:
        place = range(starred, starred + tensor.ndim - len(words) + 1)
        same = [i < len(known) and known[i][1] == tensor.shape[i] for i in place]
        words[starred : starred + 1] = [
            known[i][0] if s else words[starred][1:] for i, s in zip(place, same, strict=True)
        ]
    return tuple((word.removeprefix("out_").strip("{}"), size) for word, size in zip(words, tensor.shape, strict=True))


def _arithmetic(op: str, arguments: dict[str, Any]) -> tuple[str, tuple[int, ...] | None, int]:
    """Return (the formula with its numbers, the shape that it gives, multiply-adds)."""
    x, weight = next(iter(arguments.values())), arguments.get("weight")
    if op.startswith("conv2d") and weight is not None:
        pads = resolve_padding(arguments["padding"], weight.shape[2:], arguments["stride"], arguments["dilation"])
        text, sizes = _slide(x, weight.shape[2:], arguments["stride"], pads, arguments["dilation"])
        shape = (*x.shape[:-3], weight.shape[0], *sizes)
        return text, shape, prod(shape) * prod(weight.shape[1:])
    if op in ("max_pool2d", "avg_pool2d"):
        kernel, stride = pair(arguments["kernel_size"]), arguments["stride"] or arguments["kernel_size"]
        options = (stride, arguments["padding"], arguments.get("dilation", 1), arguments["ceil_mode"])
        pads = pool_padding(x.shape[-2:], kernel, *options)
        text, sizes = _slide(x, kernel, stride, pads, arguments.get("dilation", 1))
        return text, (*x.shape[:-2], *sizes), 0
    if op == "linear" and weight is not None:
        shape = (*x.shape[:-1], *weight.shape[:-1])
        return f"{prod(weight.shape[:-1])} rows of weight", shape, prod(shape) * weight.shape[-1]
    if op == "flatten":
        return f"{' · '.join(map(str, x.shape[1:]))} = {prod(x.shape[1:])}", (x.shape[0], prod(x.shape[1:])), 0
    if op == "adaptive_avg_pool2d":
        asked = arguments["output_size"]
        grid = zip(x.shape[-2:], pair(asked) if isinstance(asked, int) else asked, strict=True)
        return "as asked", (*x.shape[:-2], *(n if m is None else m for n, m in grid)), 0
    if op in KEEPS_SHAPE:
        return "unchanged", tuple(x.shape), 0
    return _arithmetic_of_attention(op, x, arguments)


def _arithmetic_of_attention(op: str, x: Tensor, arguments: dict[str, Any]) -> tuple[str, tuple[int, ...] | None, int]:
    *batch, rows, width = (1, *x.shape)
    if op == "embedding":
        return "a row of weight for each", (*x.shape, arguments["weight"].shape[1]), 0
    if op == "patches":
        side, (_, channels, height, width) = arguments["patch_size"], x.shape
        text = f"({height}/{side})·({width}/{side}) of {channels}·{side}·{side}"
        return text, (x.shape[0], height // side * (width // side), channels * side * side), 0
    if op == "split_heads":
        heads = arguments["heads"]
        return f"{width}/{heads} = {width // heads}", (*batch[1:], heads, rows, width // heads), 0
    if op == "merge_heads":
        return f"{batch[-1]} · {width} = {batch[-1] * width}", (*batch[1:-1], rows, batch[-1] * width), 0
    if op == "attention_weights":
        shape = (*batch[1:], rows, arguments["key"].shape[-2])
        return "each query with each key", shape, prod(shape) * width
    if op == "weighted_sum":
        shape = (*batch[1:], rows, arguments["value"].shape[-1])
        return "a mean of values a query", shape, prod(shape) * width
    if op in ("native_attention", "tiled_attention"):
        shape = (*batch[1:], rows, arguments["value"].shape[-1])
        products = prod(shape[:-1]) * arguments["key"].shape[-2] * (width + shape[-1])
        return "a mean of values a query", shape, products
    return "", None, 0


def _slide(
    x: Tensor, kernel: Sequence[int], stride: Window, pads: list[tuple[int, int]], dilation: Window
) -> tuple[str, list[int]]:
    """Return the window formula of fn.conv with its numbers, once if both axes have the same, and its sizes."""
    texts, sizes = [], []
    for n, k, s, (before, after), d in zip(x.shape[-2:], kernel, pair(stride), pads, pair(dilation), strict=True):
        padding = f"2·{before}" if before == after else f"({before} + {after})"
        span = f"{k}" if d == 1 else f"{d}·({k} − 1) − 1"
        sizes.append((n + before + after - d * (k - 1) - 1) // s + 1)
        texts.append(f"⌊({n} + {padding} − {span})/{s}⌋ + 1 = {sizes[-1]}")
    return "; ".join(dict.fromkeys(texts)), sizes
