"""What changed in PyTorch since about 2018: old idioms and today's, as dated pairs that run.

Without a name, prints the list.
"""

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.shared import answers, attempts, cli
from experiments.shared.answers import shown
from experiments.shared.show import console, say, wrapped
from experiments.since import rewrite
from experiments.since.pairs import pairs

if TYPE_CHECKING:
    import torch

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True)
class Config(cli.Config):
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = ""
    """the pair to look at"""
    out: Path = Path("runs/since")
    """the folder for summary.json"""
    all: Flag = False
    """every pair, one after the other, without asking"""
    mine: Flag = False
    """write drills/since/NAME.py: the old way, for you to rewrite"""
    check: Flag = False
    """grade drills/since/NAME.py"""
    reset: Flag = False
    """with --mine: start over; the file so far is kept as NAME.py.old"""
    table: Flag = False
    """the list as the README has it"""


def parse(config_type: type[Config], argv: Sequence[str]) -> Config:
    """Return the config from the flags; does what needs no torch, and exits, where that is asked for."""
    config = cli.parse(config_type, argv)
    if sum((config.all, config.mine, config.check, config.table)) > 1:
        raise cli.UsageError("one thing at a time: --all, --mine, --check or --table")
    if config.name and (config.all or config.table):
        raise cli.UsageError("one thing at a time: a name, --all or --table")
    if (config.mine or config.check or config.reset) and not config.name:
        raise cli.UsageError("which pair? say its name first: just since NAME --mine; just since lists them")
    if config.reset and not config.mine:
        raise cli.UsageError("--reset goes with --mine: just since NAME --mine --reset")
    if config.table:
        print("\n".join(markdown()))
        sys.exit(0)
    if not (config.name or config.all):
        list_pairs()
        sys.exit(0)
    config = replace(config, name=find(config.name) if config.name else "")
    if config.mine:
        sys.exit(begin(config.name, reset=config.reset))
    if config.check:
        sys.exit(check(config.name))
    return config


def find(name: str) -> str:
    """Return the pair of that name; UsageError with the nearest names if there is none."""
    name = name.replace("-", "_")
    if name in pairs():
        return name
    near = difflib.get_close_matches(name, pairs(), n=3, cutoff=0.0)
    raise cli.UsageError(f"there is no pair {name!r}; the nearest are {', '.join(near)}")


def list_pairs() -> None:
    """Print year, name, and what the old way does today; below, the old way and the new one."""
    widest = max(map(len, pairs()))
    year = None
    for pair in pairs().values():
        shown = "" if pair.year == year else str(pair.year)
        year = pair.year
        console.print(f"{shown:4}  [bold]{pair.name:{widest}}[/bold]  {pair.today.short}")
        wrapped("      ", pair.parts["Old"], style="")
        wrapped("    → ", pair.parts["New"], style="")
    console.print(
        f"\n{len(pairs())} pairs. just since NAME runs one, --all every one,\nNAME --mine has you rewrite it.",
        markup=False,
    )


def markdown() -> list[str]:
    """Return the table of the README, a row per pair."""
    rows = ["| | `just since …` | old | today's | the old one, today |", "|---|---|---|---|---|"]
    year = None
    for pair in pairs().values():
        old, new = (f"`{pair.parts[which]}`" for which in ("Old", "New"))
        shown = "" if pair.year == year else pair.year
        rows.append(f"| {shown} | `{pair.name}` | {old} | {new} | {pair.today.short} |")
        year = pair.year
    return rows


def begin(name: str, *, reset: bool) -> int:
    """Write the file of a rewrite, unless there is one."""
    file = rewrite.place(name)
    if file.exists() and not reset:
        say(f"{shown(file)} is there already: --check grades it, --mine --reset starts over")
        return 0
    answers.begin(file, rewrite.begin(name))
    attempts.record(f"rewrite:{name}", "start")
    say(f"{shown(file)} is yours to rewrite; then: just since {name} --check")
    return 0


def check(name: str) -> int:
    """Grade the file of a rewrite; 0 if it is right."""
    file = rewrite.place(name)
    if not file.exists():
        raise cli.UsageError(f"{shown(file)} is not there: just since {name} --mine writes it")
    lines = rewrite.grade(name, file)
    attempts.record(f"rewrite:{name}", "check", passed=not lines)
    for line in lines or ["right: the result that is wanted, no warning, nothing of the old way"]:
        wrapped("", line) if line == line.lstrip() else wrapped("  ", line.strip(), style="")
    return 1 if lines else 0


def main(config: Config, device: "torch.device") -> list[cli.Check]:
    # here, not above: torch takes seconds, which the list need not wait for
    from experiments.since.running import in_one
    from experiments.since.telling import present

    if config.name:
        return present(pairs()[config.name], seed=config.seed, ask=sys.stdin.isatty())
    return [in_one(present(pair, seed=config.seed)) for pair in pairs().values()]


if __name__ == "__main__":
    cli.run(Config, main, parse)
