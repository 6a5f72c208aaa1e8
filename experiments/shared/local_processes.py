"""A function in several processes of this machine, which meet through gloo: what torchrun does, for a lab.

No process stays behind: a lost one ends the others, each ends when the one that started it does, and none waits for
another longer than `PATIENCE`.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import torch.distributed as dist

from experiments.shared import cli

START_METHOD = "spawn" if sys.platform == "win32" else "forkserver"
"""a server imports torch once and has no threads: its forks start at once, and nothing of this process is in them"""
PRELOADED = ("fn.", "experiments.shared.", "sklearn.datasets")
"""what the server imports too, where this process has: not the lab, which each process takes for its main module"""
PATIENCE = timedelta(seconds=120)
"""for which one process waits for the others in a collective"""


def in_processes(f: Callable, count: int, *args: Any) -> list[Any]:
    """Return what `f(*args)` returns in each of `count` processes, by rank; each has one thread, as bits depend on it.

    A single one is this process, without a group. `f` is a function of a module. RunError if a process fails or dies.
    """
    where = _where(f)
    if count == 1:
        with one_thread():
            return [f(*args)]
    context: Any = multiprocessing.get_context(START_METHOD)
    if START_METHOD == "forkserver":
        context.set_forkserver_preload([name for name in sys.modules if name.startswith(PRELOADED)])
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        started, ends = [], []
        for rank in range(count):
            end, sender = context.Pipe(duplex=False)
            given = (where, args, rank, count, Path(folder, "store").as_uri(), _mine(), sender)
            process = context.Process(target=_work, args=given, daemon=True)
            process.start()
            stack.callback(_end, process)
            sender.close()
            started.append(process)
            ends.append(stack.enter_context(end))
        results = _results(ends)
        for process in started:
            process.join()
    return results


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _where(f: Callable) -> str:
    """Return module:name of a function, also of one in the script that runs, which other processes must import."""
    spec = f.__globals__.get("__spec__") if f.__module__ == "__main__" else None
    return f"{spec.name if spec else f.__module__}:{f.__qualname__}"


def _end(process: Any) -> None:
    process.kill()
    process.join()


def _results(ends: Sequence[Connection]) -> list[Any]:
    """Return what each process sends; RunError for the first that fails, or rather for one that is lost."""
    found: dict[int, Any] = {}
    failed: dict[int, str] = {}
    left = dict(enumerate(ends))
    while left and (ready := wait(list(left.values()), timeout=2 if failed else None)):
        for rank in [rank for rank, end in left.items() if end in ready]:
            try:
                done, value = pickle.loads(left[rank].recv_bytes())
                (found if done else failed)[rank] = value
            except EOFError:
                raise cli.RunError(f"process {rank} of {len(ends)} was lost: the others cannot go on") from None
            del left[rank]
    for rank, (said, calls) in sorted(failed.items(), key=lambda item: item[1][0].startswith("RuntimeError")):
        error = cli.RunError(f"process {rank} of {len(ends)}: {said}")
        error.add_note(calls)
        raise error
    return [found[rank] for rank in range(len(ends))]


def _mine() -> tuple[str, str] | None:
    """Return (the lab that runs, which of the reader's files stand in for ours there), if --mine says so."""
    files, spec = os.environ.get("FN_MINE"), sys.modules["__main__"].__spec__
    return (spec.name, files) if files and spec else None


def _work(
    where: str, args: tuple, rank: int, count: int, store: str, mine: tuple[str, str] | None, end: Connection
) -> None:
    """Do the work of one process, and send what came of it: (True, result), or (False, (error, its calls))."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits; it ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=PATIENCE)
        with standing_in(mine):
            result = True, resolve_name(where)(*args)
        dist.barrier()  # nobody leaves while another still needs it
    except Exception as error:
        result = False, (f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", traceback.format_exc())
    with contextlib.suppress(BrokenPipeError):
        end.send_bytes(pickle.dumps(result))
    os._exit(0)  # without waiting for the threads of a group whose others may be gone


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def standing_in(mine: tuple[str, str] | None) -> contextlib.AbstractContextManager:
    """Return the context in which the reader's functions stand in for ours in this process too."""
    if not mine:
        return contextlib.nullcontext()
    lab, os.environ["FN_MINE"] = mine
    return cli.standing_in(None, resolve_name(f"{lab}:main"))
