"""Run a mended program, within limits, and say in words what is wrong with it still.

    python -m experiments.gallery.grading FAILURE FILE VERDICT.json

`experiments.gallery.mine` starts this, in a process of its own, and ends it if it waits too long.
"""

import importlib
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch

from experiments.drill.answer import line_of
from experiments.drill.launch import Verdict, waits, write_verdict
from experiments.drill.limits import OutOfPatience, OutOfTime, awaited, limit_memory, timed
from experiments.gallery.failures import Failure, gallery
from experiments.gallery.failures.toys import descend, digits, mlp, perceptron
from experiments.gallery.seen import show_seen
from experiments.shared.errors import explain
from experiments.shared.show import console
from experiments.shared.source import run_file
from fn.losses import cross_entropy

SECONDS = 10.0
"""of computing, once the program starts; the slowest one of the gallery takes one"""
WALL_SECONDS = 60.0
"""of the clock, for a program that waits"""
SEED = 0
MOST_PRINTED = 10
"""lines of what the program prints"""


def grade(failure: Failure, file: Path) -> list[str]:
    """Run `program` of the file; return what is wrong with what it returns, nothing if it is mended."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed), timed(SECONDS), awaited(WALL_SECONDS):
            seen = _load(file).program(SEED)
    except KeyboardInterrupt:
        raise
    except OutOfTime as error:
        wrong = [f"not done after {SECONDS:g} s: is there a loop that does not end?", *line_of(error, file)]
    except OutOfPatience as error:
        wrong = [*waits(WALL_SECONDS).lines, *line_of(error, file)]
    except SystemExit as error:
        wrong = ["it leaves Python in the middle: sys.exit or SystemExit", *line_of(error, file)]
    except BaseException as error:
        wrong = [f"it stops with {explain(error).splitlines()[0]}", *line_of(error, file)]
    else:
        wrong = _wrong_with(seen, failure)
    lines = printed.getvalue().splitlines()
    said = ["", "it prints", *(f"  {line[:120]}" for line in lines[:MOST_PRINTED])] if lines else []
    return [*wrong, *said] if wrong else []


def _load(file: Path) -> Any:
    """Run the file under its own name, by which worker processes find it too."""
    sys.path.insert(0, str(file.parent))
    return run_file(file, file.stem)


def _wrong_with(seen: Any, failure: Failure) -> list[str]:
    run = failure.load()
    try:
        with console.capture() as shown:
            show_seen(seen)
        still, solved = run.shows(seen), run.solves(seen)
    except Exception as error:  # a program may return anything
        return [f"what it returns cannot be graded: {type(error).__name__}: {error}"]
    returned = ["", "it returns", *shown.get().splitlines()]
    if still:
        return [f"it shows the symptom still: {failure.symptom}", *returned]
    return [] if solved else [f"the symptom is gone, but it does not do its task: {failure.task}", *returned]


@cache
def warm() -> None:
    """Import what programs import, for seconds: by a descent on digits, an optimizer, the device meta."""
    x, y = digits()[0]
    descend(lambda p: cross_entropy(mlp(p, x), y), perceptron(0), lr=0.1, steps=1)
    importlib.import_module("torch._dynamo")
    torch.optim.Adam(torch.nn.Linear(1, 1).parameters()).step()
    torch.nn.Linear(1, 1, device="meta")(torch.ones(1, 1, device="meta"))


def main(name: str, file: Path, out: Path) -> None:
    """Grade, and write the verdict; a Ctrl-C ends this process in silence, as the one that asks says so."""
    torch.set_num_threads(1)
    warm()  # so that no program's clock runs while it imports; a fork of a warm process has it all
    limit_memory()
    try:
        wrong = grade(gallery()[name], file)
    except KeyboardInterrupt:
        sys.exit(130)
    write_verdict(Verdict(not wrong, wrong), out)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
