"""The watching loop: one task after the other, its file graded whenever it is saved."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.learn.concepts import CONCEPTS, hardest_first
from experiments.learn.keys import KeyReader
from experiments.learn.kinds import Grade, Kind
from experiments.learn.mistakes import named
from experiments.learn.questions import QUESTIONS
from experiments.learn.schedule import PLACED, next_task
from experiments.shared import attempts
from experiments.shared.answers import begin, shown
from experiments.shared.show import folded_code

POLL = 0.1
"""seconds between two looks at the file"""
SETTLED = 0.05
"""seconds in which a file that was saved no longer changes: an editor may empty it before it writes"""
PLACEMENT_SECONDS = 600.0


class Desk(NamedTuple):
    """The clock, the keys and the screen of the loop; a test has its own."""

    key: KeyReader
    now: Callable[[], float]
    say: Callable[[str], None]
    kinds: dict[str, Kind]
    prepare: Callable[[str], None] = lambda task: None
    """called with each task that begins, so that a grader can warm up"""
    loading: Callable[[], bool] = lambda: False
    """whether the grader is warming up still"""


def learn(desk: Desk) -> None:
    """Lead from task to task until q, or until nothing is left."""
    while found := next_task(list(attempts.task_events()), desk.now(), desk.kinds):
        desk.say(f"\n{found.task}  ({found.why})")
        if work(desk, found.task, resumed=found.why == "under way") == "quit":
            return
    desk.say("nothing is due")


def parts(desk: Desk, task: str) -> tuple[Kind, str]:
    kind, _, name = task.rpartition(":")
    return desk.kinds[kind], name


def work(desk: Desk, task: str, *, resumed: bool = False) -> str:
    """Watch one task's file until it is passed, skipped or left: "next" or "quit"."""
    kind, name = parts(desk, task)
    desk.prepare(task)
    file, passed = kind.place(name), False
    resumed = resumed and file.exists()
    hints = attempts.standings()[task].hints if resumed else 0
    if not resumed:
        begin(file, kind.begin(name), desk.say)
        attempts.record(task, "start")
    desk.say(f"{shown(file)} is yours to write, in your editor; it is graded when you save it\n{keys_of(kind, name)}")
    seen = stamp(file)
    while True:
        match desk.key(POLL):
            case "q":
                return "quit"
            case "s":
                if not passed:
                    attempts.record(task, "skip")
                return "next"
            case "\n" | "\r" | " " | "n" if passed:
                return "next"
            case "h":
                hints = hint(desk, task, hints)
            case "d":
                compare(desk, kind, name, passed=passed)
        now = stamp(file)
        if now != seen and now is not None:
            seen = settled(file)
            passed = grade(desk, task, file) or passed


def keys_of(kind: Kind, name: str) -> str:
    """Return the keys that do something in a task.

    >>> keys_of(Kind(str, Path, Grade, lambda name: ("Read the axes.",), None), "softmax")
    'h hint · s skip · q quit'
    """
    named_keys = {"h hint": kind.hints(name), "s skip": True, "d difference": kind.difference, "q quit": True}
    return " · ".join(key for key, works in named_keys.items() if works)


def stamp(file: Path) -> tuple[int, int, int] | None:
    """Return a mark that changes when a file is saved, in place or by a move; None while there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def settled(file: Path) -> tuple[int, int, int] | None:
    """Wait until a file is no longer being written; return its stamp."""
    now = stamp(file)
    while True:
        time.sleep(SETTLED)
        if (later := stamp(file)) == now:
            return now
        now = later


def compare(desk: Desk, kind: Kind, name: str, *, passed: bool) -> None:
    """Show ours beside theirs, once theirs has passed."""
    if kind.difference is None:
        desk.say("there is nothing to compare here")
    elif passed:
        kind.difference(name)
    else:
        desk.say("not before yours has passed")


def hint(desk: Desk, task: str, shown: int) -> int:
    """Say the next hint; return how many were shown."""
    kind, name = parts(desk, task)
    hints = kind.hints(name)
    if shown >= len(hints):
        desk.say("there are no more hints" if hints else "there are no hints here")
        return shown
    attempts.record(task, "hint")
    desk.say(f"{shown + 1} of {len(hints)}: {hints[shown]}")
    return shown + 1


def grade(desk: Desk, task: str, file: Path) -> bool:
    """Print the verdict on the file and record it; whether it passed."""
    kind, name = parts(desk, task)
    began = desk.now()
    once = " the grader is still loading torch and the tests: perhaps some seconds more, this once"
    desk.say(f"\ngrading …{once if desk.loading() else ''}")
    try:
        graded = kind.grade(name, file)
    except OSError as error:  # gone again between two looks
        graded = Grade(False, [f"{shown(file)} cannot be read: {error.strerror}"])
    mistake = None if graded.passed and graded.star else named(graded.lines)
    attempts.record(task, "check", passed=graded.passed, star=graded.star, **({"mistake": mistake} if mistake else {}))
    desk.say("\n".join(graded.lines))
    took = f"  ({desk.now() - began:.1f} s)"
    if not graded.passed:
        desk.say(f"not yet{took}; save it again" + (", or h for a hint" if kind.hints(name) else ""))
        return False
    star = " ★" if graded.star else ", without the star for the edges"
    ours = ", d shows the difference to ours" if kind.difference else ""
    desk.say(f"passed{star}{took}; Enter goes on{ours}")
    return True


def place(desk: Desk) -> bool:
    """Ask one question per concept, the hardest first; return False after q.

    Who knows a concept is not asked about those that it rests on directly: one answer may be luck, and vouches for no
    more than these.
    """
    known, asked, began = set[str](), set[str](), desk.now()
    for event in attempts.task_events():  # of a placement that was left
        if event["event"] == "place":
            asked.add(event["drill"].removeprefix("concept:"))
            known |= {event["drill"].removeprefix("concept:")} if event.get("known") is True else set()
    desk.say("Which of it is still there? One question per concept, the hardest first: what does this print?")
    desk.say("1 to 4 answers, 0 says that you do not know, s ends the questions, q quits")
    for concept in hardest_first():
        if concept in asked or desk.now() - began > PLACEMENT_SECONDS:
            continue
        left = sum(concept not in asked for concept in CONCEPTS)
        answer = pose(desk, concept, f"at most {left} to go" if left > 1 else "the last")
        if answer == "q":
            return False
        if answer == "s":
            break
        asked.add(concept)
        q = QUESTIONS[CONCEPTS[concept].question]
        right = answer == str(q.right)
        desk.say(f"{'right' if right else f'it is {q.right}' if answer == '0' else f'no, it is {q.right}'}: {q.why}")
        attempts.record(f"concept:{concept}", "place", known=right)
        for needed in sorted({*CONCEPTS[concept].needs} - asked) if right else ():
            asked.add(needed)
            known.add(needed)
            attempts.record(f"concept:{needed}", "place", known=True, asked=False)
        known |= {concept} if right else set()
    attempts.record(PLACED, "place")
    gone = [CONCEPTS[c].title for c in CONCEPTS if c in asked - known]
    desk.say(
        f"\n{len(known)} of {len(asked)} concepts are there"
        + (f", {unasked} were not asked" if (unasked := len(CONCEPTS) - len(asked)) else "")
        + (f"; to begin with: {', '.join(gone)}" if gone else "")
    )
    return True


def pose(desk: Desk, concept: str, left: str) -> str:
    """Ask the question of a concept; return the key that answers."""
    q = QUESTIONS[CONCEPTS[concept].question]
    desk.say(f"\n{CONCEPTS[concept].title} ({left})\n")
    desk.say(folded_code("\n".join(f"  {line}" for line in q.code.splitlines())) + "\n")
    desk.say("\n".join(f"{number}  {choice}" for number, choice in enumerate(q.choices, start=1)))
    while (key := desk.key(POLL)) not in ("0", "1", "2", "3", "4", "q", "s"):
        continue
    return key
