"""Say what is wrong with an answer's results: which part, axis, factor, term or option, and in which calls.

A finding is a mistake that would explain the numbers of one call. A cause, such as a factor, is named only where it
explains every call that went wrong: of two numbers one is always some multiple of the other. The kind that then
explains most of the wrong calls is told, with a small call as the example.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.drill.compare import compare, whole_numbers
from experiments.drill.conditions import conditions
from experiments.drill.differences import first_differences
from experiments.drill.other_arguments import matching_changes
from experiments.drill.recorder import Call
from experiments.drill.values import alike, as_tensors, axes, children, equal, leaves, same
from fn import tensors

GUESSES = 8
"""wrong calls, of different shapes if possible, that are tried with other arguments"""


class Finding(NamedTuple):
    kind: str
    """the same for calls that show the same mistake"""
    text: str


class Case(NamedTuple):
    call: Call
    findings: list[Finding]


UNNAMED = [Finding("values", "the values differ")]


def explain(seen: Sequence[Call], signature: inspect.Signature, ours: Callable) -> list[str]:
    """Say what is wrong with the calls that went wrong; no lines if none did."""
    cases = [Case(call, list(_findings(call, signature))) for call in seen]
    _guess([case for case in cases if case.findings], ours, signature)
    wrong, right = [case for case in cases if case.findings], [case for case in cases if not case.findings]
    if not wrong:
        return []
    wrong = _drop_partial_causes(wrong)
    count = Counter(kind for case in wrong for kind in {f.kind for f in case.findings})
    first = [f.kind for case in wrong for f in case.findings]
    kind = max(count, key=lambda kind: (count[kind] * _weight(kind), -first.index(kind)))
    told = [case for case in wrong if kind in {f.kind for f in case.findings}]
    case = min(told, key=lambda case: abs(_size(case.call) - 12))
    text = next(f.text for f in case.findings if f.kind == kind)
    also = [f for f in case.findings if f.kind != kind]
    lines = [text, *(f.text for f in [f for f in also if f.kind not in VAGUE][:2] or also[:1])]
    others = [case for case in wrong if kind not in {f.kind for f in case.findings}]
    rest = Counter(k for case in others for k in {f.kind for f in case.findings} - VAGUE)
    if rest:
        other = max(rest, key=lambda k: rest[k] * _weight(k))
        lines.append("in others: " + next(f.text for case in others for f in case.findings if f.kind == other))
    under = conditions([case.call for case in wrong], [case.call for case in right], signature)
    if under:
        lines.append(under)
    return [*lines, "", *example(case.call)]


CAUSES = ("factor ", "constant", "missing ", "twice ", "sign", "step")
"""how the kinds begin that say why, which numbers can suggest by chance"""


def _drop_partial_causes(wrong: list[Case]) -> list[Case]:
    """Return the cases without the causes that do not explain all of them.

    A single number, or a gradient, tells little.
    """
    telling = [case for case in wrong if _numbers_of(case.call.ours) > 1 and not _gradient_alone(case)]
    everywhere = set.intersection(*({_anywhere(f.kind) for f in case.findings} for case in telling or wrong))
    if any(kind.startswith("factor ") and kind != "factor " for kind in everywhere):
        everywhere.discard("factor ")
    sums = 2 * sum("sums" in {f.kind for f in case.findings} for case in telling) >= len(telling)  # an axis of one does
    kept = lambda f: _anywhere(f.kind) in everywhere if f.kind.startswith(CAUSES) else sums or f.kind != "sums"  # noqa: E731
    return [case._replace(findings=[*filter(kept, case.findings)] or UNNAMED) for case in wrong]


def _anywhere(kind: str) -> str:
    """Return a kind without the part of the result that it was found in."""
    return kind.partition(" result")[0]


def _gradient_alone(case: Case) -> bool:
    return all("gradient" in f.kind for f in case.findings)


def _numbers_of(result: Any) -> int:
    return sum(x.numel() if isinstance(x, Tensor) else 1 for _, x in leaves(result))


def _guess(wrong: list[Case], ours: Callable, signature: inspect.Signature) -> None:
    """Put first, in each wrong case, the change of an argument with which ours gives the same wrong result."""
    tried = _varied([case for case in wrong if not isinstance(case.call.ours, Exception)])[:GUESSES]
    guesses = [set(matching_changes(case.call, ours, signature)) for case in tried]
    often = Counter(said for guess in guesses for said in guess)
    for case, guess in zip(tried, guesses, strict=True):
        said = max(guess, key=lambda said: often[said], default="")
        if often[said] == len(tried):  # a small call, or one with two axes of a size, can be explained by chance
            case.findings.insert(0, Finding(f"as if {said}", f"yours is what comes out with {said}"))


VAGUE = {"values", "places", "constant", "first", "factors"}
"""kinds that say where, not what, or that hold of small tensors by chance"""


def _weight(kind: str) -> int:
    """Return how much a kind explains: a mistake in a value explains its gradient too."""
    if kind in VAGUE:
        return 1
    return 2 if "gradient" in kind else 4 if kind.startswith("parts") else 30 if kind.startswith("as if") else 8


def example(call: Call) -> list[str]:
    """Return the arguments of a call, its result and the wanted one, and where the two differ first."""
    given = [f"  {name} = {show(value)}" for name, value in call.before.items()]
    said = ["given", *given, "yours    " + show(call.yours), "wanted   " + show(call.ours)]
    return [*said, *first_differences(call.ours, call.yours)]


def show(x: Any, room: int = 200) -> str:
    """Return a value as text: a tensor by dtype, shape and numbers, of a large one its summary and the first six."""
    if isinstance(x, Tensor):
        if x.is_meta or torch._C._functorch.is_batchedtensor(x):  # pyright: ignore
            return tensors.summarize(x)
        if x.numel() > 24:
            return f"{tensors.summarize(x)}: {_numbers(x.flatten()[:6])[:-1]}, …]"
        return f"{tensors.kind(x)} {_numbers(x)}" if x.numel() else tensors.kind(x)
    if isinstance(x, BaseException):
        return f"{type(x).__name__}: {str(x).splitlines()[0] if str(x) else ''}"
    if isinstance(x, dict):
        text = "{" + ", ".join(f"{name}: {show(value)}" for name, value in x.items()) + "}"
    elif isinstance(x, tuple | list):
        text = "(" + ", ".join(map(show, x)) + ")"
    else:
        text = getattr(x, "__name__", None) or repr(x)
    return text if len(text) <= room else text[: room - 1] + "…"


def _numbers(x: Tensor) -> str:
    def text(value: Any) -> str:
        return (
            f"[{', '.join(map(text, value))}]"
            if isinstance(value, list)
            else f"{value:.4g}"
            if isinstance(value, float)
            else str(value)
        )

    return text(x.detach().tolist())


def _size(call: Call) -> int:
    return sum(x.numel() for _, x in leaves(call.before, "") if isinstance(x, Tensor))


def _varied(cases: list[Case]) -> list[Case]:
    """Return the cases in another order: one of each set of shapes first."""
    firsts = {_shapes(case.call): i for i, case in reversed(list(enumerate(cases)))}
    return [cases[i] for i in firsts.values()] + [case for i, case in enumerate(cases) if i not in firsts.values()]


def _shapes(call: Call) -> tuple:
    return tuple(
        (name, *x.shape) if isinstance(x, Tensor) else (name, x is None) for name, x in leaves(call.before, "")
    )


def _findings(call: Call, signature: inspect.Signature) -> Iterator[Finding]:
    yours, ours = call.yours, call.ours
    if isinstance(ours, Exception) and not isinstance(yours, Exception):
        yield Finding("accepts", f"this is to be refused: {show(ours)}")
    elif isinstance(yours, Exception):
        if not isinstance(ours, Exception):
            yield Finding("raises", f"yours raised {show(yours)}")
    else:
        yield from _structure(call._replace(yours=_vector(yours), ours=_vector(ours)), signature)
        yield from _impurities(call)


def _vector(x: Any) -> Any:
    """Return a list of numbers, such as losses, as one tensor."""
    numbers = isinstance(x, list) and len(x) > 1 and all(isinstance(n, float | int) for n in x)
    return torch.tensor(x, dtype=torch.float64) if numbers else x


def _impurities(call: Call) -> Iterator[Finding]:
    for (where, now), (_, was) in zip(leaves(call.arguments, ""), leaves(call.before, ""), strict=False):
        if isinstance(now, Tensor) and isinstance(was, Tensor) and (now.shape != was.shape or not same(now, was)):
            yield Finding("in place", f"`{where}` was changed in place: a function leaves what it is given as it was")


def _structure(call: Call, signature: inspect.Signature) -> Iterator[Finding]:
    yours, ours = dict(leaves(call.yours)), dict(leaves(call.ours))
    if call.yours is None and call.ours is not None:
        yield Finding("none", "nothing is returned: is a `return` missing?")
        return
    missing, extra = [where for where in ours if where not in yours], [where for where in yours if where not in ours]
    if missing or extra:
        said = [f"has no {missing[0]}"] if missing else []
        said += [f"has {extra[0]}, which is not expected"] if extra else []
        count = f" ({len(yours)} parts, expected {len(ours)})"
        yield Finding("structure", f"what is returned {' and '.join(said)}{count}")
    found = [
        (where, list(_leaf(where, yours[where], ours[where], call, signature))) for where in ours if where in yours
    ]
    for _, findings in found:
        yield from findings
    yield from _parts(call.yours, call.ours)
    if not any(findings for _, findings in found) and not missing and not extra:
        yield from _gradients(call, signature)


def _parts(yours: Any, ours: Any) -> Iterator[Finding]:
    """Yield which parts of a result are right, and which are not."""
    parts = list(_verdicts(yours, ours, "result"))
    right, wrong = ([where for where, ok in parts if ok is kind] for kind in (True, False))
    if right and wrong:
        yield Finding(f"parts {wrong}", f"{', '.join(right)} {_are(right)} right; {', '.join(wrong)} {_are(wrong)} not")


def _are(parts: Sequence[str]) -> str:
    return "is" if len(parts) == 1 else "are"


def _verdicts(yours: Any, ours: Any, where: str) -> Iterator[tuple[str, bool]]:
    """Yield (where, whether right) of the largest parts that are right or wrong whole.

    Neither is an expected None, nor a function: whether that is right, its results tell.
    """
    if alike(yours, ours):
        if ours is not None and not callable(ours):
            yield where, True
        return
    own = dict(children(yours))
    parts = [part for name, x in children(ours) for part in _verdicts(own.get(name), x, where + name)]
    if any(ok for _, ok in parts):
        yield from parts
    else:
        yield where, False


def _leaf(where: str, yours: Any, ours: Any, call: Call, signature: inspect.Signature) -> Iterator[Finding]:
    at = f"{where}: " if where != "result" else ""
    yours, ours = as_tensors(yours, ours)
    if not isinstance(ours, Tensor):
        if not callable(ours) and not isinstance(ours, Tensor | torch.nn.Module) and not equal(yours, ours):
            yield Finding(f"value {where}", f"{at}{show(yours)}, expected {show(ours)}")
        return
    if not isinstance(yours, Tensor):
        yield Finding(f"type {where}", f"{at}{type(yours).__name__} where a tensor is expected")
        return
    names = axes(signature.return_annotation, ours) if where == "result" else None
    if yours.shape != ours.shape:
        if yours.ndim == ours.ndim == 1 and not ours.is_floating_point():  # as many as the values call for
            yield from (Finding(kind, at + text) for kind, text in whole_numbers(yours, ours, names or ["axis 0"]))
            return
        yield Finding(
            f"shape {where}", f"{at}shape {_shape(yours)}, expected {_shape(ours, names)}{_reshaped(yours, ours)}"
        )
        return
    if yours.dtype != ours.dtype:
        yield Finding(
            f"dtype {where}", f"{at}dtype {yours.dtype}, expected {ours.dtype}: was a constant made in another?"
        )
    if yours.device != ours.device:
        yield Finding(f"device {where}", f"{at}on {yours.device}, expected {ours.device}")
        return
    if same(yours, ours):
        return
    for kind, text in compare(yours.detach(), ours.detach(), where, call.before, names, signature):
        yield Finding(kind if kind in VAGUE or where == "result" else f"{kind} {where}", at + text)


def _shape(x: Tensor, names: list[str] | None = None) -> str:
    if names and not names[0].startswith("axis "):
        return "(" + ", ".join(f"{name} {n}" for name, n in zip(names, x.shape, strict=True)) + ")"
    return str(tuple(x.shape))


def _reshaped(yours: Tensor, ours: Tensor) -> str:
    if yours.ndim == ours.ndim and sorted(yours.shape) == sorted(ours.shape):
        moved = [i for i in range(ours.ndim) if yours.shape[i] != ours.shape[i]]
        return f": the same sizes in another order, axes {' and '.join(map(str, moved))} are swapped"
    if yours.numel() == ours.numel():
        return ": as many numbers, with an axis too many or too few"
    if yours.ndim > ours.ndim:
        return ": an axis that should have been reduced is left"
    if yours.ndim < ours.ndim:
        return ": an axis is reduced that should be there"
    return f": axis {next(i for i in range(ours.ndim) if yours.shape[i] != ours.shape[i])} has another size"


def _gradients(call: Call, signature: inspect.Signature) -> Iterator[Finding]:
    """Return what is wrong with the gradients of a right result: missing, too many, or other values."""
    parts = zip(*([x for _, x in leaves(r) if isinstance(x, Tensor)] for r in (call.yours, call.ours)), strict=True)
    live = [(y.requires_grad, z.requires_grad) for y, z in parts]
    if (True, False) in live:
        yield Finding("undetached", "a part of the result carries a gradient that it should not have: detach it")
    if (False, True) in live:
        yield Finding("detached", "the values are right, but detached: no gradient passes through the result")
        return
    yours, ours = call.gradients
    for (path, wanted), name in zip(ours.items(), _float_names(call, ours), strict=True):
        got = yours.get(path)
        if wanted is None or (got is not None and same(got, wanted)):
            continue
        if got is None or not got.any():
            yield Finding(
                f"no gradient {name}", f"the values are right, but no gradient reaches `{name}`: is it detached?"
            )
            continue
        yield Finding(
            f"gradient {name}",
            f"the values are right, but the gradient of `{name}` is not: {show(got)}, expected {show(wanted)}",
        )
        for kind, text in compare(got, wanted, f"gradient of {name}", call.before, None, signature):
            if kind not in VAGUE:
                yield Finding(f"{kind} gradient", f"the gradient of `{name}`: {text}")


def _float_names(call: Call, gradients: dict[str, Any]) -> list[str]:
    """Return the names of the arguments that require a gradient."""
    names = [name for name, x in leaves(call.arguments, "") if isinstance(x, Tensor) and x.requires_grad and x.is_leaf]
    return names if len(names) == len(gradients) else list(gradients)
