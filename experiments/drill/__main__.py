"""Write functions from memory: python -m experiments.drill [NAME], then --check.

Without a name, list the drills. With one, write drills/NAME.py: imports, signature, docstring; the body is yours. The
tests that hold our function grade it. `next` is a drill that is due, or one that you have not yet passed. lab0 … lab7
are several functions in one file, held by the checks of that lab.
"""

import contextlib
import difflib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from experiments.drill import answer, cut, launch, prove, whole_lab
from experiments.drill.catalogue import DRILLS, WHOLES
from experiments.shared import attempts, cli
from experiments.shared.attempts import Standing
from experiments.shared.show import console, folded_code, say, table, wrapped

FOLDER = cut.FOLDER
DIFFICULTY = {name: drill.difficulty for name, drill in DRILLS.items()} | dict.fromkeys(WHOLES, 4)
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
        return attempts.next_drill(list(DIFFICULTY), DIFFICULTY, time.time())
    if name in DIFFICULTY:
        return name
    words = name.lower().replace("-", "_")
    known = [n for n, d in DRILLS.items() if words in n.lower() or words in d.topic.lower()]
    near = [*known, *(n for n in difflib.get_close_matches(name, DIFFICULTY, n=3, cutoff=0.0) if n not in known)]
    raise cli.UsageError(f"there is no drill {name!r}; the nearest are {', '.join(near[:3])}")


NARROW = 80
"""columns, below which the list of drills has no room for topics"""


def list_drills() -> int:
    standings, now, rows = attempts.standings(), time.time(), []
    for name, drill in DRILLS.items():
        s, topic = standings.get(name, Standing()), drill.topic.removeprefix("Lab ")
        best = minutes(s.best) + " ★" * s.star
        rows.append((name, topic, "●" * drill.difficulty, best, str(s.attempts or "-"), due(s, now)))
    for name in WHOLES:
        s = standings.get(name, Standing())
        topic = f"{name.removeprefix('lab')} · the whole of it"
        rows.append((name, topic, "●" * DIFFICULTY[name], minutes(s.best), str(s.attempts or "-"), due(s, now)))
    if console.width < NARROW:  # names are there to be typed: the topics give way
        rows = [(name, topic.partition(" ")[0], *rest) for name, topic, *rest in rows]
    passed = sum(s.passes > 0 for name, s in standings.items() if name in DIFFICULTY)
    table("From memory", ("drill", "lab", "", "best", "tries", "due"), rows)
    say(f"\n{passed} of {len(DIFFICULTY)} passed; just drill NAME begins one, just drill next picks it")
    return 0


def minutes(seconds: float | None) -> str:
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def due(s: Standing, now: float) -> str:
    if s.open:
        return "under way"
    if s.due is None:
        return "-"
    days = (s.due - now) / attempts.DAY
    return "now" if days <= 0 else "tomorrow" if days < 1.5 else f"in {days:.0f} days"


def place(name: str) -> Path:
    return FOLDER / f"{name}.py"


def shown(file: Path) -> str:
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def begin(name: str, *, blank: bool, reset: bool) -> int:
    """Write the drill's file, unless one is under way."""
    file, standing = place(name), attempts.standings().get(name, Standing())
    again = not standing.open and standing.due is not None and standing.due <= time.time()
    if file.exists() and not (reset or again):
        say(f"{shown(file)} is there already: --check grades it, --reset starts over")
        return 0
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        file.replace(file.with_suffix(".py.old"))
    file.write_text("" if blank else cut.cut_whole(WHOLES[name]) if name in WHOLES else cut.cut(name))
    attempts.record(name, "start", blank=blank)
    say(f"{shown(file)} is yours to write; then: just check-drill {name}")
    return 0


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
    before = attempts.standings().get(name, Standing())
    attempts.record(name, "check", passed=verdict.passed, star=verdict.star)
    for line in verdict.lines:
        say(line)
    if not verdict.passed:
        say("\nnot yet; --hint says more" if before.hints < len(hints_of(name)) else "\nnot yet")
        return 1
    now = attempts.standings()[name]
    if now.begun is None:
        say(f"\npassed, but not counted: just drill {name} --reset begins it")
        return 0
    took = f" in {minutes(time.time() - before.begun)}" if before.open and before.begun else ""
    star = ", with the star for the edges" if verdict.star else ", short of the star for the edges"
    star = "" if name in WHOLES else star  # a lab's checks have no edges
    say(f"\npassed{took}{star}; due again: {due(now, time.time())}; --show puts ours beside yours")
    return 0


def hints_of(name: str) -> tuple[str, ...]:
    return DRILLS[name].hints if name in DRILLS else (HINT_OF_A_WHOLE,)


def hint(name: str) -> int:
    """Print the hints so far and one more."""
    shown_before, hints = attempts.standings().get(name, Standing()).hints, hints_of(name)
    if shown_before < len(hints):
        attempts.record(name, "hint")
    for i, text in enumerate(hints[: shown_before + 1], start=1):
        say(f"{i} of {len(hints)}: {text}")
    if shown_before >= len(hints):
        say("there are no more")
    return 0


def show(name: str) -> int:
    """Print ours and yours, side by side where there is room."""
    file, standing = place(name), attempts.standings().get(name, Standing())
    if standing.open or not standing.passes:
        print(f"not before yours has passed: just check-drill {name}", file=sys.stderr)
        return 1
    from rich.syntax import Syntax
    from rich.table import Table

    yours = file.read_text() if file.exists() else ""
    places = WHOLES.get(name) or (DRILLS[name].of,)
    title = f"ours, {', '.join(where.replace(':', '.') for where in places)}"
    texts = {title: "\n\n".join(cut.source_of(where).text for where in places), f"yours, {shown(file)}": yours}
    widest = max((len(line) for text in texts.values() for line in text.splitlines()), default=0)
    side_by_side = console.width >= max(120, widest + 40)
    width = console.width // 2 - 2 if side_by_side else console.width
    highlight = Syntax("", "python", theme="ansi_light", background_color="default").highlight
    code = {title: highlight(folded_code(text, width)) for title, text in texts.items()}
    if side_by_side:
        beside = Table(*code, box=None, expand=True, padding=(0, 2, 0, 0), header_style="bold")
        beside.add_row(*code.values())
        console.print(beside)
    else:
        for title, text in code.items():
            print()
            wrapped("", title)
            print()
            console.print(text, soft_wrap=True)
    return 0


def run() -> NoReturn:
    cli.run_tool(Config, main)


if __name__ == "__main__":
    run()
