"""The "done when" checks of an experiment: a claim about a number, and whether it holds."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple


class Check(NamedTuple):
    name: str
    value: float
    target: str
    ok: bool
    spread: str = ""
    """standard deviation and number of seeds, of a mean"""


class Order(NamedTuple):
    name: str
    ranked: list[str]
    """from the least to the greatest"""


before_shown: list[Callable[[Check | Order], None]] = []
"""called with each check as it is made, and each order: `asking` asks here what it will be"""


def check(name: str, value: float, relation: str, bound: float, *, spread: str = "") -> Check:
    """Return the check `value relation bound`, as in check("accuracy", 0.98, ">=", 0.97); a NaN never holds.

    ValueError for a target that every value meets, as the shares and gaps that are checked are never below 0.
    """
    if (relation, bound) in ((">=", 0), ("<=", math.inf)) or (relation in (">", ">=") and bound < 0):
        raise ValueError(f"{name}: {relation} {bound:g} is a check that cannot fail")
    found = Check(name, value, f"{relation} {bound:g}", holds(value, relation, bound), spread)
    for ask in before_shown:
        ask(found)
    return found


def order(name: str, values: Mapping[str, float]) -> None:
    """Say that `values` are about to be shown: with --predict their order is asked for first, else nothing happens."""
    for ask in before_shown:
        ask(Order(name, sorted(values, key=lambda label: values[label])))


def holds(value: float, relation: str, bound: float) -> bool:
    compare = {"<=": operator.le, "<": operator.lt, ">": operator.gt, ">=": operator.ge, "==": operator.eq}[relation]
    return bool(compare(value, bound))


def check_mean(name: str, values: Sequence[float], relation: str, bound: float) -> Check:
    """Return the check of the mean over seeds, with its standard deviation."""
    spread = f"± {deviation(values):.2g}, {len(values)} seeds"
    return check(name, mean(values), relation, bound, spread=spread)


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation, NaN if a value is not finite: `statistics.stdev` ends in an AttributeError."""
    return stdev(values) if all(map(math.isfinite, values)) else math.nan
