"""Limits on the time and the memory of an answer."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.shared.errors import is_out_of_memory

ANSWER = "drill_answer"
"""the name of the module that an answer is imported as"""
CPU_SECONDS = 30.0
"""of computing, for the tests of one drill: a right answer takes a few"""
MEMORY = 2 << 30
"""bytes, beyond what torch takes"""


class OutOfTime(BaseException):
    """OutOfTime(line of the answer, or 0). Past `except Exception`, so that an answer does not swallow it."""


class OutOfPatience(BaseException):
    """Past `except Exception`, as OutOfTime is."""


class OutOfMemory(BaseException):
    """OutOfMemory(the words of Python or torch). Past `except Exception`: Hypothesis would call the function again."""


@contextlib.contextmanager
def memory_limited() -> Iterator[None]:
    """Raise OutOfMemory where memory could not be had."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(str(error).partition("\n")[0] or type(error).__name__) from None
        raise


@contextlib.contextmanager
def timed(seconds: float) -> Iterator[None]:
    """Raise OutOfTime after so many seconds of computing; a process that only waits is ended by `launch`."""
    if not hasattr(signal, "setitimer"):  # on Windows `launch` alone ends an answer
        yield
        return
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@contextlib.contextmanager
def awaited(seconds: float) -> Iterator[None]:
    """Raise OutOfPatience after so many seconds of the clock: for a program that waits, and computes nothing."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _give_up(*_: Any) -> None:
    raise OutOfPatience


def _stop(_: int, frame: Any) -> None:
    while frame is not None and frame.f_globals.get("__name__") != ANSWER:
        frame = frame.f_back
    raise OutOfTime(frame.f_lineno if frame else 0)


def limit_memory() -> None:
    """Allow `MEMORY` more than is mapped now: torch maps gigabytes that it never touches."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        import resource  # here, not above: Windows has none

        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
