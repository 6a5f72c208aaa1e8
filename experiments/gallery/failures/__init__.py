"""The gallery of failures: a folder per kind, and in it a file each.

All files have one form, and a new failure is a new file. The docstring
is the cause in one line, then a paragraph each: Expect, the question
before it runs; Cause; Find; Fix; and Checks, the answer of the shape
checks, "caught by fn.module.function: …" or "blind: …". A last paragraph,
Akin, may name other failures with the same symptom, which the quiz does
not offer beside this one. Then:

    broken(seed) -> Seen   runs the mistake as people write it
    fixed(seed) -> Seen    runs the same without the mistake
    shows(seen) -> bool    tells whether a run has the symptom that the
                           docstring of `shows` states
    solves(seen) -> bool   tells whether a run does the task that the
                           docstring of `solves` states, for whoever
                           mends `broken` in a way of their own
    checked(seed)          makes the mistake with functions of fn, whose
                           checks may refuse it; without it, `broken`

All texts are read from the source, so that the list needs no torch.
"""

import ast
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

Seen = dict[str, Any]
"""the results of a run: numbers, texts, and curves as lists of numbers"""

KINDS = (
    "shape",
    "device",
    "dtype",
    "autograd",
    "optimisation",
    "data",
    "evaluation",
    "tools",
)
PARTS = ("Expect", "Cause", "Find", "Fix", "Checks")


class Failure(NamedTuple):
    """A failure as its source describes it."""

    name: str
    kind: str
    title: str
    """the cause, in one line"""
    symptom: str
    task: str
    """what the program does once it is mended"""
    parts: dict[str, str]
    """a paragraph for each of PARTS"""
    akin: frozenset[str]
    """names of failures with the same symptom"""

    @property
    def file(self) -> Path:
        return Path(__file__).parent / self.kind / f"{self.name}.py"

    @property
    def catcher(self) -> str | None:
        """Return what refuses the mistake; None if all are blind."""
        caught = re.match(r"caught by (fn[\w.]*\w)", self.parts["Checks"])
        return caught[1] if caught else None

    def load(self) -> "Runnable":
        """Import the functions of the failure, and torch with them."""
        module = import_module(f"{__name__}.{self.kind}.{self.name}")
        return Runnable(
            module.broken,
            module.fixed,
            module.shows,
            module.solves,
            getattr(module, "checked", module.broken),
        )


class Runnable(NamedTuple):
    """The functions of a failure; see the top of this file."""

    broken: Callable[..., Seen]
    fixed: Callable[..., Seen]
    shows: Callable[[Seen], bool]
    solves: Callable[[Seen], bool]
    checked: Callable[..., Any]


@cache
def gallery() -> dict[str, Failure]:
    """Return every failure by name, kind after kind."""
    files = [
        file
        for kind in KINDS
        for file in sorted(Path(__file__).parent.glob(f"{kind}/*.py"))
    ]
    return {file.stem: read(file) for file in files}


def read(file: Path) -> Failure:
    """Read a file; ValueError for one that is not of the form."""
    source = ast.parse(file.read_text(encoding="utf-8"))
    title, *paragraphs = re.split(
        r"\n\s*\n", ast.get_docstring(source) or ""
    )
    parts = dict(map(_part, paragraphs))
    akin = frozenset(re.findall(r"\w+", parts.pop("Akin", "")))
    told = {
        f.name: _one_line(ast.get_docstring(f) or "")
        for f in source.body
        if isinstance(f, ast.FunctionDef)
    }
    if tuple(parts) != PARTS or not {"shows", "solves"} <= set(told):
        form = f"{', '.join(PARTS)}, and functions `shows` and `solves`"
        raise ValueError(f"{file} is not of the form: {form}")
    return Failure(
        file.stem,
        file.parent.name,
        _one_line(title),
        told["shows"],
        told["solves"],
        parts,
        akin,
    )


def _part(paragraph: str) -> tuple[str, str]:
    head, _, text = paragraph.partition(": ")
    return head, _one_line(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())
