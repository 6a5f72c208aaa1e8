"""A grader in a process of its own, so that no answer can hang, fill the memory, or bring down who asks."""

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CPU_SECONDS = 30.0
"""of computing, for the tests of one drill: a right answer takes a few"""
WALL_SECONDS = 300.0
"""of waiting"""
MEMORY = 2 << 30
"""bytes, beyond what torch takes"""


class Verdict(NamedTuple):
    passed: bool
    lines: list[str]
    """what is said"""
    tests: int = 0
    """how many passed and went through the answer"""


def graded(name: str, file: Path, wall_seconds: float = WALL_SECONDS) -> Verdict:
    """The verdict of a grader that is started for this answer, and told where and under which seal to write it."""
    reader, writer = os.pipe()
    seal = secrets.token_hex()
    command = [sys.executable, "-m", "experiments.drill.grade", name, str(file.resolve())]
    root = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        command, cwd=root, env=environment, pass_fds=[writer], stdin=subprocess.PIPE, start_new_session=True
    )
    os.close(writer)
    try:
        process.communicate(f"{writer} {seal}\n".encode(), wall_seconds)
    except subprocess.TimeoutExpired:
        return Verdict(False, [f"not done after {wall_seconds:g} s: does it wait for something?"])
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said = read(reader) if process.poll() == 0 else ""
    return verdict(said, seal, process.returncode)


def read(descriptor: int) -> str:
    with os.fdopen(descriptor, errors="replace") as pipe:
        return pipe.read()


def sealed(verdict: Verdict, seal: str) -> bytes:
    """A line that only who knows the seal can write: the answer may find the descriptor, and write there too."""
    return f"\n{seal} {json.dumps(verdict._asdict())}\n".encode()


def verdict(said: str, seal: str, status: int) -> Verdict:
    """What a grader wrote, or what became of it."""
    for line in said.splitlines():
        head, _, text = line.partition(" ")
        if head == seal:
            return Verdict(**json.loads(text))
    if status == -signal.SIGKILL:
        return Verdict(False, ["the process was killed: out of memory?"])
    return Verdict(
        False, [f"the process ended with status {status} before it had graded: does the answer leave Python?"]
    )
