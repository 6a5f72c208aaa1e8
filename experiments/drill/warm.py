"""A process that has torch and the tests of a drill in memory, and forks for each grade: a second, not ten.

    python -m experiments.drill.warm        a job per line of stdin, as JSON; an answer per line of stdout

A job warms up for a task, and is answered {"ready": name}; or it grades, and is answered by a verdict. A job of another
module than the drills' names it: one with `warm()` and `grade(name, file) -> list[str]`.

`Grader` starts it and asks it. An answer runs in the fork alone: it can hang, fill the memory or crash there, and the
next grade begins from the same clean process. Where there is no fork, on Windows, `Grader` falls back on `launch`.
"""

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from experiments.drill import answer, launch
from experiments.drill.catalogue import DRILLS
from experiments.drill.launch import ROOT, WALL_SECONDS, Verdict, write_verdict
from experiments.drill.limits import CPU_SECONDS

IMPORTED_BY_TESTS = ("tests.strategies", "sklearn.metrics", "scipy.stats", "pycocotools.cocoeval", "torchvision.ops")
"""before the forks, so that no fork has to"""
WATCHED_SECONDS = 100.0
"""of waiting for an answer while somebody watches"""


def import_all(names: Iterable[str]) -> None:
    """Import and use once what each fork would have to: torch, torch.func, Hypothesis and our functions."""
    import torch
    from hypothesis import given, strategies
    from torch.func import grad, vmap

    torch.set_num_threads(1)
    grad(lambda x: vmap(lambda y: y * y)(x).sum())(torch.ones(2))
    given(strategies.integers())(lambda _: None)()
    for module in (*IMPORTED_BY_TESTS, "experiments.drill.grade", *(DRILLS[n].of.partition(":")[0] for n in names)):
        importlib.import_module(module)
    _freeze()


def rehearse(name: str) -> None:
    """Grade our own function here: the tests of the drill are then imported, and what they use has been used once."""
    from experiments.drill.grade import Run
    from experiments.drill.recorder import Recorder

    ours = resolve_name(DRILLS[name].of)
    Run(Recorder(ours, ours), DRILLS[name].stages).tests()
    _freeze()


def _freeze() -> None:
    """Take all that is loaded from the collector: it would go through it in each fork, and so copy it."""
    gc.collect()
    gc.freeze()


def forked(
    name: str,
    file: Path,
    *,
    allow_torch: bool = False,
    seconds: float = CPU_SECONDS,
    wall_seconds: float = WALL_SECONDS,
) -> Verdict:
    """Return the verdict on the answer in `file`, graded in a fork of this process; `import_all` comes before it."""
    return launch.forked(_grade, name, file, allow_torch, seconds, wall_seconds=wall_seconds)


def _grade(name: str, file: Path, allow_torch: bool, seconds: float, out: Path) -> None:
    from experiments.drill import grade, limits

    limits.limit_memory()
    write_verdict(grade.grade(name, file, allow_torch=allow_torch, seconds=seconds), out)


class Grader:
    """A warm process, started at once and ready after some seconds, which the reader spends on writing."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.awaited = 0
        """how many jobs that warm up are not answered yet"""

    def warm(self, name: str = "", of: str = "") -> None:
        """Begin to load what the drill needs, or a task of the module `of`; without a name, what all need.

        Returns at once.
        """
        self.awaited += 1
        self._send({"warm": name, "of": of})

    def is_loading(self) -> bool:
        """Return whether something that is to be loaded is not loaded yet."""
        pipe = self.process.stdout if self.process is not None else None
        while pipe is not None and self.awaited and select.select([pipe], [], [], 0)[0] and self._reply() is not None:
            continue
        return pipe is not None and self.awaited > 0

    def graded(self, name: str, file: Path) -> Verdict:
        """Return the verdict on the answer in `file`; by `launch` if there is no warm process, or it died.

        At once where its text is enough, even while the process still loads.
        """
        if lines := answer.refusal(name, file):
            return Verdict(False, lines)
        return self._verdict({"name": name, "file": str(file.resolve())}) or launch.graded(name, file)

    def lines(self, of: ModuleType, name: str, file: Path) -> list[str]:
        """Return what `grade` of a module says is wrong, called in the warm process, or here if there is none."""
        verdict = self._verdict({"name": name, "file": str(file.resolve()), "of": of.__name__})
        return of.grade(name, file) if verdict is None else verdict.lines

    def _verdict(self, job: dict[str, str]) -> Verdict | None:
        """Return the verdict of the warm process; None if there is none, or it died."""
        self._send(job)
        reply = self._reply()
        while reply is not None and "ready" in reply:
            reply = self._reply()
        if reply is None:
            self.close()
        return None if reply is None else Verdict(**reply)

    def _reply(self) -> dict[str, Any] | None:
        """Wait for the next line of the process; None if it died."""
        if self.process is not None and self.process.stdout is not None:
            with contextlib.suppress(OSError, ValueError):
                reply = json.loads(self.process.stdout.readline())
                self.awaited -= "ready" in reply
                return reply
        return None

    def _send(self, job: dict[str, str]) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            return
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "experiments.drill.warm"],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,  # so that `select` knows of every line
                start_new_session=True,  # Ctrl-C is for who asks
            )
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it died; `graded` finds no verdict
            self.process.stdin.write(json.dumps(job).encode() + b"\n")

    def close(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # an answer that is being graded too
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self.process, self.awaited = None, 0

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def main() -> None:
    """Serve jobs until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what an answer prints is no verdict
    import_all([])
    rehearsed: set[str] = set()
    for line in sys.stdin:
        job = json.loads(line)
        of, name = job.get("of", ""), job.get("warm", job.get("name"))
        if name and (of or name) not in rehearsed:
            rehearsed.add(of or name)
            importlib.import_module(of).warm() if of else rehearse(name)
        if "warm" in job:
            reply = {"ready": name}
        elif of:
            lines = importlib.import_module(of).grade(name, Path(job["file"]))
            reply = Verdict(not lines, lines)._asdict()
        else:
            reply = forked(name, Path(job["file"]), wall_seconds=WATCHED_SECONDS)._asdict()
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
