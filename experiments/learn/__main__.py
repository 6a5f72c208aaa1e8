"""Say what is due, watch its file, and grade it on saving: python -m experiments.learn

The first run asks a question per concept, to find what was forgotten. In a pipe it says what is due, and ends.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import tyro

from experiments.drill.launch import Verdict
from experiments.learn.concepts import CONCEPTS
from experiments.shared import attempts, cli
from experiments.shared.show import say

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True)
class Config:
    progress: Flag = False
    """seconds and first tries per concept, over weeks, in place of a task"""
    out: Path = Path("runs/progress")
    """the folder for the picture of --progress"""


def main(config: Config) -> int:
    if config.progress:
        from experiments.learn import fluency

        cli.prepare(config.out)
        fluency.show(list(attempts.task_events()), time.time(), config.out)
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return list_due()
    return watch()


def list_due() -> int:
    """Print what is due and what comes first."""
    from experiments.learn.kinds import kinds
    from experiments.learn.schedule import due_concepts, is_placed, next_task

    events, now = list(attempts.task_events()), time.time()
    if not is_placed(events):
        say("first, in a terminal: just learn asks a question per concept, about ten minutes")
        return 0
    due = due_concepts(events, now)
    say("due: " + (", ".join(CONCEPTS[name].title for name in due) or "nothing"))
    found = next_task(events, now, kinds(lambda name, file: Verdict(False, [])))
    if found:
        say(f"first: {found.task} ({found.why})")
    return 0


def watch() -> int:
    """Return the loop in a terminal, a warm grader beside it."""
    from experiments.drill.catalogue import DRILLS
    from experiments.drill.warm import Grader
    from experiments.learn.keys import keys
    from experiments.learn.kinds import MODULES, kinds
    from experiments.learn.loop import Desk, learn, place
    from experiments.learn.schedule import is_placed

    def warm(task: str) -> None:
        kind, _, name = task.rpartition(":")
        if kind in MODULES:
            grader.warm(name, MODULES[kind].__name__)
        elif task in DRILLS:
            grader.warm(task)

    with Grader() as grader, keys() as key:
        grader.warm()  # while the first questions are read
        desk = Desk(key, time.time, say, kinds(grader.graded, grader.lines), warm, grader.is_loading)
        if is_placed(list(attempts.task_events())) or place(desk):
            learn(desk)
    return 0


def run() -> NoReturn:
    cli.run_tool(Config, main)


if __name__ == "__main__":
    run()
