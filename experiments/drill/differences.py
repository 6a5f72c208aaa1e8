"""The first place where an answer differs, as wanted, yours and difference: numbers, or of an image blocks."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.drill.values import TOLERANCE, leaves, same

SHADES = " ░▒▓█"
ENTRIES, SIDE = 6, 18
"""entries that are listed; rows and columns of an image that are drawn, so that three stand within 60 columns"""


def first_differences(wanted: Any, yours: Any) -> list[str]:
    """Show the first tensor of a result that differs from the wanted one of its shape; no lines if there is none."""
    own = dict(leaves(yours))
    for where, a in leaves(wanted):
        b = own.get(where)
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or a.shape != b.shape or a.device != b.device:
            continue
        if a.is_meta or not a.numel() or torch._C._functorch.is_batchedtensor(b) or same(b, a):  # pyright: ignore
            continue
        tolerance = max(TOLERANCE.get(x.dtype, 1e-4) for x in (a, b))
        picture = a.ndim > 1 and min(a.shape[-2:]) > 2 and (a.ndim > 2 or a.dtype == torch.bool)
        a, b = (x.detach().cpu().double() for x in (a, b))
        wrong = (~torch.isclose(b, a, rtol=tolerance, atol=tolerance, equal_nan=True)).nonzero().tolist()
        if wrong:
            return ["", *(_picture(a, b, wrong[0][:-2], where) if picture else _entries(a, b, wrong, where))]
    return []


def _entries(wanted: Tensor, yours: Tensor, wrong: Sequence[Sequence[int]], where: str) -> list[str]:
    """Return a line for each of the first wrong entries."""
    title = "first differences" if where == "result" else f"first differences in {where}"
    rows: list[tuple[str, ...]] = [("at", "wanted", "yours", "difference")]
    for index in wrong[:ENTRIES]:
        a, b = (x[tuple(index)].item() for x in (wanted, yours))
        rows.append((str(list(index)), *(f"{number + 0:.5g}" for number in (a, b, b - a))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  " + "  ".join(text.ljust(n) for text, n in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = len(wrong) - ENTRIES
    return [title, *lines, *([f"  and {more} more entries"] if more > 0 else [])]


def _picture(wanted: Tensor, yours: Tensor, index: Sequence[int], where: str) -> list[str]:
    """Return the first image that differs, drawn three times side by side; × is not finite."""
    a, b = (x[tuple(index)][:SIDE, :SIDE] for x in (wanted, yours))
    both = torch.cat([a, b])
    finite = both[both.isfinite()]
    low, high = (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 0.0)
    off = (b - a).abs()
    least = off[off.isfinite()]
    most = least.max().item() if len(least) else 0.0
    panels = [_blocks(a, low, high), _blocks(b, low, high), _blocks(torch.where(a == b, 0.0, off), 0.0, most)]
    titles = ("wanted", "yours", "difference")
    width = max(a.shape[1], len(titles[-1])) + 1
    at = f"{where}{list(index)}" if index else where
    lines = [" ".join(text.ljust(width) for text in row).rstrip() for row in zip(*panels, strict=True)]
    title = f"first difference: {at}, from {low:.3g} (blank) to {high:.3g} (full); the difference up to {most:.3g}"
    return [title, " ".join(text.ljust(width) for text in titles).rstrip(), *lines]


def _blocks(x: Tensor, low: float, high: float) -> list[str]:
    """Return a line per row, darker for larger values; only `low` itself is blank, × is not finite."""
    top = len(SHADES) - 1
    scale = top / (high - low) if high > low else 0.0
    shade = lambda value: SHADES[min(top, math.ceil((value - low) * scale))] if math.isfinite(value) else "×"  # noqa: E731
    return ["".join(map(shade, row)) for row in x.tolist()]
