"""The parts of a result, their equality up to rounding, and names for axes and numbers."""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


def children(x: Any) -> list[tuple[str, Any]]:
    """Return (path, part) of each part of a dict, a tuple or a list."""
    if isinstance(x, dict):
        return [(f".{name}", part) for name, part in x.items()]
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return [(f".{name}", part) for name, part in x._asdict().items()]  # pyright: ignore
    return [(f"[{i}]", part) for i, part in enumerate(x)] if isinstance(x, tuple | list) else []


def leaves(x: Any, path: str = "result") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of everything in a result."""
    if not isinstance(x, dict | tuple | list):
        yield path, x
    for name, part in children(x):
        yield from leaves(part, f"{path}{name}" if path else name.removeprefix("."))


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one shape are equal up to rounding."""
    if a.is_meta or b.is_meta:  # they have no numbers
        return a.device == b.device
    if not (a.is_floating_point() or b.is_floating_point()):
        return torch.equal(a, b)
    tolerance = max(TOLERANCE.get(a.dtype, 1e-4), TOLERANCE.get(b.dtype, 1e-4))
    a, b = a.detach().double(), b.detach().double()
    if a.numel() == b.numel() > 0:  # most that differ do so here, and allclose takes ten times as long
        x, y = float(a[(0,) * a.ndim]), float(b[(0,) * b.ndim])
        if abs(x - y) > tolerance * (1 + abs(y)):
            return False
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def alike(a: Any, b: Any) -> bool:
    """Return whether two results are equal up to rounding, part by part."""
    xs, ys = dict(leaves(a)), dict(leaves(b))
    return xs.keys() == ys.keys() and all(_alike_leaves(xs[where], ys[where]) for where in xs)


def _alike_leaves(x: Any, y: Any) -> bool:
    x, y = as_tensors(x, y)
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return x.shape == y.shape and x.dtype == y.dtype and same(x, y)
    return type(x) is type(y) and (callable(x) or equal(x, y))


def as_tensors(x: Any, y: Any) -> tuple[Any, Any]:
    """Return two numbers as tensors, which are compared up to rounding; anything else as it is."""
    if isinstance(x, float | int) and isinstance(y, float | int):
        return torch.tensor(float(x), dtype=torch.float64), torch.tensor(float(y), dtype=torch.float64)
    return x, y


def equal(x: Any, y: Any) -> bool:
    try:
        return bool(x == y)
    except Exception:  # what an answer returns may be anything
        return False


def axes(annotation: Any, x: Tensor) -> list[str]:
    """Return the name of each axis, from a jaxtyping annotation."""
    names = str(getattr(annotation, "dim_str", "")).split()
    starred = [i for i, name in enumerate(names) if name.startswith(("*", "..."))]
    if starred:
        spread = x.ndim - len(names) + 1
        [i, *_] = starred
        several = (
            [f"axis {i + n}" for n in range(spread)] if spread > 1 else [names[i].strip("*#.") or f"axis {i}"] * spread
        )
        names = [*names[:i], *several, *names[i + 1 :]]
    return [name.strip("#{}") for name in names] if len(names) == x.ndim else [f"axis {i}" for i in range(x.ndim)]


def is_close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-9)


def name_of(value: float, given: dict[str, Any], signature: inspect.Signature) -> str:
    """Return the first of `names_of`, "" if there is none."""
    return next(iter(names_of(value, given, signature)), "")


def names_of(value: float, given: dict[str, Any], signature: inspect.Signature, within: float = 1e-5) -> list[str]:
    """Return the names of a number of the problem.

    A size, a root of one, an option; one half may be p, and 1 - p too.
    """
    if is_close(value, 100):
        return ["that of a percentage"]
    known: dict[str, float] = {}
    for parameter, x in given.items():
        if isinstance(x, Tensor) and parameter in signature.parameters:
            for name, n in zip(axes(signature.parameters[parameter].annotation, x), x.shape, strict=True):
                if name.isdigit():
                    continue
                known.setdefault(name if not name.startswith("axis ") else f"{name} of {parameter}", n)
            known.setdefault(f"the number of entries of {parameter}", x.numel())
        elif isinstance(x, float | int) and not isinstance(x, bool):
            known.setdefault(parameter, x)
        elif isinstance(x, tuple):
            known |= {f"{parameter}[{i}]": v for i, v in enumerate(x) if isinstance(v, float)}
    forms = {
        "{}": lambda n: n,
        "1 / {}": lambda n: 1 / n,
        "√{}": math.sqrt,
        "1 / √{}": lambda n: 1 / math.sqrt(n),
        "1 - {}": lambda n: 1 - n,
        "1 / (1 - {})": lambda n: 1 / (1 - n),
        "1 + {}": lambda n: 1 + n,
        "{} / ({} - 1)": lambda n: n / (n - 1),
        "({} - 1) / {}": lambda n: (n - 1) / n,
        "√({} / ({} - 1))": lambda n: math.sqrt(n / (n - 1)),
        "√(({} - 1) / {})": lambda n: math.sqrt((n - 1) / n),
        "{}²": lambda n: n * n,
    }
    found = []
    for form, f in forms.items():
        for name, n in known.items():
            try:
                if not is_close(value, 1) and math.isclose(f(n), value, rel_tol=within, abs_tol=1e-9):
                    found.append(form.replace("{}", name))
            except (ValueError, ZeroDivisionError):
                continue
    return found
