"""Say under which arguments an answer is wrong, and under which it is right."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from experiments.drill.recorder import Call

Property = tuple[str, Callable[[dict[str, Any]], bool]]


def conditions(wrong: Sequence[Call], right: Sequence[Call], signature: inspect.Signature) -> str:
    """Return the property of the arguments that nearly all wrong calls have, and the fewest of the right ones."""
    if not right:
        return f"wrong in all of {len(wrong)} calls" if len(wrong) > 1 else ""
    found = []
    for said, holds in _properties(signature):
        bad, good = (sum(holds(call.before) for call in calls) for calls in (wrong, right))
        if bad >= 0.9 * len(wrong):
            found.append((said, bad, good))
    _, bad, good = min(found, key=lambda row: (row[2], -row[1]), default=("", 0, len(right)))
    if good > 0.7 * len(right):
        return f"wrong in {len(wrong)} of {len(wrong) + len(right)} calls"
    under = " and ".join([said for said, *counts in found if counts == [bad, good]][:2])
    strays, others = len(wrong) - bad, len(right) - good
    among = f"{bad} of the {bad + good}" if good else f"all {bad}"
    elsewhere = f"in {strays} of the {strays + others} others" if strays else f"right in the {others} others"
    return f"wrong in {among} calls {under}, {elsewhere}"


def _properties(signature: inspect.Signature) -> Iterator[Property]:
    """Yield (words, whether it holds of the arguments of a call)."""
    for name, parameter in signature.parameters.items():
        for said, holds in _properties_of_one(parameter.default):
            yield said.format(name), lambda given, name=name, holds=holds: holds(given.get(name))
    for one, other in permutations(signature.parameters, 2):
        yield (
            f"where `{one}` is not below `{other}`",
            lambda given, one=one, other=other: _not_below(given.get(one), given.get(other)),
        )


def _not_below(a: Any, b: Any) -> bool:
    """Return whether a ≥ b, of two counts such as steps; a rate and an epsilon are not compared."""
    return _is_count(a) and _is_count(b) and int(a) >= int(b)


def _is_count(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.ndim == 0 and not x.is_floating_point() and x.dtype != torch.bool
    return isinstance(x, int) and not isinstance(x, bool)


def _properties_of_one(default: Any) -> Iterator[tuple[str, Any]]:
    yield "with `{}`", lambda x: isinstance(x, Tensor | dict)
    yield "without `{}`", lambda x: x is None
    yield "with `{}=True`", lambda x: x is True
    yield "with `{}=False`", lambda x: x is False
    yield "with a boolean `{}`", lambda x: isinstance(x, Tensor) and x.dtype == torch.bool
    yield "with an additive `{}`", lambda x: isinstance(x, Tensor) and x.is_floating_point()
    if isinstance(default, float | int | tuple):
        yield f"where `{{}}` is not {default}", lambda x: x not in (default, (default,) * 2)
    yield "where `{}` has no axis of a batch", lambda x: isinstance(x, Tensor) and x.ndim < 3
    yield "where `{}` has more than two axes", lambda x: isinstance(x, Tensor) and x.ndim > 2
    for value in ("mean", "sum", "none"):
        yield f'with `{{}}="{value}"`', lambda x, value=value: isinstance(x, str) and x == value
    yield "where `{}` has a NaN", lambda x: isinstance(x, Tensor) and x.is_floating_point() and bool(x.isnan().any())
