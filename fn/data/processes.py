"""Processes that do work ahead of the one that needs its results."""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from typing import Any

import torch

from fn.domains import Count

# Fork, as Python did on Linux before 3.14: a worker starts at once, and it ends when its parent, the run, is killed.
# Under a forkserver, the default of 3.14, the server and its workers keep each other alive after such a kill.
START_METHOD = "fork" if sys.platform == "linux" else None


def map_ahead(f: Callable[[Any], Any], items: Iterable[Any], processes: Count | None = None) -> Iterator[Any]:
    """Yield f of each item, in their order; `processes`, one per core unless given, work ahead.

    An error of f is raised here. `f` is a function of a module, or a `partial` of one.
    """
    with get_context(START_METHOD).Pool(processes, initializer=_begin) as pool:
        yield from pool.imap(f, items, chunksize=16)


def _begin() -> None:
    """Leave Ctrl-C to the parent, and use one thread: those that the parent had started are not there after a fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
