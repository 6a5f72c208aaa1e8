"""Strategies and laws of the parity tests: random configurations in every memory layout, and two laws.

`agree` says that two functions are one, in values and gradients; `lifts` that a function is pure and survives
torch.func. Values come from a torch.Generator that Hypothesis seeds; the profile is derandomized, so CI repeats itself.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

# The same values, laid out another way; "expanded" repeats the first row with stride 0.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda x: x[:1].expand_as(x),
    "every other": lambda x: x.repeat_interleave(2, dim=-1)[..., 1::2],
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x,
}


@st.composite
def tensor(draw: st.DrawFn, *shape: int, below: int | None = None, ties: bool = False, varied: bool = False) -> Tensor:
    """float64 N(0, 1) of any layout, `varied`: any but the expanded; `ties`: whole, -2 to 2; int64 `below` a bound."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    if below is not None:
        return torch.randint(below, shape, generator=rng)
    layout = draw(st.sampled_from([name for name in LAYOUTS if not (varied and name == "expanded")]))
    values = torch.randn(shape, generator=rng, dtype=torch.float64)
    return LAYOUTS[layout]((1.5 * values).round().clamp(-2, 2) if ties else values)


@st.composite
def made_by(draw: st.DrawFn, maker: Callable[..., tuple[Any, ...]], largest: int = 6) -> tuple[Any, ...]:
    """maker(t, a, b, c): three sizes, and a `t` that draws a tensor of a shape."""
    sizes = draw(st.tuples(*[st.integers(1, largest)] * 3))
    return maker(lambda *shape, **kind: draw(tensor(*shape, **kind)), *sizes)


class Case(NamedTuple):
    """op(*tensors, **options)"""

    tensors: tuple[Tensor | None, ...]
    options: dict[str, Any]


def sizes(low: int, high: int) -> st.SearchStrategy[int | tuple[int, int]]:
    """Return one int for both axes, or (vertical, horizontal)."""
    return st.integers(low, high) | st.tuples(st.integers(low, high), st.integers(low, high))


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """Return (x, weight, bias or None) and options; from 1 × 1 images up, grouped as far as depthwise."""
    groups, depth, kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), sizes(1, 4).map(pair)))
    dilation, padding = draw(sizes(1, 3)), draw(sizes(0, 3) | st.sampled_from(["same", "valid"]))
    stride = draw(st.sampled_from([1, (1, 1)]) if padding == "same" else sizes(1, 3))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, pair(dilation), strict=True)]
    pads = {"same": spans, "valid": (0, 0)}.get(padding) if isinstance(padding, str) else pair(padding)
    image = [max(1, s - 2 * p) + draw(st.integers(0, 4)) for s, p in zip(spans, pads or (), strict=True)]
    out_channels = groups * draw(st.integers(1, 2))
    x = draw(tensor(draw(st.integers(1, 3)), groups * depth, *image))
    weight = draw(tensor(out_channels, depth, *kernel))
    bias = draw(st.none() | tensor(out_channels))
    return Case((x, weight, bias), {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups})


@st.composite
def poolings(draw: st.DrawFn, dilated: bool = False, ties: bool = False) -> Case:
    """Return (x,) and options.

    Every window holds a real entry: torch reads out of bounds for one that is all padding.
    """
    kernel_size, stride, ceil_mode = draw(st.tuples(sizes(1, 4), st.none() | sizes(1, 4), st.booleans()))
    kernel, dilation = pair(kernel_size), draw(sizes(1, 3)) if dilated else 1
    half = [k // 2 for k in kernel]
    padding = draw(st.integers(0, min(half)) | st.tuples(*[st.integers(0, h) for h in half]))
    image = []
    for k, s, p, d in zip(kernel, pair(stride or kernel), pair(padding), pair(dilation), strict=True):
        smallest = d * (k - 1) + 1 - 2 * p - (s - 1 if ceil_mode else 0)
        image.append(max(d, smallest) + draw(st.integers(0, 5)))
    x = draw(tensor(*draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), *image, ties=ties))
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    return Case((x,), options | ({"dilation": dilation} if dilated else {"count_include_pad": draw(st.booleans())}))


Function = Callable[..., Any]


def torchs_conv2d(x: Tensor, weight: Tensor, *args: Any, **options: Any) -> Tensor:
    """F.conv2d, but never in channels last: there a strided 1×1 kernel writes past its memory (oneDNN's issue 6035)."""
    return F.conv2d(x.contiguous(), weight.contiguous(), *args, **options)


def recast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the same values and strides in another float type; integers and None pass."""
    if x is None or not x.is_floating_point():
        return x
    storage = x.as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
    return storage.to(dtype).as_strided(x.size(), x.stride(), x.storage_offset())


def outputs(f: Function, tensors: Iterable[Tensor | None]) -> tuple[Tensor, ...]:
    y = f(*tensors)
    return y if isinstance(y, tuple) else (y,)


def cotangent(y: Tensor) -> Tensor:
    """From a seed that no drawn tensor has: a cotangent equal to x would hide much."""
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(2**31), dtype=torch.float64).to(y.dtype)


def vjp(f: Function, tensors: Iterable[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs, and the gradient of Σ ⟨random cotangent, output⟩ with respect to every float tensor."""
    leaves = [t if t is None else t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    ys = outputs(f, leaves)
    live = [y for y in ys if y.requires_grad]
    floats = [t for t in leaves if t is not None and t.requires_grad]
    grads = torch.autograd.grad(live, floats, [cotangent(y) for y in live], materialize_grads=True)
    return list(ys), list(grads)


def close(ours: Tensor, reference: Tensor, tol: float, what: str) -> None:
    """‖a - b‖ ≤ tol · max(1, ‖b‖): less is cancellation, data being of order 1. NaN and ±∞ must coincide."""
    assert (ours.shape, ours.dtype) == (reference.shape, reference.dtype), f"{what}: {ours} is not {reference}"
    same = (ours == reference) | (ours.isnan() & reference.isnan())
    error = torch.where(same, 0, ours - reference).double().norm()
    scale = torch.where(reference.isfinite(), reference, 0).double().norm().clamp(min=1)
    assert error <= tol * scale, f"{what}: error {error / scale:.1e} > {tol}\n{ours}\nis not\n{reference}"


def agree(
    ours: Function, reference: Function, *tensors: Tensor | None, tol: Mapping[torch.dtype, float] = TOLERANCE
) -> None:
    """Both give the same values, gradients for every float tensor, and detached outputs; in each dtype of `tol`."""
    for dtype, bound in tol.items():
        inputs = [recast(t, dtype) for t in tensors]
        (values, grads), (values_, grads_) = vjp(ours, inputs), vjp(reference, inputs)
        assert [y.requires_grad for y in values] == [y.requires_grad for y in values_], "one is detached"
        for what, actual, expected in (("value", values, values_), ("gradient", grads, grads_)):
            for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
                close(a.detach(), b.detach(), bound, f"{what} {i}, {dtype}")


def lifts(f: Function, *tensors: Tensor) -> None:
    """f leaves its inputs alone; vmap over one input, or all, is a loop; torch.func.grad, also in vmap, is autograd."""
    before = [(t.clone(), t._version) for t in tensors]
    outputs(f, tensors)
    assert all(torch.equal(t, was) and t._version == version for t, (was, version) in zip(tensors, before, strict=True))

    floats = tuple(i for i, t in enumerate(tensors) if t.is_floating_point())
    loss = lambda *ts: sum((y * cotangent(y)).sum() for y in outputs(f, ts) if y.is_floating_point())  # noqa: E731
    for g, w in zip(grad(loss, argnums=floats)(*tensors), vjp(f, tensors)[1], strict=True):
        close(g, w, 1e-10, "torch.func.grad")

    rows = [torch.stack([t, t.flip(0), t.roll(1, dims=-1)]) for t in tensors]
    for which in [*([i] for i in range(len(tensors))), range(len(tensors))]:
        in_dims = tuple(0 if i in which else None for i in range(len(tensors)))
        given = [r if i in which else t for i, (r, t) in enumerate(zip(rows, tensors, strict=True))]
        single = [[r[n] if i in which else r for i, r in enumerate(given)] for n in range(3)]
        for lifted in (lambda *ts: outputs(f, ts), grad(loss, argnums=floats)):
            together = vmap(lifted, in_dims=in_dims, randomness="same")(*given)  # the cotangent is drawn
            for one, *each in zip(together, *[lifted(*ts) for ts in single], strict=True):
                close(one, torch.stack(each), 1e-10, f"vmap over {which}")
