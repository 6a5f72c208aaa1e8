"""Predict, then measure: before the value of a check is shown, the learner says what it will be.

A check asks at the moment when it is made, so that names and targets stand in the lab alone. Until then the tables that
would tell its value wait, and the bars of progress say no loss. The target is told with the measured value: a question
that names it would ask for nothing.
"""

import contextlib
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import TextIO, TypeVar

from rich.console import Console

from experiments.shared import attempts, checks, show
from experiments.shared.checks import Check, Order
from experiments.shared.flags import UsageError
from experiments.shared.predictions import EVENT, Prediction, Ranking, past, record_of, told

T = TypeVar("T")
NUMBER = "a number such as 0.97, 97% or 1e-5"


class Waiting(io.TextIOBase):
    """A stream in place of the terminal: what is printed waits, lest it tell a value that is still to be asked for."""

    def __init__(self, terminal: TextIO) -> None:
        self.terminal, self.text = terminal, ""
        self.answered = False
        """whether all that waits has been asked about: then it goes out before anything new"""
        self.passes = False
        """whether nothing waits any more"""

    @property
    def encoding(self) -> str:  # pyright: ignore
        return self.terminal.encoding

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.answered:
            self.release()
        self.text += text
        if self.passes:
            self.release()
        return len(text)

    def release(self) -> None:
        self.terminal.write(self.text)
        self.terminal.flush()
        self.text, self.answered = "", False


@dataclass
class Questions:
    """The questions of one run, and their answers."""

    lab: str
    printed: Waiting
    """tables: each waits until the checks after it have been asked about"""
    logged: Waiting
    """what a run says of its steps waits until the end"""
    answers: list[Prediction | Ranking] = field(default_factory=list)
    asked: int = 0
    seconds: float = 0.0
    """of thinking, which are not the lab's"""

    def numbers(self) -> list[Prediction]:
        return [answer for answer in self.answers if isinstance(answer, Prediction)]

    def record(self) -> str:
        """Return how far off the reader's predictions tend to be, all runs together."""
        return record_of(past())

    def ask(self, claim: Check | Order) -> None:
        """Ask for the value of a check, or for an order; then tell it, and keep the answer."""
        self.printed.answered = True
        if self.printed.passes:
            return
        began = time.perf_counter()
        with contextlib.redirect_stdout(self.printed.terminal):
            if self.asked == 0:
                show.wrapped("", f"Before each value is shown: what will it be? Type {NUMBER}; Enter skips, q stops.")
            self.asked += 1
            answer = self._number(claim) if isinstance(claim, Check) else self._order(claim)
            if answer is not None:
                self.answers.append(answer)
                attempts.append(EVENT, lab=self.lab, **answer._asdict())
                show.wrapped("  ", told(answer))
        self.seconds += time.perf_counter() - began

    def _number(self, check: Check) -> Prediction | None:
        predicted = self._typed(f"{check.name}? ", parse_number, NUMBER)
        return None if predicted is None else Prediction(check.name, predicted, check.value, check.target)

    def _order(self, order: Order) -> Ranking | None:
        letters = dict(zip(ascii_lowercase, sorted(order.ranked), strict=False))
        show.wrapped("", f"{order.name}, from the least to the greatest?")
        for letter, name in letters.items():
            show.wrapped(f"  {letter}  ", name)
        wanted = f"each letter once, such as {' '.join(reversed(letters))}"
        predicted = self._typed("order? ", lambda said: parse_order(said, letters), wanted)
        return None if predicted is None else Ranking(order.name, predicted, order.ranked)

    def _typed(self, prompt: str, parse: Callable[[str], T], wanted: str) -> T | None:
        """Return what is typed, parsed; None if the question is skipped, or all that follow are."""
        while True:
            try:
                said = input(prompt).strip()
            except EOFError:
                said = "q"
                print()
            if said.lower() in ("q", "quit"):
                self.printed.passes = self.logged.passes = True
            if not said or self.printed.passes:
                return None
            with contextlib.suppress(ValueError):
                return parse(said)
            show.wrapped("  ", f"{wanted}; Enter skips, q stops")


def parse_number(said: str) -> float:
    """Return a finite number, "97%" as 0.97; ValueError for anything else."""
    number = float(said.removesuffix("%")) / (100 if said.endswith("%") else 1)
    if not math.isfinite(number):
        raise ValueError(said)
    return number


def parse_order(said: str, names: Mapping[str, str]) -> list[str]:
    """Return the names that the letters stand for; ValueError unless each is there once."""
    letters = [letter for letter in said.lower() if letter.isalnum()]
    if sorted(letters) != sorted(names):
        raise ValueError(said)
    return [names[letter] for letter in letters]


def require_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("--predict asks on a terminal, which a pipe or a file is not")


@contextlib.contextmanager
def questions(lab: str) -> Iterator[Questions]:
    """Ask about each check that is made inside, and keep back what is printed."""
    printed, logged = Waiting(sys.stdout), Waiting(sys.stderr)
    asking = Questions(lab, printed, logged)
    show.bars_on = Console(file=sys.stderr, highlight=False)
    checks.before_shown.append(asking.ask)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(logged):  # pyright: ignore
            yield asking
    finally:
        checks.before_shown.remove(asking.ask)
        show.bars_on = None
        printed.release()
        logged.release()
