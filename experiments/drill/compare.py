"""Name the difference between two tensors of one shape: a factor, a term, an axis, a mask, an end."""

import inspect
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from experiments.drill.values import is_close, leaves, name_of, names_of, same

Said = tuple[str, str]
Parts = list[tuple[str, Any]]
"""(path, leaf) of everything in the arguments"""
NEAR = 1e-3
"""of a factor: an ε beside it blurs it. A factor by chance does not explain every call, so none is named"""


def compare(
    yours: Tensor,
    ours: Tensor,
    where: str,
    given: dict[str, Any],
    names: list[str] | None,
    signature: inspect.Signature,
) -> Iterator[Said]:
    """Yield (kind, text) of each difference that explains all of it, then how far apart the values are."""
    parts = list(leaves(given, ""))
    names = names or [f"axis {i}" for i in range(ours.ndim)]
    if not ours.is_floating_point() or not yours.is_floating_point():
        yield from _kept(yours, where, parts)
        yield from whole_numbers(yours, ours, names)
        return
    kind = torch.float64 if ours.dtype == yours.dtype == torch.float64 else torch.float32  # which has its own tolerance
    a, b = yours.to(kind), ours.to(kind)
    if not b.numel():
        return
    yield from _not_finite(a, b)
    finite = a.isfinite() & b.isfinite()
    coarser = max(yours.dtype, ours.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    near = 8 * torch.finfo(coarser).eps
    if yours.dtype != ours.dtype and torch.allclose(a, b, rtol=near, atol=near, equal_nan=True):
        yield "rounding", f"the values are right, up to the rounding of {coarser}"
        return
    if finite.any() and not same(a[finite], b[finite]):
        yield from _arrangement(a, b, names)
        yield from _sums(a, b, names)
        yield from _factor(a, b, given, signature)
        yield from _term(a, b, parts)
        yield from _step(a, b, where, parts, given, signature)
        yield from _masked(a, b, parts)
        yield from _negative(a, b, parts)
        if ours.dtype == torch.float64 and torch.allclose(a[finite], b[finite], rtol=1e-5, atol=1e-6):
            integers = [path for path, x in parts if isinstance(x, Tensor) and not (x.is_floating_point() or x.ndim)]
            steps = f" 0.9 ** {integers[0]} is: a number and a tensor of integers make float32" if integers else ""
            said = "right to about seven digits, no more: was something on the way computed in float32?"
            yield "precision", f"{said}{steps}"
    yield from _places(a, b, names)
    if finite.any():
        apart = (a - b)[finite].abs().max()
        yield "values", f"the values differ by up to {float(apart):.3g}"


def whole_numbers(a: Tensor, b: Tensor, names: list[str]) -> Iterator[Said]:
    if a.dtype == torch.bool == b.dtype:
        if torch.equal(a, ~b):
            yield "inverted", "True and False are the wrong way round: the mask is inverted"
        yield from _arrangement(a.double(), b.double(), names)
    elif a.ndim == 1:
        extra, missing = sorted(set(a.tolist()) - set(b.tolist())), sorted(set(b.tolist()) - set(a.tolist()))
        count = f" ({len(a)} of them, expected {len(b)})" if len(a) != len(b) else ""
        if sorted(a.tolist()) == sorted(b.tolist()):
            yield "order", "the right indices in another order"
        elif missing and not extra:
            yield "missing", f"indices are missing: {missing[:8]}{count}"
        elif extra and not missing:
            yield "extra", f"indices too many: {extra[:8]}{count}"
        elif extra:
            yield "others", f"indices {extra[:8]} where {missing[:8]} are expected{count}"
        else:
            yield "repeated", f"the right indices, some of them more than once{count}"
    if a.shape == b.shape:
        yield from _places(a.double(), b.double(), names)
        wrong = f"{int((a != b).sum())} of {a.numel()} values are wrong"
        yield "values", wrong if a.numel() > 1 else f"{a.item()}, expected {b.item()}"


def _kept(yours: Tensor, where: str, parts: Parts) -> Iterator[Said]:
    """Yield a counter that stays as it was."""
    for name, x in parts:
        same_place = name.rpartition(".")[2] == where.rpartition(".")[2] and "." in name
        if same_place and isinstance(x, Tensor) and x.dtype == yours.dtype and torch.equal(x, yours):
            yield f"unchanged {name}", f"`{name}` comes back as it was"


def _not_finite(a: Tensor, b: Tensor) -> Iterator[Said]:
    for kind, test in (("NaN", torch.isnan), ("infinity", torch.isinf)):
        if (test(a) & ~test(b)).any():
            cause = "0 / 0, ∞ - ∞ or log of a negative" if kind == "NaN" else "an overflow, log 0 or a division by 0"
            yield kind, f"{kind} where a number is expected: {cause}?"
        elif (test(b) & ~test(a)).any():
            yield f"no {kind}", f"a number where {kind} is expected"


def _arrangement(a: Tensor, b: Tensor, names: list[str]) -> Iterator[Said]:
    """Yield the right numbers in the wrong places: transposed, flipped, shifted, rearranged."""
    for i, j in combinations(range(b.ndim), 2):
        if b.shape[i] == b.shape[j] > 1 and same(a, b.transpose(i, j)):
            yield "transposed", f"transposed: the axes {names[i]} and {names[j]} are swapped"
    for i in range(b.ndim):
        if b.shape[i] > 1:
            if same(a, b.flip(i)):
                yield "flipped", f"the order along {_axis(names[i])} is reversed"
            for by in (1, -1):
                if same(a, b.roll(by, i)) or same(a.narrow(i, 1, a.shape[i] - 1), b.narrow(i, 0, a.shape[i] - 1)):
                    yield "shifted", f"off by one along {_axis(names[i])}"
                    break
    if b.numel() > 2 and same(a.flatten().sort().values, b.flatten().sort().values):
        yield "arranged", "the right numbers in other places: an axis is split, merged or ordered another way"


def _axis(name: str) -> str:
    return name if name.startswith("axis ") else f"axis {name}"


def _sums(a: Tensor, b: Tensor, names: list[str]) -> Iterator[Said]:
    """Say that it sums to one along another axis than ours."""

    def unit(x: Tensor) -> list[int]:
        return [i for i in range(x.ndim) if x.shape[i] > 1 and float((x.sum(i) - 1).abs().max()) < 1e-5]

    if (b >= 0).all() and unit(b) and unit(a) != unit(b):
        over = ", ".join(names[i] for i in unit(a)) or "none"
        yield "sums", f"sums to one along {_axis(names[unit(b)[0]])} are expected; yours does along {over}"


def _factor(a: Tensor, b: Tensor, given: dict[str, Any], signature: inspect.Signature) -> Iterator[Said]:
    """Yield one factor for all entries, a sign, or a factor per index of one axis."""
    fine = a.isfinite() & b.isfinite() & (b.abs() > 1e-9)
    if not fine.any():
        return
    ratio = (a / b)[fine]
    if not a[fine].any() and a.any():
        yield "zeros", "zero just where it should not be, and the other way round"
    elif not a[fine].any():
        yield "zeros", "all zeros"
    elif float(ratio.max() - ratio.min()) <= NEAR * float(ratio.abs().max()) and same(a[~fine], b[~fine]):
        value = float(ratio[0])
        if abs(value - 1) < 1e-3:
            return
        if is_close(value, -1):
            yield "sign", "the sign is reversed: off by a factor of -1"
        else:
            names = names_of(value, given, signature, NEAR)
            for name in names:
                yield f"factor {name}", f"off by a constant factor of {value:.5g}, which is {name}"
            if names or ratio.numel() > 1:  # of one number to another there always is one
                yield "factor ", f"off by a constant factor of {value:.5g}"
    elif same(a.abs(), b.abs()):
        yield "signs", "right but for the sign of some entries"
    else:
        for i in range(b.ndim):
            if b.shape[i] > 1 and bool((b.abs() > 1e-9).all()):
                r = a / b
                if (
                    float((r - r.narrow(i, 0, 1)).abs().max()) <= 1e-5 * float(r.abs().max())
                    and b.shape[i] != b.numel()
                ):
                    yield "factors", "off by a factor that is constant along one axis, and differs along the others"
                    return


def _term(a: Tensor, b: Tensor, parts: Parts) -> Iterator[Said]:
    """Yield an argument that is missing in the sum, in it twice, of the wrong sign, or returned unchanged."""
    difference = a - b
    for name, x in parts:
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
            continue
        x = x.detach().double()
        if x.shape == a.shape and same(a, x):
            yield f"unchanged {name}", f"`{name}` comes back as it was"
        shapes = [x.shape, *([(*x.shape, *[1] * (a.ndim - 2))] if x.ndim == 1 and a.ndim > 2 else [])]
        for shape in shapes:
            if len(shape) > a.ndim or any(n not in (1, m) for n, m in zip(shape[::-1], a.shape[::-1], strict=False)):
                continue
            term = x.reshape(shape).expand_as(a)
            if x.any() and same(difference, -term):
                yield f"missing {name}", f"the term `{name}` is missing: the difference is just that"
            elif x.any() and same(difference, term):
                yield f"twice {name}", f"the term `{name}` is there once too often"
            elif x.any() and same(difference, -2 * term):
                yield f"sign {name}", f"the term `{name}` has the wrong sign"
    flat = difference[difference.isfinite()]
    if flat.numel() > 1 and float(flat.max() - flat.min()) <= 1e-6 * max(1.0, float(flat.abs().max())):
        yield "constant", f"off by a constant term of {float(flat[0]):.5g}"


def _step(
    a: Tensor, b: Tensor, where: str, parts: Parts, given: dict[str, Any], signature: inspect.Signature
) -> Iterator[Said]:
    """Yield an update whose step is a multiple of ours."""
    first = next(iter(signature.parameters), "")
    for name, x in parts:
        head, _, tail = name.partition(".")
        became = {first: f"result[0].{tail}", "state": f"result[1].{tail}"}.get(head)
        if tail and where == became and isinstance(x, Tensor) and x.shape == b.shape and x.is_floating_point():
            x = x.detach().double()
            moved, wanted = a - x, b - x
            if same(a, x) and not same(b, x):
                yield "stays", f"`{name}` stays as it was"
            elif (wanted.abs() > 1e-12).all():
                ratio = moved / wanted
                if float(ratio.max() - ratio.min()) <= 1e-4 * float(ratio.abs().max()):
                    value = float(ratio.mean())
                    if abs(value - 1) < 1e-3:
                        continue
                    said = "in the opposite direction" if value < 0 else f"by {value:.5g} times the expected step"
                    number = name_of(abs(value), given, signature)
                    if ratio.numel() == 1 and not number:  # of one number to another there always is a factor
                        continue
                    told = f"a step {said}: off by a factor of {value:.5g}{f', which is {number}' if number else ''}"
                    yield "step" if value > 0 else "step sign", f"moves `{name}` {told}"


def _masked(a: Tensor, b: Tensor, parts: Parts) -> Iterator[Said]:
    """Say that entries are wrong where a boolean argument is True, or False."""
    wrong = ~torch.isclose(a, b, rtol=1e-6, atol=1e-8, equal_nan=True)
    for name, mask in parts:
        if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.numel() > 1:
            try:
                hidden = (~mask).expand_as(wrong)
            except RuntimeError:
                continue
            for value, places in (("False", hidden), ("True", ~hidden)):
                if places.any() and not places.all() and torch.equal(wrong, places):
                    yield f"masked {name}", f"wrong just where `{name}` is {value}"


def _negative(a: Tensor, b: Tensor, parts: Parts) -> Iterator[Said]:
    """Say that entries are wrong where an argument is negative, positive or 0."""
    wrong = ~torch.isclose(a, b, rtol=1e-6, atol=1e-8, equal_nan=True)
    for name, x in parts:
        if isinstance(x, Tensor) and x.shape == a.shape and x.is_floating_point() and 2 < wrong.sum() < wrong.numel():
            for said, places in (("negative", x < 0), ("positive", x > 0), ("0", x == 0)):
                if torch.equal(wrong, places):
                    yield f"{said} {name}", f"wrong just where `{name}` is {said}"


def _places(a: Tensor, b: Tensor, names: list[str]) -> Iterator[Said]:
    """Yield the indices of one axis, or the side of the diagonal, where the wrong entries are."""
    wrong = ~torch.isclose(a, b, rtol=1e-5, atol=1e-8, equal_nan=True)
    share = f"{int(wrong.sum())} of {wrong.numel()} entries are wrong"
    if wrong.all() or not wrong.any():
        return
    for i in range(wrong.ndim):
        n = wrong.shape[i]
        lines = wrong.movedim(i, 0).reshape(n, -1)
        has_wrong = lines.any(dim=1)
        if n > 1 and not has_wrong.all():
            bad, good = has_wrong.nonzero().flatten().tolist(), (~has_wrong).nonzero().flatten().tolist()
            if good == [0]:
                yield "first", f"only index 0 of {_axis(names[i])} is right; {share}"
            elif len(bad) == 1:
                end = {0: "first", n - 1: "last"}.get(bad[0], f"number {bad[0]}")
                yield f"one {end}", f"wrong at one index of {_axis(names[i])} alone, the {end}; {share}"
            else:
                yield "places", f"along {_axis(names[i])}, indices {bad[:6]} are wrong and {good[:6]} right; {share}"
            return
    if wrong.ndim >= 2 and wrong.shape[-1] > 1 and wrong.shape[-2] > 1:
        rows, columns = wrong.shape[-2:]
        above = torch.ones(rows, columns, dtype=torch.bool).triu(1).expand_as(wrong)
        if not (wrong & ~above).any():
            yield "above", f"wrong above the diagonal alone; {share}"
        elif not (wrong & above).any():
            yield "below", f"wrong at and below the diagonal alone; {share}"
    yield "places", share
