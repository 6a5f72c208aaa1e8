"""Limits on the time and the memory of an answer, and where it was when it met one."""

import contextlib
import linecache
import resource
import signal
from pathlib import Path
from typing import Any

from experiments.drill.door import ANSWER
from experiments.drill.launch import MEMORY


class OutOfTime(BaseException):
    """Past `except Exception`, so that an answer cannot swallow it."""


STOPPED: list[int] = []


def stopped_at(file: Path) -> list[str]:
    return [f"  it was at line {line}: {linecache.getline(str(file), line).strip()}" for line in STOPPED[-1:] if line]


@contextlib.contextmanager
def timed(seconds: float) -> Any:
    """OutOfTime after so many seconds of computing; waiting is for `launch` to end."""

    def stop(_: int, frame: Any) -> None:
        while frame is not None:
            if frame.f_globals.get("__name__") == ANSWER:
                STOPPED.append(frame.f_lineno)
                break
            frame = frame.f_back
        raise OutOfTime

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory() -> None:
    """`MEMORY` more than what is mapped now: torch maps gigabytes that it never touches."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
