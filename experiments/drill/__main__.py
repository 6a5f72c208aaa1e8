"""Write functions from memory: python -m experiments.drill [NAME], then --check.

Without a name, list the drills. With one, write drills/NAME.py: imports, signature, docstring; the body is yours. The
tests that hold our function grade it. `next` is a drill that is due, or one that you have not yet passed. lab0 … lab7
are several functions in one file, held by the checks of that lab.
"""

import contextlib
import difflib
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from experiments.drill import answer, cut, launch, prove, spacing, whole_lab
from experiments.drill.catalogue import DRILLS, WHOLES
from experiments.drill.spacing import DIFFICULTY, clock, in_days
from experiments.shared import answers, attempts, cli
from experiments.shared.answers import shown
from experiments.shared.attempts import Standing
from experiments.shared.show import console, say, table

FOLDER = cut.FOLDER
HINT_OF_A_WHOLE = "How the lab calls each function says what it takes and returns: read the lines around the calls."
Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True)
class Config:
    name: Annotated[str, tyro.conf.Positional] = ""
    """a drill of the list, or next"""
    check: Flag = False
    """grade drills/NAME.py"""
    blank: Flag = False
    """begin with an empty file: the name and the signature from memory too"""
    hint: Flag = False
    """one hint more"""
    show: Flag = False
    """ours beside yours, once yours has passed"""
    reset: Flag = False
    """start over; the file so far is kept as NAME.py.old"""
    prove: Flag = False
    """grade the wrong and right answers that the graders are tested with, and count"""


def main(config: Config) -> int:
    if config.prove:
        name = find(config.name) if config.name else ""
        if name in WHOLES:
            raise cli.UsageError(f"--prove: {name} is held by the checks of the lab; just prove -k whole proves that")
        return prove.main([name] if name else [])
    flags = [flag for flag in ("check", "hint", "show", "blank", "reset") if getattr(config, flag)]
    if not config.name:
        if flags:
            raise cli.UsageError("which drill? say its name first: just drill NAME --check; just drill lists them")
        return list_drills()
    if len(flags) > 1 and flags != ["blank", "reset"]:
        raise cli.UsageError(f"{' '.join(f'--{flag}' for flag in flags)}: one at a time")
    name = find(config.name)
    if config.check:
        return check(name)
    if config.hint:
        return hint(name)
    if config.show:
        return show(name)
    return begin(name, blank=config.blank, reset=config.reset)


def find(name: str) -> str:
    """Return the drill of that name, or the next one; UsageError with the nearest names if there is none."""
    if name == "next":
        return spacing.next_drill(DIFFICULTY, attempts.task_events(), time.time())
    if name in DIFFICULTY:
        return name
    words = name.lower().replace("-", "_")
    known = [n for n, d in DRILLS.items() if words in n.lower() or words in d.topic.lower()]
    near = [*known, *(n for n in difflib.get_close_matches(name, DIFFICULTY, n=3, cutoff=0.0) if n not in known)]
    raise cli.UsageError(f"there is no drill {name!r}; the nearest are {', '.join(near[:3])}")


NARROW = 80
"""columns, below which the list of drills has no room for topics"""


def list_drills() -> int:
    """Print a row per drill; a try goes from its beginning to a pass or a skip, as in `just progress`."""
    standings, ended = attempts.standings(), spacing.tries(attempts.task_events())
    again, counts = spacing.due(ended), Counter(t.task for t in ended)
    rows = []
    for name in DIFFICULTY:
        s = standings.get(name, Standing())
        topic = DRILLS[name].topic if name in DRILLS else f"{name.removeprefix('lab')} · the whole of it"
        topic = topic.removeprefix("Lab ")
        if console.width < NARROW:  # names are there to be typed: the topics give way
            topic = topic.partition(" ")[0]
        best = clock(s.best) + "★" * s.star
        when = "under way" if s.open else in_days(again.get(name), time.time())
        rows.append((name, topic, "●" * DIFFICULTY[name], best, str(counts[name] or "-"), when))
    passed = sum(s.passes > 0 for name, s in standings.items() if name in DIFFICULTY)
    table("From memory", ("drill", "lab", "", "best", "tries", "due"), rows)
    say(f"\n{passed} of {len(DIFFICULTY)} passed; just drill NAME begins one, just drill next picks it")
    return 0


def place(name: str) -> Path:
    return FOLDER / f"{name}.py"


def standing_in(name: str) -> Standing:
    return attempts.standings().get(name, Standing())


def due(name: str) -> float | None:
    """Return when the drill is due again, in seconds since 1970; None if it was never passed."""
    return spacing.due(spacing.tries(attempts.task_events())).get(name)


def begin(name: str, *, blank: bool, reset: bool) -> int:
    """Write the drill's file, unless one is under way."""
    file = place(name)
    when = due(name)
    again = not standing_in(name).open and when is not None and when <= time.time()
    if file.exists() and not (reset or again):
        say(f"{shown(file)} is there already: --check grades it, --reset starts over")
        return 0
    answers.begin(file, "" if blank else text(name))
    attempts.record(name, "start", blank=blank)
    say(f"{shown(file)} is yours to write; then: just check-drill {name}")
    return 0


def text(name: str) -> str:
    """Return the file that a drill begins with."""
    return cut.cut_whole(WHOLES[name]) if name in WHOLES else cut.cut(name)


def check(name: str) -> int:
    """Grade the drill's file and record the attempt; 0 if it passes."""
    file = place(name)
    if not file.exists():
        raise cli.UsageError(f"{shown(file)} is not there: just drill {name} begins it")
    waiting = console.status("the tests that hold ours are run on yours")
    if name in WHOLES:
        verdict = whole_lab.check(name, file)
    elif lines := answer.refusal(name, file):
        verdict = launch.Verdict(False, lines)
    else:
        with waiting if console.is_terminal else contextlib.nullcontext():
            verdict = launch.graded(name, file)
    before = standing_in(name)
    attempts.record(name, "check", passed=verdict.passed, star=verdict.star)
    for line in verdict.lines:
        say(line)
    if not verdict.passed:
        say("\nnot yet; --hint says more" if before.hints < len(hints_of(name)) else "\nnot yet")
        return 1
    if standing_in(name).begun is None:
        say(f"\npassed, but not counted: just drill {name} --reset begins it")
        return 0
    took = f" in {clock(time.time() - before.begun)}" if before.open and before.begun else ""
    star = ", with the star for the edges" if verdict.star else ", short of the star for the edges"
    star = "" if name in WHOLES else star  # a lab's checks have no edges
    say(f"\npassed{took}{star}; due again: {in_days(due(name), time.time())}; --show puts ours beside yours")
    return 0


def hints_of(name: str) -> tuple[str, ...]:
    return DRILLS[name].hints if name in DRILLS else (HINT_OF_A_WHOLE,)


def hint(name: str) -> int:
    """Print the hints so far and one more."""
    shown_before, hints = standing_in(name).hints, hints_of(name)
    if shown_before < len(hints):
        attempts.record(name, "hint")
    for i, text in enumerate(hints[: shown_before + 1], start=1):
        say(f"{i} of {len(hints)}: {text}")
    if shown_before >= len(hints):
        say("there are no more")
    return 0


def show(name: str) -> int:
    """Print ours and yours, side by side where there is room."""
    file, standing = place(name), standing_in(name)
    if standing.open or not standing.passes:
        print(f"not before yours has passed: just check-drill {name}", file=sys.stderr)
        return 1
    places = WHOLES.get(name) or (DRILLS[name].of,)
    title = ", ".join(where.replace(":", ".") for where in places)
    answers.compare(title, ours(name), file)
    return 0


def ours(name: str) -> str:
    """Return the source of ours; that of a drill with the functions beside it that only ours may call."""
    if name in WHOLES:
        return "\n\n".join(cut.source_of(where).text for where in WHOLES[name])
    module = DRILLS[name].of.partition(":")[0]
    helpers = (cut.source_of(f"{module}:{helper}").text for helper in cut.helpers(name))
    return "\n\n".join([cut.source(name).text, *helpers])


def run() -> NoReturn:
    cli.run_tool(Config, main)


if __name__ == "__main__":
    run()
