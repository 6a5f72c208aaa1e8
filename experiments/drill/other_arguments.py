"""Find arguments with which ours gives what yours gave: so an option that the answer ignores shows itself."""

import inspect
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from experiments.drill.recorder import Call, copied, gradients_of, outcome
from experiments.drill.values import alike, axes

Change = tuple[str, dict[str, Any]]


def matching_changes(call: Call, ours: Callable, signature: inspect.Signature) -> list[str]:
    """Return the changes of one argument, or exchanges of two, with which ours gives what yours gave."""
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if isinstance(call.yours, Exception) or isinstance(call.ours, Exception):
        return []
    if kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}:
        return []
    found = []
    for said, change in _changes(call, signature):
        given = copied(call.before | change)
        result = outcome(ours, (), given)
        if isinstance(result, Exception):
            continue
        if alike(call.yours, result) and not alike(call.ours, result):
            found.append(said)
        elif alike(call.yours, result):  # a call whose value does not tell them apart
            yours, right = (list(gradients.values()) for gradients in call.gradients)
            changed = list(gradients_of(result, given).values())
            if alike(yours, changed) and not alike(right, changed):
                found.append(said)
        elif all(isinstance(r, tuple) and len(r) == len(call.ours) for r in (call.ours, call.yours, result)):
            parts = enumerate(zip(call.yours, result, call.ours, strict=True))
            matching = [i for i, (a, b, c) in parts if alike(a, b) and not alike(c, b)]
            found += [f"{said}, as far as result[{i}] goes" for i in matching]
    return found


def _changes(call: Call, signature: inspect.Signature) -> Iterator[Change]:
    sizes = {"1": 1.0}
    for name, x in call.before.items():
        if isinstance(x, Tensor):
            named = zip(axes(signature.parameters[name].annotation, x), x.shape, strict=True)
            for axis, n in named:
                if n > 1 and not axis.startswith("axis "):
                    sizes |= {f"1 / {axis}": 1 / n, f"1 / √{axis}": n**-0.5}
    for name, parameter in signature.parameters.items():
        x, default = call.before[name], parameter.default
        if isinstance(x, bool):
            yield f"`{name}={not x}`", {name: not x}
        elif isinstance(x, Tensor) and x.dtype == torch.bool:
            yield f"`{name}` inverted", {name: ~x}
        if isinstance(default, float | int | None) and default is not inspect.Parameter.empty and x is not default:
            yield f"`{name}={default}`", {name: default}
        is_number = isinstance(x, float) or (
            x is None and "float" in str(parameter.annotation) and "Tensor" not in str(parameter.annotation)
        )
        if is_number and len(sizes) > 1:
            yield from ((f"`{name} = {said}`", {name: value}) for said, value in sizes.items())
    tensors = [name for name, x in call.before.items() if isinstance(x, Tensor)]
    for one, other in combinations(tensors, 2):
        if call.before[one].shape == call.before[other].shape and call.before[one].dtype == call.before[other].dtype:
            yield f"`{one}` and `{other}` exchanged", {one: call.before[other], other: call.before[one]}
