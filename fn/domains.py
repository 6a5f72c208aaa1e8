"""Domains of numbers, checked as shapes are: a number outside is a TypeCheckError with the argument and the range.

A function says the domain in its signature, `classes: Count`. Each is checked once per call, before anything is
computed. A size that fits its domain but not the memory is torch's own error.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Annotated, Any

from beartype.vale import Is

LARGEST = 2**31 - 1
"""the largest size, or number of things"""
MOST = sys.float_info.max
"""the largest float: an int may be larger"""


def _such(holds: Callable[[Any], bool], words: str) -> Any:
    """Return the condition, which error messages call by these words."""
    condition = Is[holds]
    condition.get_repr = words
    return condition


def _whole(least: int, most: int, words: str) -> Any:
    """Return the condition that an int lies in a range; True and False are words, not numbers."""
    return _such(lambda n: least <= n <= most and type(n) is not bool, words)


def _each(least: int, words: str, lengths: Sequence[int] = range(100)) -> Any:
    """Return the condition that every entry is an int from `least` on: of a sequence beartype checks one at random."""
    return _such(lambda xs: len(xs) in lengths and all(type(x) is int and least <= x <= LARGEST for x in xs), words)


Count = Annotated[int, _whole(1, LARGEST, "from 1 to 2³¹ - 1")]
Natural = Annotated[int, _whole(0, LARGEST, "from 0 to 2³¹ - 1")]
Ordinal = Annotated[int, _whole(0, 2**63 - 1, "from 0 to 2⁶³ - 1")]
Integer = Annotated[int, _whole(-(2**63), 2**63 - 1, "that int64 holds")]
NonZero = Annotated[int, _such(lambda n: n != 0 and -(2**63) <= n < 2**63 and type(n) is not bool, "but 0")]

Probability = Annotated[float, _such(lambda p: 0 <= p <= 1, "from 0 to 1")]
Share = Annotated[float, _such(lambda p: 0 < p <= 1, "above 0, to 1")]
Beta = Annotated[float, _such(lambda beta: 0 <= beta < 1, "from 0 to below 1")]
ProbabilityOrOff = Annotated[float, _such(lambda p: 0 <= p <= 1 or p == -1, "from 0 to 1, or -1")]
NonNegative = Annotated[float, _such(lambda x: 0 <= x <= MOST or x == inf, "from 0 to infinity")]
Magnitude = Annotated[float, _such(lambda x: 0 <= x <= MOST, "from 0, and finite")]
Positive = Annotated[float, _such(lambda x: 0 < x <= MOST, "above 0, and finite")]
Finite = Annotated[float, _such(lambda x: -MOST <= x <= MOST, "and finite")]
Real = Annotated[float, _such(lambda x: -MOST <= x <= MOST or x in (inf, -inf), "but NaN")]

Counts = Annotated[Sequence[int], _each(1, "each from 1 to 2³¹ - 1")]
Naturals = Annotated[Sequence[int], _each(0, "each from 0 to 2³¹ - 1")]
ImageShape = Annotated[Sequence[int], _each(1, "(channels, height, width), each at least 1", [3])]
ImageSize = Annotated[Sequence[int], _each(1, "(height, width), each at least 1", [2])]
Integers = Annotated[
    Sequence[int],
    _such(lambda xs: all(type(x) is int and -(2**63) <= x < 2**63 for x in xs), "each one that int64 holds"),
]
Window = Count | Annotated[Sequence[int], _each(1, "one or two, each at least 1", [1, 2])]
Border = Natural | Annotated[Sequence[int], _each(0, "one or two, each at least 0", [1, 2])]
Grid = (
    Natural
    | Annotated[
        Sequence[int | None],
        _such(
            lambda xs: len(xs) == 2 and all(x is None or (type(x) is int and 0 <= x <= LARGEST) for x in xs),
            "two, each None or at least 0",
        ),
    ]
)
Positives = Annotated[
    Sequence[float],
    _such(lambda xs: all(isinstance(x, int | float) and 0 < x <= MOST for x in xs), "each above 0, and finite"),
]

Magnitudes = Annotated[Sequence[float], _such(lambda xs: all(0 <= x <= MOST for x in xs), "each from 0, and finite")]
Finites = Annotated[Sequence[float], _such(lambda xs: all(-MOST <= x <= MOST for x in xs), "each finite")]
Rectangles = Annotated[
    Sequence[tuple[float, float]],
    _such(
        lambda sizes: len(sizes) > 0 and all(0 < side <= MOST for size in sizes for side in size),
        "(width, height) of one or more, each above 0, and finite",
    ),
]
Levels = Annotated[
    Sequence[Sequence[tuple[float, float]]],
    _such(
        lambda levels: (
            len(levels) > 0
            and all(len(sizes) and all(0 < side <= MOST for size in sizes for side in size) for sizes in levels)
        ),
        "a list per level, of one or more, of one or more (width, height), each above 0, and finite",
    ),
]
Factors = Annotated[
    Mapping[str, float],
    _such(lambda factors: all(0 <= x <= MOST for x in factors.values()), "each from 0, and finite"),
]
Bands = Annotated[
    dict[str, tuple[float, float]],
    _such(
        lambda bands: len(bands) > 0 and all(0 <= low <= high for low, high in bands.values()),
        "(least, largest) of one or more, from 0 up",
    ),
]


def require_held(argument: str, said: Any, held: Any) -> None:
    """Raise ValueError where an argument says another number of layers, or another size, than the parameters hold.

    >>> require_held("mlp: layers", 2, count_entries({"fc1": {}, "fc2": {}}, "fc"))
    """
    if said != held:
        raise ValueError(f"{argument} is {said}, but the parameters hold {held}")


def count_entries(params: Mapping[str, Any], prefix: str = "") -> int:
    """Return the number of entries that are called by this prefix and a number.

    >>> count_entries({"conv1": {}, "conv2": {}, "fc": {}}, "conv")
    2
    """
    return sum(name.startswith(prefix) and name[len(prefix) :].isdecimal() for name in params)
