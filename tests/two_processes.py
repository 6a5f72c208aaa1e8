"""A function in two processes: this one, whose calls a drill's grader sees, and a fork of it."""

import contextlib
import os
import pickle
import signal
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

LIMIT = 60
"""seconds: a process that waits longer for the other gets an error, and the fork is ended"""


def in_two(f: Callable, *args: Any) -> list[Any]:
    """Return [f(*args) here, as rank 0; in a fork, as rank 1]; an error of the fork's is an AssertionError here."""
    if not hasattr(os, "fork"):
        pytest.skip("two processes are forks here")
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = Pipe(duplex=False)
        child = os.fork()
        if not child:
            _rank_one(f, args, folder, theirs)
        theirs.close()
        try:
            with _joined(0, folder):
                here = f(*args)
            there = _received(mine)
        except Exception as error:
            said = _said_of_fork(mine)
            if said:
                raise AssertionError(f"in the second process: {said}") from error
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            mine.close()
    return [here, there]


@contextlib.contextmanager
def _joined(rank: int, folder: str) -> Any:
    where, limit = Path(folder, "store").as_uri(), timedelta(seconds=LIMIT)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=limit)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _rank_one(f: Callable, args: tuple, folder: str, end: Connection) -> None:
    signal.alarm(4 * LIMIT)
    try:
        with _joined(1, folder):
            end.send_bytes(pickle.dumps((f(*args), None)))
            signal.pause()  # the other may still need this one; it ends it
    except BaseException as error:
        end.send_bytes(pickle.dumps((None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")))
    finally:
        os._exit(1)


def _received(end: Connection) -> Any:
    if not end.poll(LIMIT):
        raise AssertionError(f"the second process is not done after {LIMIT} s")
    result, said = pickle.loads(end.recv_bytes())
    if said:
        raise AssertionError(f"in the second process: {said}")
    return result


def _said_of_fork(end: Connection) -> str | None:
    """Return the error of the fork's own, if there is one that is not about this process."""
    with contextlib.suppress(EOFError, OSError):
        if end.poll(1):
            said = pickle.loads(end.recv_bytes())[1]
            return None if said and said.startswith("RuntimeError") else said
    return None
