"""A grader in a process of its own, so that no answer can hang, fill the memory, or bring down who asks."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
WALL_SECONDS = 300.0
"""of waiting; `limits` ends an answer that computes for longer than its seconds"""


class Verdict(NamedTuple):
    passed: bool
    lines: list[str]
    """what is said"""
    tests: int = 0
    """how many passed and called the answer"""
    star: bool = False
    """whether the edges are right too"""


def graded(
    name: str, file: Path, wall_seconds: float = WALL_SECONDS, *, grader: str = "experiments.drill.grade"
) -> Verdict:
    """Return the verdict of `python -m GRADER NAME FILE VERDICT.json` on the answer in `file`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "verdict.json"
        command = [sys.executable, "-m", grader, name, str(file.resolve()), str(out)]
        try:
            status = subprocess.run(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, timeout=wall_seconds
            ).returncode
        except subprocess.TimeoutExpired:
            return waits(wall_seconds)
        return read_verdict(out, status)


def forked(grader: Callable[..., None], *arguments: Any, wall_seconds: float = WALL_SECONDS) -> Verdict:
    """Return the verdict that grader(*arguments, VERDICT.json) writes in a fork, which has all in memory."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 and later: this process has threads; the fork uses one
        out = Path(folder) / "verdict.json"
        # said, not left to the default: since Python 3.14 that is a process without what is in memory here
        process = multiprocessing.get_context("fork").Process(target=grader, args=(*arguments, out))
        process.start()
        try:
            process.join(wall_seconds)
            return waits(wall_seconds) if process.is_alive() else read_verdict(out, process.exitcode)
        finally:
            process.kill()
            process.join()


def waits(seconds: float) -> Verdict:
    return Verdict(False, [f"not done after {seconds:g} s: does it wait for something, or never end?"])


def write_verdict(verdict: Verdict, out: Path) -> None:
    out.write_text(json.dumps(verdict._asdict()))


def read_verdict(out: Path, status: int | None) -> Verdict:
    """Return the verdict that a grader wrote, or one on how its process ended without any."""
    if out.exists():
        return Verdict(**json.loads(out.read_text()))
    if status == -signal.SIGKILL:
        return Verdict(False, ["the process was killed: out of memory?"])
    return Verdict(
        False, [f"the process ended with status {status} before it had graded: does the answer leave Python?"]
    )
