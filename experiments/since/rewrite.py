"""A pair as an exercise: the file that a rewrite begins with, and the verdict on it."""

import re
import sys
from pathlib import Path

from experiments.drill import launch
from experiments.shared.source import definitions, imports
from experiments.since.pairs import Pair, pairs

FOLDER = launch.ROOT / "drills" / "since"
HEAD = '''"""{title}.

Today the old way {does}. Rewrite `new` in today's way: the same
arguments, the result that the old way was meant to give, and no warning.
{group}
    just since {name}           shows both ways
    just since {name} --check   grades this file
"""
'''
GROUP = "torchrun has started this process, one of one, and made its group.\n"


def place(name: str) -> Path:
    return FOLDER / f"{name}.py"


def begin(name: str) -> str:
    """Return the text of the file that the rewrite of a pair begins with: the old way, under the name `new`."""
    pair = pairs()[name]
    group = GROUP if pair.theme == "distributed" else ""
    head = HEAD.format(title=pair.title, does=does(pair), name=name, group=group)
    return f"{head}\n{way(pair, 'old')}"


def does(pair: Pair) -> str:
    """Return in words what the old way does today."""
    today = pair.today
    if today.does in ("warns", "raises"):
        return f"{today.does}" + (f" {today.error}" if today.error else "")
    return "is wrong, silently" if today.does == "is wrong" else f"costs {today.times:g} times as much"


def solution(name: str) -> str:
    """Return the text of a file that is right: today's way, as the pair has it."""
    return way(pairs()[name], "new")


def warm() -> None:
    """Load torch and the grader: from then on `grade` forks this process."""
    import experiments.since.grade  # noqa: F401


def way(pair: Pair, which: str) -> str:
    """Return `old` or `new` with what it uses, read from the source; it is named `new` in any case."""
    text = pair.file.read_text(encoding="utf-8")
    code = "\n".join(imports(text, which)) + "\n\n\n" + "\n\n\n".join(definitions(text, which)) + "\n"
    return re.sub(r"^def old\(", "def new(", code, flags=re.MULTILINE)


def grade(name: str, path: Path) -> list[str]:
    """Return what is wrong with the rewrite of a pair in a file, from a process of its own; nothing if it is right."""
    if "torch" not in sys.modules or sys.platform != "linux":
        verdict = launch.graded(name, path, grader="experiments.since.grade")
    else:
        from experiments.since import grade as grader

        verdict = launch.forked(grader.main, name, path.resolve())
    return [] if verdict.passed else verdict.lines
