"""Old idioms and today's: a folder per theme, and in it a file per pair.

All files have one form, and a new pair is a new file. The docstring is
what changed, in one line, then a paragraph each: Old and New, the idiom
in a few words; Since, the version with which it changed, "1.9" or
"torchvision 0.13"; Today, what the old way does on the installed torch:

    warns "words of the warning"
    raises TypeOfError "words of the message"
    is wrong, silently: how
    costs 8 times as much: unit of the cost

Why; Read, names whose docstrings say more; and Gone, pieces of code that
a rewrite no longer has, parted by two spaces, or nothing. Then:

    given(seed) -> tuple   draws the arguments
    old(*given)            is the old idiom as people wrote it
    new(*given)            does the same in today's
    wanted(*given)         is the result to reach, found in another way
    cost(f, *given) -> int counts what one call costs, if Today says "costs"

All texts are read from the source, so that the list needs no torch.
"""

import ast
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

THEMES = (
    "tensors",
    "autograd",
    "layers",
    "training",
    "speed",
    "distributed",
    "vision",
)
PARTS = ("Old", "New", "Since", "Today", "Why", "Read", "Gone")
FUNCTIONS = {"given", "old", "new", "wanted"}
YEARS = {
    2017: ("0.3",),
    2018: ("0.4", "0.4.1", "1.0"),
    2019: ("1.1", "1.2", "1.3"),
    2020: ("1.4", "1.5", "1.6", "1.7"),
    2021: ("1.8", "1.9", "1.10"),
    2022: ("1.11", "1.12", "1.13", "torchvision 0.13"),
    2023: ("2.0", "2.1", "torchvision 0.16"),
    2024: ("2.2", "2.3", "2.4", "2.5"),
    2025: ("2.6", "2.7", "2.8", "2.9"),
}


class Today(NamedTuple):
    """The effect of the old way on the installed torch."""

    does: str
    """warns, raises, is wrong, or costs"""
    words: str = ""
    """of the warning or the error; how it is wrong; the unit of the cost"""
    error: str = ""
    """the type of the error"""
    times: float = 0.0
    """how many times the cost of the new way, at least"""

    @property
    def short(self) -> str:
        """Return two or three words for the list."""
        if self.does == "raises":
            return self.error
        return (
            f"costs × {self.times:g}" if self.does == "costs" else self.does
        )


class Pair(NamedTuple):
    """A pair as its source describes it."""

    name: str
    theme: str
    title: str
    parts: dict[str, str]
    """a paragraph for each of PARTS"""
    file: Path

    @property
    def year(self) -> int:
        """Return the year of the version with which it changed."""
        since = self.parts["Since"]
        return next(y for y, versions in YEARS.items() if since in versions)

    @property
    def today(self) -> Today:
        return read_today(self.parts["Today"])

    @property
    def gone(self) -> list[str]:
        """Return the pieces of code that a rewrite no longer has."""
        pieces = re.split(r"\s{2,}", self.parts["Gone"])
        return [piece for piece in pieces if piece != "nothing"]

    def load(self) -> "Runnable":
        """Import the functions of the pair, and torch with them."""
        module = import_module(f"{__name__}.{self.theme}.{self.name}")
        return Runnable(
            module.given,
            module.old,
            module.new,
            module.wanted,
            getattr(module, "cost", None),
        )


class Runnable(NamedTuple):
    """The functions of a pair; see the top of this file."""

    given: Callable[[int], tuple[Any, ...]]
    old: Callable[..., Any]
    new: Callable[..., Any]
    wanted: Callable[..., Any]
    cost: Callable[..., int] | None


@cache
def pairs() -> dict[str, Pair]:
    """Return every pair by name, the oldest change first."""
    files = [
        f for t in THEMES for f in Path(__file__).parent.glob(f"{t}/*.py")
    ]
    read_all = sorted(map(read, files), key=lambda p: (p.year, p.name))
    return {pair.name: pair for pair in read_all}


def read(file: Path) -> Pair:
    """Read a file; ValueError for one that is not of the form."""
    source = ast.parse(file.read_text(encoding="utf-8"))
    docstring = ast.get_docstring(source) or ""
    title, *paragraphs = re.split(r"\n\s*\n", docstring)
    parts = dict(map(_part, paragraphs))
    defined = {
        f.name for f in source.body if isinstance(f, ast.FunctionDef)
    }
    if tuple(parts) != PARTS or not defined >= FUNCTIONS:
        form = ", ".join([*PARTS, *sorted(FUNCTIONS)])
        raise ValueError(f"{file} is not of the form: {form}")
    return Pair(
        file.stem, file.parent.name, " ".join(title.split()), parts, file
    )


def read_today(text: str) -> Today:
    """Read what the old way does; ValueError if it is not of the form."""
    if found := re.fullmatch(r'warns "(.+)"', text):
        return Today("warns", found[1])
    if found := re.fullmatch(r'raises (\w+) "(.+)"', text):
        return Today("raises", found[2], found[1])
    if found := re.fullmatch(r"is wrong, silently: (.+)", text):
        return Today("is wrong", found[1])
    if found := re.fullmatch(r"costs ([\d.]+) times as much: (.+)", text):
        return Today("costs", found[2], times=float(found[1]))
    raise ValueError(f"not warns, raises, is wrong or costs: {text}")


def _part(paragraph: str) -> tuple[str, str]:
    head, _, text = paragraph.partition(": ")
    gap = "  " if head == "Gone" else " "
    return head, gap.join(line.strip() for line in text.splitlines())
