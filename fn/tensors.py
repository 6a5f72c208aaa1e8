"""Tensors in a line for people: dtype, shape, range, a small histogram, and what is not finite."""

import re

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch._subclasses import FakeTensor

from fn.domains import Count

BARS = "▁▂▃▄▅▆▇█"


def summarize(x: Shaped[Tensor, "*shape"], bars: Count = 7) -> str:
    """Describe a tensor in a line: its kind, the range and a histogram of its finite values, how many are not finite.

    A tensor without numbers, such as one on the device meta, is its kind alone. Under `vmap` the numbers are those of
    the whole batch. Of complex numbers, they are the absolute values.

    >>> summarize(torch.tensor([[0.0, 1.0, 1.0], [2.0, torch.nan, torch.inf]]))
    'f32[2,3] in [0, 2] ▅▁▁█▁▁▅ 1 NaN 1 inf'
    >>> summarize(torch.tensor([True, False, True])), summarize(torch.tensor(3))
    ('bool[3] 2 of 3 True', 'i64[] = 3')
    """
    try:
        return " ".join([kind(x), *_values(plain(x), bars)])
    except Exception:  # a quantized one, say, or one that is being traced: the line is about an error, and adds none
        return kind(x)


def kind(x: Shaped[Tensor, "*shape"]) -> str:
    """Return dtype and shape as jaxtyping writes them.

    >>> kind(torch.zeros(64, 10)), kind(torch.tensor(1))
    ('f32[64,10]', 'i64[]')
    """
    name = str(x.dtype).removeprefix("torch.")
    short = re.sub("^(b?)float", r"\1f", re.sub("^(u?)int", r"\1i", name)).replace("complex", "c").replace("ui", "u")
    return f"{short}[{','.join(map(str, x.shape))}]"


def plain(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*whole"]:
    """Return the tensor inside those of `grad` and `vmap`, with the axes that are mapped over.

    >>> torch.vmap(lambda x: x * len(plain(x)))(torch.ones(3, 2))
    tensor([[3., 3.],
            [3., 3.],
            [3., 3.]])
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(x):  # pyright: ignore[reportAttributeAccessIssue]
        x = torch._C._functorch.get_unwrapped(x)  # pyright: ignore[reportAttributeAccessIssue]
    return x.detach()


def _values(x: Shaped[Tensor, "*shape"], bars: int) -> list[str]:
    if x.is_meta or isinstance(x, FakeTensor):
        return []
    if not x.numel():
        return ["empty"]
    if x.dtype == torch.bool:
        return [f"{int(x.sum())} of {x.numel()} True"]
    x = (x.abs() if x.is_complex() else x).flatten().cpu()
    number = "{:.3g}".format if x.is_floating_point() else str
    x = x.double() if x.is_floating_point() else x.long()
    finite = x[x.isfinite()]
    counts = {"NaN": x.isnan().sum(), "inf": x.isposinf().sum(), "-inf": x.isneginf().sum()}
    odd = [f"{int(n)} {name}" for name, n in counts.items() if n]
    if not len(finite):
        return odd
    low, high = finite.min().item(), finite.max().item()
    if low == high and not odd:
        return [f"{'=' if len(x) == 1 else 'all'} {number(low + 0)}"]
    return [f"in [{number(low + 0)}, {number(high + 0)}]", _histogram(finite.double(), bars), *odd]


def _histogram(x: Shaped[Tensor, " values"], bars: int) -> str:
    """Draw a bar for each part of the range; a part with one value in it is higher than an empty one."""
    half = x / 2  # the width of the range may be beyond the greatest number
    width = half.max() - half.min()
    place = torch.where(width > 0, (half - half.min()) / width, 0.5) * bars
    counts = torch.bincount(place.long().clamp(max=bars - 1), minlength=bars)
    top = len(BARS) - 1
    return "".join(BARS[-(-top * n // int(counts.max()))] for n in counts.tolist())
