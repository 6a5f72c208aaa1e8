"""Run the trainer once in peace, once killed at random instants: python tests/kill_trainer.py KILLS SEED FOLDER [flags]

Every try is a fork of this process, which has imported all that it needs, so that it begins within milliseconds. The
runs are FOLDER/whole and FOLDER/killed. No gradient is taken here: a child of a process that has taken one cannot.

An instant is counted in file operations, not in seconds: a try is killed just before the k-th time that it opens,
renames or removes a file of the run, k drawn from 1 to OPERATIONS. So the kills fall alike however fast the machine is.
"""

import os
import random
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo

import experiments.train.run  # noqa: F401
from experiments.shared import cli
from experiments.train.__main__ import main
from experiments.train.config import Config, parse
from experiments.train.folder import checkpoints
from fn import checkpoint

OPERATIONS = 60
"""what a try does to its files in about six steps"""
LIMIT = 600
"""seconds of a try: one that hangs is ended by SIGALRM"""


def kill_at(operation: int, run: Path) -> None:
    """Kill this process just before so many file operations in the folder of the run."""
    done = count(1)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        counts = event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(f"{run}{os.sep}")
        if counts and next(done) == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def begin_or_resume(run: Path, flags: list[str], operation: int | None = None) -> int:
    """Return the process id of a trainer with these flags, killed before this file operation.

    Its errors go to a file.
    """
    resumed = any(checkpoints(run).glob("step-*"))
    child = os.fork()
    if child:
        return child
    signal.alarm(LIMIT)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said_by(run), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["train", *(["--resume", str(run)] if resumed else [*flags, "--out", str(run)])]
    if operation:
        kill_at(operation, run)
    status: object = 99
    try:
        cli.run(Config, main, parse)
    except SystemExit as stop:
        status = stop.code
    finally:
        os._exit(status if isinstance(status, int) else 98)


def said_by(run: Path) -> Path:
    return run.with_suffix(".stderr")


def try_once(run: Path, flags: list[str], operation: int | None = None) -> None:
    """Start the run, or resume it, and let it end, or be killed if an operation is given."""
    _, status = os.waitpid(begin_or_resume(run, flags, operation), 0)
    code = os.waitstatus_to_exitcode(status)
    if code != (-signal.SIGKILL if operation else 0):
        sys.exit(f"a try ended with {code}: {said_by(run).read_text()}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    kills, seed, directory, *trainer_flags = sys.argv[1:]
    try_once(Path(directory, "whole"), trainer_flags)
    rng, killed, steps, leftovers = random.Random(int(seed)), Path(directory, "killed"), set(), 0
    for _ in range(int(kills)):
        try_once(killed, trainer_flags, rng.randint(1, OPERATIONS))
        steps |= {checkpoint.step_of(path) for path in checkpoint.find(checkpoints(killed))[-1:]}
        leftovers += any(checkpoints(killed).glob(".*"))
    try_once(killed, trainer_flags)
    print(f"{kills} kills at {len(steps)} steps, {leftovers} of them in the midst of a checkpoint")
