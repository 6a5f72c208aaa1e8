"""Time every task in a process of its own, in turns of short bursts, so that all meet the same state of the machine.

A ratio is the median over the rounds of the ratios within a round.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from random import Random
from statistics import median, quantiles
from subprocess import PIPE
from typing import IO, Any, NamedTuple

from experiments.bench.workloads import SIDE, TaskName
from experiments.shared import show

BURST = 0.15  # seconds
AT_ONCE = 3
"""workers that build and compile at a time; they are timed in turns once all are ready"""
Timings = dict[TaskName, "Timing"]
Growth = dict[str, dict[tuple[str, int], "Timing"]]  # {what grows: {(variant, its size): timing}}


class Lost(Exception):
    """A worker died; the message is the last line of its stderr."""


class Worker(NamedTuple):
    """A process of experiments.bench.worker, idle until it is asked."""

    process: subprocess.Popen
    stderr: IO[str]

    def ask(self, question: str = "") -> Any:
        """Return the answer to the question; without one, the message that the worker is ready. Lost if none comes."""
        try:
            if question:
                print(question, file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())  # pyright: ignore
        except (OSError, ValueError):
            self.stderr.seek(0)
            words = [line for line in self.stderr.read().splitlines() if line.strip()]
            raise Lost(words[-1] if words else "without a word") from None


@contextmanager
def worker(task: TaskName, flags: Sequence[str]) -> Iterator[Worker]:
    """Start the process that times a task, and kill it at the end."""
    command = [sys.executable, "-m", "experiments.bench.worker", *task, *flags]
    environment = os.environ | ({"JAXTYPING_DISABLE": "1"} if "unchecked" in task[1] else {})
    with (
        tempfile.TemporaryFile("w+") as stderr,
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=stderr, text=True, env=environment) as process,
    ):
        try:
            yield Worker(process, stderr)
        finally:
            process.kill()
            with suppress(BrokenPipeError):  # a question that was never read
                process.stdin.close()  # pyright: ignore


@dataclass
class Timing:
    """The measurements of one task."""

    seconds: list[float]
    """per step, an entry per round"""
    peak_bytes: int | None
    ready: float
    """seconds to compile, or to load from the compiler's cache, and to take the first steps, while others do too"""
    versions: dict[str, str]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Return the first and the third quartile of the rounds."""
        once = self.seconds * 2 if len(self.seconds) == 1 else self.seconds  # it takes two to have quartiles
        first, _, third = quantiles(once, n=4, method="inclusive")
        return first, third

    def over(self, base: "Timing") -> float:
        """Return the time as a multiple of that of `base`: the median over the rounds of their ratios."""
        return median(own / other for own, other in zip(self.seconds, base.seconds, strict=True))


class Result(NamedTuple):
    """The measurements of one workload."""

    name: str
    flop: int
    """operations of the products in a step"""
    peak: Timing
    """of a product of two matrices of SIDE × SIDE"""
    ways: dict[str, Timing]

    @property
    def floor(self) -> float:
        """Return the seconds of the step's products at the rate of one large product."""
        return self.flop / (2 * SIDE**3 / self.peak.median)

    @property
    def fastest_module(self) -> str:
        return min((way for way in self.ways if way.startswith("nn.Module")), key=lambda way: self.ways[way].median)


def measure(tasks: Sequence[TaskName], rounds: int, *flags: str) -> Timings:
    """Time the tasks in turns; a task whose worker dies is left out."""
    workers, timings = {}, {}
    with ExitStack() as stack:
        for i, task in enumerate(tasks):
            for one in tasks[i : i + AT_ONCE]:
                if one not in workers:
                    workers[one] = stack.enter_context(worker(one, flags))
            try:
                timings[task] = Timing([], None, **workers[task].ask())
                show.log.print(f"{': '.join(task)}: ready after {timings[task].ready:.1f} s", markup=False)
            except Lost as error:
                leave_out(task, error)
        for turn in range(rounds):
            for task in Random(turn).sample(list(timings), len(timings)):  # no way always follows the same one
                try:
                    take_turn(workers[task], timings[task], last=turn == rounds - 1)
                except Lost as error:
                    leave_out(task, error)
                    del timings[task]
    return timings


def take_turn(worker: Worker, timing: Timing, *, last: bool) -> None:
    """Add a round's time to the timing, and in the last round the memory."""
    timing.seconds.append(worker.ask(f"time {BURST}"))
    if last:
        timing.peak_bytes = worker.ask("memory") or None


def leave_out(task: TaskName, error: Lost) -> None:
    """Print on stderr that a task is left out, and why."""
    show.log.print(f"{': '.join(task)}: left out ({error})", markup=False, soft_wrap=True)
