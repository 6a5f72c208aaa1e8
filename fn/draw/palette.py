"""The same colour for the same thing in every picture: a name has its colour here. report.html has the same."""

from collections.abc import Iterable
from itertools import cycle

PALETTE = {
    "c0": "#0072b2",  # blue
    "c1": "#cb7810",  # orange
    "c2": "#0b351b",  # dark green
    "c3": "#f34a81",  # pink
    "c4": "#865e2a",  # brown
    "c5": "#4b3254",  # violet
    "good": "#00704f",  # green
    "bad": "#b3350b",  # red
    "paper": "#ffffff",
    "ink": "#1a1c20",  # nearly black
    "faint": "#596070",  # grey
    "rule": "#d5d9e0",  # light grey
}
"""the colours, named as in report.html: blue against orange or red is told apart by the colour-blind too"""
SHADES = {
    "signed": "RdBu_r",  # red is positive, blue negative, white zero
    "positive": "Reds",
    "image": "gray_r",
    "attention": "Blues",
    "heat": "inferno",
}
"""matplotlib's scale of colours for each kind of matrix"""
NAMES = {
    "train": "c0",
    "validation": "c1",
    "test": "c3",
    "learning": "c0",
    "frozen": "c1",
    "ours": "c0",
    "torch": "c1",
    "functional": "c0",
    "classic": "c1",
    "jit": "c0",
    "fixed": "c0",
    "broken": "bad",
    "mean": "c0",
    "best": "bad",
    "largest eigenvalue": "c0",
    "2/η": "c1",
    "from scratch": "c4",
    "head only": "c1",
    "fine-tuned": "c0",
    "sum": "c0",
    "class": "c1",
    "box": "c3",
    "center": "c4",
    "size": "c3",
    "offset": "c5",
    "object": "good",
    "detection": "c0",
    "anchor": "c0",
    "false": "bad",
    "missed": "c1",
    "others": "rule",
    "single runs": "faint",
}
"""the colour of each thing that more than one picture shows"""


def color(name: str) -> str:
    """Return the colour of a name in the table, as #rrggbb; ValueError for a name that has none.

    >>> color("train") == color("ours") == "#0072b2"
    True
    """
    slot = NAMES.get(name, name)
    if slot not in PALETTE:
        raise ValueError(f"{name!r} has no colour: give it one in the table NAMES of fn/draw/palette.py")
    return PALETTE[slot]


def colors(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each line of one picture; a name that has none takes the next that is left.

    >>> colors(["momentum", "train"]) == {"momentum": PALETTE["c1"], "train": PALETTE["c0"]}
    True
    """
    names = list(dict.fromkeys(names))
    taken = {NAMES[name] for name in names if name in NAMES}
    lines = [slot for slot in PALETTE if slot.startswith("c")]
    left = cycle([slot for slot in lines if slot not in taken] or lines)
    return {name: PALETTE[NAMES[name] if name in NAMES else next(left)] for name in names}
