"""Limits on the time and the memory of an answer."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

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


def timed(seconds: float) -> contextlib.AbstractContextManager[None]:
    """Raise OutOfTime after so many seconds of computing; a process that only waits is ended by `launch`."""
    return _alarm("PROF", seconds, _stop)


def awaited(seconds: float) -> contextlib.AbstractContextManager[None]:
    """Raise OutOfPatience after so many seconds of the clock: for a program that waits, and computes nothing."""
    return _alarm("REAL", seconds, _give_up)


@contextlib.contextmanager
def _alarm(clock: Literal["PROF", "REAL"], seconds: float, handler: Callable[[int, Any], None]) -> Iterator[None]:
    if not hasattr(signal, "setitimer"):  # on Windows `launch` alone ends an answer
        yield
        return
    timer, sent = (signal.ITIMER_PROF, signal.SIGPROF) if clock == "PROF" else (signal.ITIMER_REAL, signal.SIGALRM)
    signal.signal(sent, handler)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)


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
