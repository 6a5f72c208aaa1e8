"""Write it from memory: python -m experiments.drill [NAME], then --check.

Without a name, the list. With one, drills/NAME.py: imports, signature, docstring, and the body is yours to write. The
tests that hold our function grade it. `next` is what is due, or what you have not yet passed.
"""

import contextlib
import difflib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from experiments.drill import cut, progress
from experiments.drill.catalogue import DRILLS
from experiments.drill.progress import Standing
from experiments.shared import cli
from experiments.shared.show import console, table

FOLDER = cut.ROOT / "drills"
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
    """start over; what is there is kept as NAME.py.old"""
    prove: Flag = False
    """grade the wrong and right answers that the graders are tested with, and count"""


def main(config: Config) -> int:
    if config.prove:
        from experiments.drill import prove  # here, not above: it may grade, which imports torch

        return prove.main([find(config.name)] if config.name else [])
    if not config.name:
        if config.check or config.blank or config.hint or config.show or config.reset:
            raise cli.UsageError("which drill? say its name first: just drill NAME --check; just drill lists them")
        list_drills()
        return 0
    asked = [flag for flag in ("check", "hint", "show") if getattr(config, flag)]
    begins = [flag for flag in ("blank", "reset") if getattr(config, flag)]
    if len(asked) > 1 or (asked and begins):
        raise cli.UsageError(f"{' '.join(f'--{flag}' for flag in asked + begins)}: one at a time")
    name = find(config.name)
    if config.check:
        return check(name)
    if config.hint:
        return hint(name)
    if config.show:
        return show(name)
    return begin(name, blank=config.blank, reset=config.reset)


def find(name: str) -> str:
    """The drill of that name; UsageError with the nearest ones if there is none."""
    if name == "next":
        return progress.next_drill(list(DRILLS), {n: d.difficulty for n, d in DRILLS.items()}, time.time())
    if name in DRILLS:
        return name
    words = name.lower().replace("-", "_")
    known = [n for n, d in DRILLS.items() if words in n.lower() or words in d.topic.lower()]
    near = [*known, *(n for n in difflib.get_close_matches(name, DRILLS, n=3, cutoff=0.0) if n not in known)]
    raise cli.UsageError(f"there is no drill {name!r}; the nearest are {', '.join(near[:3])}")


def list_drills() -> None:
    known, now = progress.standings(), time.time()
    rows = []
    for name, drill in DRILLS.items():
        s = known.get(name, Standing())
        topic = drill.topic.removeprefix("Lab ")
        rows.append((name, topic, "●" * drill.difficulty, minutes(s.best), str(s.attempts or "-"), due(s, now)))
    passed = sum(s.passes > 0 for name, s in known.items() if name in DRILLS)
    table("From memory", ("drill", "lab", "", "best", "tries", "due"), rows)
    console.print(
        f"\n{passed} of {len(DRILLS)} passed; just drill NAME begins one, just drill next picks it", markup=False
    )


def minutes(seconds: float | None) -> str:
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def due(s: Standing, now: float) -> str:
    if s.open:
        return "under way"
    if s.due is None:
        return "-"
    days = (s.due - now) / progress.DAY
    return "now" if days <= 0 else "tomorrow" if days < 1.5 else f"in {days:.0f} days"


def place(name: str) -> Path:
    return FOLDER / f"{name}.py"


def begin(name: str, *, blank: bool, reset: bool) -> int:
    """Write the file, unless there is one that is under way."""
    file, standing = place(name), progress.standings().get(name, Standing())
    again = not standing.open and standing.due is not None and standing.due <= time.time()
    if file.exists() and not (reset or again):
        console.print(
            f"{shown(file)} is there already: --check grades it, --reset starts over", markup=False, soft_wrap=True
        )
        return 0
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        file.replace(file.with_suffix(".py.old"))
    file.write_text("" if blank else cut.cut(name))
    progress.record(name, "start", blank=blank)
    console.print(f"{shown(file)} is yours to write; then: just check-drill {name}", markup=False, soft_wrap=True)
    return 0


def shown(file: Path) -> str:
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def check(name: str) -> int:
    file = place(name)
    if not file.exists():
        raise cli.UsageError(f"{shown(file)} is not there: just drill {name} begins it")
    from experiments.drill.launch import graded

    with (
        console.status("the tests that hold ours are run on yours") if console.is_terminal else contextlib.nullcontext()
    ):
        verdict = graded(name, file)
    was = progress.standings().get(name, Standing())
    progress.record(name, "check", passed=verdict.passed)
    for line in verdict.lines:
        console.print(line, markup=False, soft_wrap=True)
    if not verdict.passed:
        left = len(DRILLS[name].hints) - was.hints
        console.print(f"\nnot yet{'; --hint says more' if left > 0 else ''}", markup=False, soft_wrap=True)
        return 1
    now = progress.standings()[name]
    if now.begun is None:
        console.print(f"\npassed, but not counted: just drill {name} --reset begins it", markup=False, soft_wrap=True)
        return 0
    took = f" in {minutes(time.time() - was.begun)}" if was.open and was.begun else ""
    console.print(
        f"\npassed{took}; due again: {due(now, time.time())}; --show puts ours beside yours",
        markup=False,
        soft_wrap=True,
    )
    return 0


def hint(name: str) -> int:
    standing, hints = progress.standings().get(name, Standing()), DRILLS[name].hints
    if standing.hints < len(hints):
        progress.record(name, "hint")
    told = min(standing.hints + 1, len(hints))
    for i, text in enumerate(hints[:told], start=1):
        console.print(f"{i} of {len(hints)}: {text}", markup=False, soft_wrap=True)
    if standing.hints >= len(hints):
        console.print("there are no more", markup=False, soft_wrap=True)
    return 0


def show(name: str) -> int:
    """Side by side where there is room, else one under the other."""
    file, standing = place(name), progress.standings().get(name, Standing())
    if standing.open or not standing.passes:
        print(f"not before yours has passed: just check-drill {name}", file=sys.stderr)
        return 1
    from rich.syntax import Syntax
    from rich.table import Table

    ours, wanted = cut.source(name), DRILLS[name].of
    yours = file.read_text() if file.exists() else ""
    texts = {f"ours, {wanted.replace(':', '.')}": ours.text, f"yours, {shown(file)}": yours}
    code = {
        title: Syntax(text, "python", theme="ansi_light", background_color="default", word_wrap=True)
        for title, text in texts.items()
    }
    widest = max((len(line) for text in texts.values() for line in text.splitlines()), default=0)
    if console.width >= max(120, widest + 40):
        beside = Table(*code, box=None, expand=True, padding=(0, 2, 0, 0), header_style="bold")
        beside.add_row(*code.values())
        console.print(beside)
    else:
        for title, text in code.items():
            console.print(f"\n{title}\n", style="bold", markup=False, soft_wrap=True)
            console.print(text)
    return 0


def run() -> NoReturn:
    try:
        status = main(cli.parse_flags(Config, sys.argv[1:]))
    except cli.UsageError as error:
        cli.fail(2, str(error))
    except KeyboardInterrupt:
        cli.fail(130, "interrupted")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        cli.fail(1, f"{where}{error.strerror or error}")
    sys.exit(status)


if __name__ == "__main__":
    run()
