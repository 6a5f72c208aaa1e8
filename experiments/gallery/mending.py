"""Mend a broken program on the command line: just break NAME --mine, then --check, then the question why."""

import contextlib
import random

from experiments.gallery import mine
from experiments.shared import answers, attempts
from experiments.shared.answers import shown
from experiments.shared.flags import UsageError
from experiments.shared.show import console, say, wrapped


def main(name: str, *, check: bool, reset: bool) -> int:
    """Begin, grade, or start over; 1 if a graded program is not mended."""
    if check and reset:
        raise UsageError("--check --reset: one at a time")
    if not name and (check or reset):
        raise UsageError("which one? say its name: just break NAME --mine --check")
    return grade(name) if check else begin(name or pick(), reset=reset)


def pick() -> str:
    """Return the case of a failure whose file is not there yet: never asked in the quiz, or often missed."""
    from experiments.gallery.quiz import load_score, order  # here, not above: the list need not wait for it

    cases = (mine.case(failure.name) for failure in order(load_score(), random.Random()))
    fresh = next((case for case in cases if not mine.place(case).exists()), None)
    if fresh is None:
        raise UsageError(f"all cases are in {shown(mine.FOLDER)}: just break NAME --mine --reset begins one anew")
    return fresh


def begin(name: str, *, reset: bool) -> int:
    """Write the file, unless one is there; say what the program should do, and how to run and to grade it."""
    file = mine.place(name)
    if file.exists() and not reset:
        say(f"{shown(file)} is there already: --check grades it, --reset starts over")
        return 0
    answers.begin(file, mine.begin(name))
    attempts.record(mine.task(name), "start")
    say(f"{shown(file)} is yours to mend")
    wrapped("Should   ", mine.named(name).task)
    wrapped("Run      ", f"python -m drills.bugs.{name}")
    wrapped("Grade    ", f"just break {name} --mine --check")
    return 0


def grade(name: str) -> int:
    """Grade the file; where it is mended, ask for the cause, and keep the answer in the score of the quiz."""
    file = mine.place(name)
    if not file.exists():
        raise UsageError(f"{shown(file)} is not there: just break {name} --mine begins it")
    waiting = console.status("your program is run")
    with waiting if console.is_terminal else contextlib.nullcontext():
        wrong = mine.grade(name, file)
    attempts.record(mine.task(name), "check", passed=not wrong)
    for line in wrong:
        wrapped("", line) if len(line) > console.width else say(line)
    if wrong:
        say("\nnot yet")
        return 1
    say("mended: the symptom is gone, and the task is done")
    ask_for_the_cause(name)
    return 0


def ask_for_the_cause(name: str) -> None:
    from experiments.gallery.quiz import ask, choices, keep, load_score, offer, tell

    failure, score = mine.named(name), load_score()
    four = choices(failure, random.Random())
    console.print("\nWhich cause did it have? 1 to 4; q leaves it open.")
    offer(four)
    answer = ask()
    if answer is not None:
        hit = four[answer - 1] is failure
        tell(failure, hit, four.index(failure) + 1)
        keep(score, failure.name, hit)
