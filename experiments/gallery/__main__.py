"""The gallery of failures: a mistake, what you expect of it, what it does, its cause, and the fix, live.

Without a name, prints the list.
"""

import difflib
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.gallery import mending, mine
from experiments.gallery.failures import Failure, gallery
from experiments.shared import cli
from experiments.shared.show import console, wrapped

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config(cli.Config):
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = ""
    """the failure to look at"""
    out: Path = Path("runs/break")
    """the folder for pictures and summary.json"""
    all: bool = False
    """every failure, one after the other, without asking"""
    quiz: bool = False
    """symptoms, each with four causes, those never asked and often missed first; a new order unless --seed is given"""
    mine: bool = False
    """the broken program in drills/bugs/NAME.py, for you to mend; without a name one that you have not met"""
    check: bool = False
    """with --mine: grade what you have made of it, and ask for the cause"""
    reset: bool = False
    """with --mine: start over; the file so far is kept as NAME.py.old"""
    table: bool = False
    """the list as the README has it"""


def parse(config_type: type[Config], argv: Sequence[str]) -> Config:
    """Return the config from the flags; prints the list or the table and exits where that is asked for."""
    config = cli.parse(config_type, argv)
    if sum(map(bool, (config.name or config.mine, config.all, config.quiz, config.table))) > 1:
        raise cli.UsageError("one thing at a time: a name, --all, --quiz or --table")
    if (config.check or config.reset) and not config.mine:
        raise cli.UsageError("--check and --reset are for a program of yours: just break NAME --mine --check")
    if config.table:
        print("\n".join(markdown()))
        sys.exit(0)
    if not (config.name or config.all or config.quiz or config.mine):
        list_gallery()
        sys.exit(0)
    if config.quiz and not any(flag.partition("=")[0] == "--seed" for flag in argv):
        config = replace(config, seed=secrets.randbelow(1000))
    name = config.name.replace("-", "_")
    if name and mine.find(name) is None:
        nearest = difflib.get_close_matches(name, gallery(), n=3, cutoff=0.0)
        raise cli.UsageError(f"there is no failure {config.name!r}; the nearest are {', '.join(nearest)}")
    if config.mine:
        sys.exit(mending.main(name, check=config.check, reset=config.reset))
    return replace(config, name=name)


def _by_kind() -> list[tuple[str, list[Failure]]]:
    return [(kind, list(failures)) for kind, failures in groupby(gallery().values(), lambda failure: failure.kind)]


def list_gallery() -> None:
    """Print the name and the title of every failure."""
    widest = max(map(len, gallery())) + 2
    for kind, failures in _by_kind():
        console.print(f"\n{kind}", style="bold")
        for failure in failures:
            wrapped(f"  {failure.name}".ljust(widest + 2), failure.title, style="")
    console.print(
        f"\n{len(gallery())} failures. just break NAME runs one, --all every one, --quiz asks you, "
        "--mine gives you one to mend.",
        markup=False,
    )


def markdown() -> list[str]:
    """Return the table of the README, a row per failure."""
    rows = ["| | `just break …` | what is wrong | shape checks |", "|---|---|---|---|"]
    for kind, failures in _by_kind():
        for i, failure in enumerate(failures):
            answer = f"`{failure.catcher.rpartition('.')[2]}` refuses it" if failure.catcher else "blind"
            rows.append(f"| {'' if i else kind} | `{failure.name}` | {failure.title} | {answer} |")
    return rows


def main(config: Config, device: "torch.device") -> list[cli.Check]:
    # here, not above: torch takes seconds, which the list need not wait for
    from experiments.gallery.breaking import in_one, present
    from experiments.gallery.quiz import quiz

    if config.quiz:
        quiz(config.seed, device)
        return []
    if config.name:
        return present(mine.named(config.name), config, device, ask=sys.stdin.isatty())
    return [in_one(present(failure, config, device)) for failure in gallery().values()]


if __name__ == "__main__":
    cli.run(Config, main, parse)
