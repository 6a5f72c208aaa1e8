"""Convolution in three ways, max pooling in two, and averages, in the names and order of torch.nn.functional.

All of them slide a window: with size k, stride s, dilation d and padding p on both sides, an axis of n gives

    out = ⌊(n + 2p - d(k - 1) - 1) / s⌋ + 1

A size is an int or (vertical, horizontal). An image may come alone, as (channels, height, width). Padding "same" keeps
the size of a stride-1 output; an odd row or column goes below and right. "valid" is 0. ValueError for a window larger
than the padded input, or groups that do not divide both kinds of channels.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from fn.domains import Border, Count, Grid, ImageSize, Integer, Natural, NonZero, Window
from fn.initializers import kaiming_normal
from fn.precision import half_in_float32
from fn.tree import Params
from fn.workarounds import torch_conv2d

Padding = Border | Literal["same", "valid"]


def pair(size: Border) -> tuple[int, int]:
    """Return (vertical, horizontal); an int, or one in a sequence, counts for both.

    >>> pair(3), pair((1, 2))
    ((3, 3), (1, 2))
    """
    sizes = (size,) if isinstance(size, int) else tuple(size)
    vertical, horizontal = 2 * sizes if len(sizes) == 1 else sizes
    return vertical, horizontal


def output_size(n: Natural, kernel: Count, stride: Count = 1, padding: Natural = 0, dilation: Count = 1) -> int:
    """Return the number of windows along an axis: ⌊(n + 2·padding - dilation·(kernel - 1) - 1) / stride⌋ + 1.

    It is 0 or less where no window fits.

    >>> output_size(32, kernel=3, padding=1), output_size(32, kernel=3, stride=2, padding=1)
    (32, 16)
    """
    return (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def resolve_padding(
    padding: Padding, kernel: tuple[Count, Count], stride: Window, dilation: Window
) -> list[tuple[int, int]]:
    """Return the padding (before, after) of the vertical and of the horizontal axis.

    ValueError for "same" with a stride.

    >>> resolve_padding("same", (3, 4), stride=1, dilation=1)
    [(1, 1), (1, 2)]
    """
    if padding == "same":
        if pair(stride) != (1, 1):
            raise ValueError(f'padding "same" is for stride 1, not {stride}')
        totals = [d * (k - 1) for k, d in zip(kernel, pair(dilation), strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in pair(0 if padding == "valid" else padding)]  # pyright: ignore[reportArgumentType]


def _pad(
    x: Float[Tensor, "*batch channels height width"], pads: list[tuple[int, int]], value: float = 0.0
) -> Float[Tensor, "*batch channels padded_height padded_width"]:
    (top, bottom), (left, right) = pads
    return F.pad(x, (left, right, top, bottom), value=value) if any([top, bottom, left, right]) else x


def _starts(n: int, kernel: Count, stride: Count, dilation: Count) -> range:
    """Return where the windows begin on an axis of n, padding included; ValueError if none fits."""
    if output_size(n, kernel, stride, dilation=dilation) < 1:
        span = f"the window spans {dilation * (kernel - 1) + 1}, the padded input only {n}"
        raise ValueError(f"kernel_size {kernel}, dilation {dilation}: {span}")
    return range(0, n - dilation * (kernel - 1), stride)


def _require_windows(
    shape: Sequence[int], kernel_size: Window, stride: Window, pads: Sequence[tuple[int, int]], dilation: Window
) -> None:
    for n, around, *window in zip(shape, pads, *map(pair, (kernel_size, stride, dilation)), strict=True):
        _starts(n + sum(around), *window)


def _require_groups(channels: Natural, out_channels: Natural, groups: Count) -> None:
    if channels % groups or out_channels % groups:
        raise ValueError(f"conv2d: groups {groups} do not divide {channels} channels and {out_channels} out_channels")


@half_in_float32("x")
def conv2d_naive(
    x: Float[Tensor, "*batch channels height width"],
    weight: Float[Tensor, "out_channels channels//{groups} kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: Window = 1,
    padding: Padding = 0,
    dilation: Window = 1,
    groups: Count = 1,
) -> Float[Tensor, "*batch out_channels out_height out_width"]:
    """Convolve, one output position at a time.

    y[o, i, j] = b[o] + Σ_{c,u,v} w[o, c, u, v] · x[c, s·i + d·u, s·j + d·v]

    With `groups`, channels and kernels are split into that many convolutions.

    >>> conv2d_naive(torch.arange(9.0).reshape(1, 1, 3, 3), torch.ones(1, 1, 2, 2))
    tensor([[[[ 8., 12.],
              [20., 24.]]]])
    """
    _require_groups(x.shape[-3], len(weight), groups)
    (kernel_h, kernel_w), (stride_h, stride_w), (dil_h, dil_w) = weight.shape[2:], pair(stride), pair(dilation)
    x = _pad(x, resolve_padding(padding, (kernel_h, kernel_w), stride, dilation))
    x = rearrange(x, "... (groups channels) h w -> ... groups channels h w", groups=groups)
    kernels = rearrange(weight, "(groups out) channels kh kw -> groups out channels kh kw", groups=groups)
    rows = []
    for i in _starts(x.shape[-2], kernel_h, stride_h, dil_h):
        row = []
        for j in _starts(x.shape[-1], kernel_w, stride_w, dil_w):
            window = x[..., i : i + dil_h * kernel_h : dil_h, j : j + dil_w * kernel_w : dil_w]
            row.append(
                einsum(window, kernels, "... groups channels kh kw, groups out channels kh kw -> ... groups out")
            )
        rows.append(torch.stack(row, dim=-1))
    y = rearrange(torch.stack(rows, dim=-2), "... groups out oh ow -> ... (groups out) oh ow")
    return y if bias is None else y + rearrange(bias, "out -> out 1 1")


def axis_entries(
    x: Float[Tensor, "*shape"], dim: Integer, kernel_size: Count, stride: Count = 1, dilation: Count = 1
) -> list[Float[Tensor, "*entries"]]:
    """Return entry 0 of every window along `dim`, entry 1 of every window, …: each is one strided slice of `x`.

    ValueError for a `dim` that `x` has not.

    >>> axis_entries(torch.arange(5.0), dim=0, kernel_size=3)
    [tensor([0., 1., 2.]), tensor([1., 2., 3.]), tensor([2., 3., 4.])]
    >>> axis_entries(torch.arange(7.0), dim=0, kernel_size=3, stride=3)
    [tensor([0., 3.]), tensor([1., 4.]), tensor([2., 5.])]
    """
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"axis_entries: dim {dim} is none of {x.ndim} axes")
    starts = _starts(x.shape[dim], kernel_size, stride, dilation)
    if stride == kernel_size and dilation == 1:  # no overlap: cut, and the gradient is one stack, not a sum of slices
        cut = x.narrow(dim, 0, len(starts) * kernel_size) if x.shape[dim] % kernel_size else x
        return list(cut.unflatten(dim, (-1, kernel_size)).unbind(dim % x.ndim + 1))
    before = [slice(None)] * (dim % x.ndim)
    return [x[(*before, slice(dilation * i, dilation * i + starts.stop, stride))] for i in range(kernel_size)]


@half_in_float32("x")
def windows(
    x: Float[Tensor, "*batch channels height width"], kernel_size: Window, stride: Window = 1, dilation: Window = 1
) -> Float[Tensor, "*batch channels kernel out_height out_width"]:
    """Return all windows at once; the axis `kernel` runs over the entries of a window.

    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> windows(x, kernel_size=2).shape, windows(x, kernel_size=2)[0, 0, :, 0, 0]
    (torch.Size([1, 1, 4, 2, 2]), tensor([0., 1., 3., 4.]))
    """
    (kernel_h, kernel_w), (stride_h, stride_w), (dil_h, dil_w) = pair(kernel_size), pair(stride), pair(dilation)
    rows = axis_entries(x, -2, kernel_h, stride_h, dil_h)
    return torch.stack([entry for row in rows for entry in axis_entries(row, -1, kernel_w, stride_w, dil_w)], dim=-3)


def patches(
    x: Float[Tensor, "batch channels height width"], patch_size: Count
) -> Float[Tensor, "batch patches d_patch"]:
    """Cut each image into squares of `patch_size`, row by row, and flatten each to one row.

    A matrix product with these rows is a convolution of stride `patch_size`. ValueError unless it divides
    both sides of the image.

    >>> patches(torch.zeros(8, 3, 32, 32), patch_size=4).shape
    torch.Size([8, 64, 48])
    """
    if x.shape[-2] % patch_size or x.shape[-1] % patch_size:
        raise ValueError(
            f"patches: of patch_size {patch_size}, "
            f"squares of {patch_size}×{patch_size} do not divide {x.shape[-2]}×{x.shape[-1]}"
        )
    return rearrange(x, "b channels (h ph) (w pw) -> b (h w) (channels ph pw)", ph=patch_size, pw=patch_size)


@half_in_float32("x")
def conv2d_unfold(
    x: Float[Tensor, "*batch channels height width"],
    weight: Float[Tensor, "out_channels channels//{groups} kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: Window = 1,
    padding: Padding = 0,
    dilation: Window = 1,
    groups: Count = 1,
) -> Float[Tensor, "*batch out_channels out_height out_width"]:
    """Convolve as one matrix product: a row per kernel, a column per window (im2col).

    >>> x, weight = torch.arange(9.0).reshape(1, 1, 3, 3), torch.ones(1, 1, 2, 2)
    >>> torch.equal(conv2d_unfold(x, weight), conv2d_naive(x, weight))
    True
    """
    _require_groups(x.shape[-3], len(weight), groups)
    kernel_size = (weight.shape[2], weight.shape[3])
    patches = windows(_pad(x, resolve_padding(padding, kernel_size, stride, dilation)), kernel_size, stride, dilation)
    columns = rearrange(patches, "... (g channels) kernel oh ow -> ... g (channels kernel) (oh ow)", g=groups)
    kernels = rearrange(weight, "(g out) channels kh kw -> g out (channels kh kw)", g=groups)
    y = rearrange(kernels @ columns, "... g out (oh ow) -> ... (g out) oh ow", oh=patches.shape[-2])
    return y if bias is None else y + rearrange(bias, "out -> out 1 1")


def conv2d(
    x: Float[Tensor, "*batch channels height width"],
    weight: Float[Tensor, "out_channels channels//{groups} kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None = None,
    stride: Window = 1,
    padding: Padding = 0,
    dilation: Window = 1,
    groups: Count = 1,
) -> Float[Tensor, "*batch out_channels out_height out_width"]:
    """Convolve by torch's compiled kernel; the models call this one.

    >>> x, weight = torch.zeros(8, 3, 32, 32), torch.zeros(16, 3, 5, 5)
    >>> conv2d(x, weight, padding=2).shape
    torch.Size([8, 16, 32, 32])
    >>> conv2d(x, weight, stride=2, padding=2).shape
    torch.Size([8, 16, 16, 16])
    """
    _require_groups(x.shape[-3], len(weight), groups)
    kernel_size = (weight.shape[2], weight.shape[3])
    pads = resolve_padding(padding, kernel_size, stride, dilation)
    _require_windows(x.shape[-2:], kernel_size, stride, pads, dilation)
    return torch_conv2d(x, weight, bias, pair(stride), pads, pair(dilation), groups)


def conv2d_init(
    rng: torch.Generator,
    channels: Count,
    out_channels: Count,
    kernel_size: Window,
    *,
    groups: Count = 1,
    bias: bool = True,
) -> Params:
    """Draw a Kaiming-normal weight for a ReLU; the bias is zero, or left out (a batch norm would subtract it).

    ValueError unless the groups divide both kinds of channels.

    >>> params = conv2d_init(torch.Generator().manual_seed(0), channels=3, out_channels=16, kernel_size=5)
    >>> params["weight"].shape, params["bias"].shape
    (torch.Size([16, 3, 5, 5]), torch.Size([16]))
    """
    _require_groups(channels, out_channels, groups)
    weight = kaiming_normal(rng, (out_channels, channels // groups, *pair(kernel_size)))
    return {"weight": weight} | ({"bias": torch.zeros(out_channels)} if bias else {})


def pool_padding(
    shape: ImageSize, kernel_size: Window, stride: Window, padding: Border, dilation: Window, ceil_mode: bool
) -> list[tuple[int, int]]:
    """Return the padding (before, after) of each axis.

    In `ceil_mode` a last window that starts inside may reach past the end. ValueError for a padding that is not between
    0 and half of the window.

    >>> pool_padding((6, 6), kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=True)
    [(0, 1), (0, 1)]
    """
    pads = []
    for n, k, s, p, d in zip(shape, *map(pair, (kernel_size, stride, padding, dilation)), strict=True):
        if not 0 <= p <= k // 2:
            raise ValueError(f"pooling: padding {p} is not between 0 and half of kernel_size {k}")
        hang, span = 0, d * (k - 1) + 1
        if ceil_mode:
            last = math.ceil((n + 2 * p - span) / s)
            last -= last * s >= n + p
            hang = last * s + span - n - 2 * p
        pads.append((p, p + hang))
    return pads


@half_in_float32("x")
def max_pool2d_naive(
    x: Float[Tensor, "*batch channels height width"],
    kernel_size: Window,
    stride: Window | None = None,
    padding: Border = 0,
    dilation: Window = 1,
    ceil_mode: bool = False,
) -> Float[Tensor, "*batch channels out_height out_width"]:
    """Return the largest value of each window, from a copy of all windows; padding counts as -∞.

    >>> max_pool2d_naive(torch.arange(16.0).reshape(1, 1, 4, 4), kernel_size=2)
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """
    stride = kernel_size if stride is None else stride
    pads = pool_padding(x.shape[-2:], kernel_size, stride, padding, dilation, ceil_mode)
    return windows(_pad(x, pads, -math.inf), kernel_size, stride, dilation).max(dim=-3).values


@half_in_float32("x")
def max_pool2d(
    x: Float[Tensor, "*batch channels height width"],
    kernel_size: Window,
    stride: Window | None = None,
    padding: Border = 0,
    dilation: Window = 1,
    ceil_mode: bool = False,
) -> Float[Tensor, "*batch channels out_height out_width"]:
    """Return `max_pool2d_naive` without a copy of the windows: the largest entry of each row, then of those.

    Padding counts as -∞. The stride is the kernel size unless given. Of equal values the first, in reading order,
    receives the gradient; of several NaNs the last.

    >>> max_pool2d(torch.arange(16.0).reshape(1, 1, 4, 4), kernel_size=2)
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """
    stride = kernel_size if stride is None else stride
    pads = pool_padding(x.shape[-2:], kernel_size, stride, padding, dilation, ceil_mode)
    (kernel_h, kernel_w), (stride_h, stride_w), (dil_h, dil_w) = pair(kernel_size), pair(stride), pair(dilation)
    # entry by entry: a gradient through `max` would be scattered, this one is selected, which compiles to vector code
    x = reduce(_later_if_larger, axis_entries(_pad(x, pads, -math.inf), -1, kernel_w, stride_w, dil_w))
    return reduce(_later_if_larger, axis_entries(x, -2, kernel_h, stride_h, dil_h))


def _later_if_larger(
    x: Float[Tensor, "*batch channels height width"], later: Float[Tensor, "*batch channels height width"]
) -> Float[Tensor, "*batch channels height width"]:
    return torch.where((later > x) | (later != later), later, x)


@half_in_float32("x")
def avg_pool2d(
    x: Float[Tensor, "*batch channels height width"],
    kernel_size: Window,
    stride: Window | None = None,
    padding: Border = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: NonZero | None = None,
) -> Float[Tensor, "*batch channels out_height out_width"]:
    """Return the mean of each window. The stride is the kernel size unless given.

    Padding counts as zeros, or not at all (`count_include_pad`); what reaches past the end in `ceil_mode` never counts.
    The sums are divided by `divisor_override` if given.

    >>> avg_pool2d(torch.arange(16.0).reshape(1, 1, 4, 4), kernel_size=2)
    tensor([[[[ 2.5000,  4.5000],
              [10.5000, 12.5000]]]])
    """
    stride = kernel_size if stride is None else stride
    pads = pool_padding(x.shape[-2:], kernel_size, stride, padding, 1, ceil_mode)
    total = windows(_pad(x, pads), kernel_size, stride).sum(dim=-3)
    if divisor_override is not None:
        return total / divisor_override
    counted = torch.ones(1, *x.shape[-2:], dtype=x.dtype, device=x.device)
    counted = _pad(counted, [(p, p) for p in pair(padding)], float(count_include_pad))
    counted = _pad(counted, [(0, after - before) for before, after in pads])
    return total / windows(counted, kernel_size, stride).sum(dim=-3)


@half_in_float32("x")
def adaptive_avg_pool2d(
    x: Float[Tensor, "*batch channels height width"], output_size: Grid
) -> Float[Tensor, "*batch channels out_height out_width"]:
    """Return the means over a grid of `output_size` cells.

    Cell i of m covers ⌊i·n/m⌋ up to ⌈(i + 1)·n/m⌉, so neighbours may overlap. None keeps an axis as it is.

    >>> adaptive_avg_pool2d(torch.ones(8, 512, 7, 7), output_size=1).shape
    torch.Size([8, 512, 1, 1])
    """
    grid = pair(output_size) if isinstance(output_size, int) else output_size
    height, width = (n if m is None else m for n, m in zip(x.shape[-2:], grid, strict=True))
    if min(height, width) < 1:
        return x.new_zeros((*x.shape[:-2], height, width))
    rows, columns = _cells(x.shape[-2], height), _cells(x.shape[-1], width)
    return torch.stack(
        [torch.stack([x[..., row, column].mean(dim=(-2, -1)) for column in columns], dim=-1) for row in rows], dim=-2
    )


def _cells(n: int, cells: int) -> list[slice]:
    return [slice(i * n // cells, math.ceil((i + 1) * n / cells)) for i in range(cells)]
