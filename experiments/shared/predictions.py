"""Compare predictions with what was measured: how far off one is, and how far off they tend to be."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from itertools import combinations
from statistics import median
from typing import Any, NamedTuple

from experiments.shared import attempts
from experiments.shared.checks import holds

EVENT = "predict"


class Prediction(NamedTuple):
    claim: str
    predicted: float
    measured: float
    target: str


class Ranking(NamedTuple):
    """A prediction of an order, from the least to the greatest."""

    claim: str
    predicted: list[str]
    measured: list[str]


def told(answer: Prediction | Ranking) -> str:
    """Return what was measured, and how far off the prediction was; of a number its target too."""
    if isinstance(answer, Ranking):
        right, pairs = pairs_right(answer)
        return f"measured {' < '.join(answer.measured)}: {right} of {pairs} pairs in the right order"
    side = "the right side" if right_side(answer) else "the wrong side"
    return f"measured {answer.measured:.4g} (target {answer.target}): {distance(answer)}, on {side} of the target"


def distance(answer: Prediction) -> str:
    """Return how far apart both are: a factor if both are positive, else a difference."""
    if answer.predicted == answer.measured:
        return "exactly yours"
    factor = factor_of(answer)
    return (
        f"off by {abs(answer.predicted - answer.measured):.3g}" if factor is None else f"off by a factor {factor:.3g}"
    )


def pairs_right(answer: Ranking) -> tuple[int, int]:
    """Return how many pairs are in the right order, and how many there are."""
    pairs = list(combinations(answer.measured, 2))
    return sum(answer.predicted.index(low) < answer.predicted.index(high) for low, high in pairs), len(pairs)


def factor_of(answer: Prediction) -> float | None:
    """Return the larger over the smaller, 1 or more; None unless both are positive and finite."""
    low, high = sorted((answer.predicted, answer.measured))
    return high / low if low > 0 and high < math.inf else None


def right_side(answer: Prediction) -> bool:
    """Return whether the prediction holds the target if the measured value does, and else fails it too."""
    relation, bound = answer.target.split()
    predicted, measured = (holds(v, relation, float(bound)) for v in (answer.predicted, answer.measured))
    return predicted == measured


def past() -> list[Prediction | Ranking]:
    """Return every prediction that was ever made, from the file that keeps the drills' attempts too."""
    return [answer for event in attempts.events() if event["event"] == EVENT for answer in read(event)]


def read(event: dict[str, Any]) -> Iterator[Prediction | Ranking]:
    """Yield the prediction of an event; nothing for one that another version wrote otherwise, or that was no number."""
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
        claim, predicted, measured = (event[name] for name in ("claim", "predicted", "measured"))
        if isinstance(predicted, list):
            answer = Ranking(claim, predicted, measured)
            pairs_right(answer)  # ValueError where the names are not the same
        else:
            answer = Prediction(claim, float(predicted), float(measured), event["target"])
            right_side(answer)  # ValueError where the target is none
        yield answer


def record_of(answers: Iterable[Prediction | Ranking]) -> str:
    """Return in a sentence how far off predictions tend to be, by the median: half of them are no farther."""
    answers = list(answers)
    numbers = [answer for answer in answers if isinstance(answer, Prediction)]
    factors = [f for f in map(factor_of, numbers) if f is not None]
    differences = [abs(a.predicted - a.measured) for a in numbers if factor_of(a) is None]
    parts = [f"off by a factor {median(factors):.3g}, the median of {len(factors)}"] if factors else []
    if differences:
        parts.append(f"off by {median(differences):.3g}, the median of {len(differences)} with a value of 0 or below")
    if numbers:
        parts.append(f"{sum(map(right_side, numbers)) / len(numbers):.0%} on the right side of the target")
    if pairs := [pairs_right(answer) for answer in answers if isinstance(answer, Ranking)]:
        parts.append(f"{sum(n for n, _ in pairs)} of {sum(n for _, n in pairs)} pairs in the right order")
    return f"Your predictions so far, {len(answers)}: {'; '.join(parts) or 'none'}."
