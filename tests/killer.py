"""Run the trainer once in peace, once killed at random instants: python tests/killer.py KILLS SEED FOLDER [flags]

Every try is a fork of this process, which has imported all that it needs, so that it begins within milliseconds. The
runs are FOLDER/whole and FOLDER/killed. No gradient is taken here: a child of a process that has taken one cannot.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo

import experiments.train.run  # noqa: F401
from experiments.shared import cli
from experiments.train.__main__ import main
from experiments.train.config import Config, parse


def begin(argv: list[str], said: Path) -> int:
    """The process id of a trainer with these flags, whose errors go to a file."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["train", *argv]
    status: object = 99
    try:
        cli.run(Config, main, parse)
    except SystemExit as stop:
        status = stop.code
    finally:
        os._exit(status if isinstance(status, int) else 98)


def survive(kills: int, seed: int, run: Path, flags: list[str], longest: float = 0.35) -> int:
    """Kill, resume, kill, … then let it end: how many were killed."""
    rng, killed, said = random.Random(seed), 0, run.with_suffix(".stderr")
    while True:
        resumed = any((run / "checkpoints").glob("step-*"))
        child = begin(["--resume", str(run)] if resumed else [*flags, "--out", str(run)], said)
        if killed < kills:
            time.sleep(rng.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            if os.waitstatus_to_exitcode(status):
                sys.exit(f"try {killed} failed with {os.waitstatus_to_exitcode(status)}: {said.read_text()}")
            return killed
        killed += 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    kills, seed, folder, *trainer_flags = sys.argv[1:]
    survive(0, int(seed), Path(folder, "whole"), trainer_flags)
    print(survive(int(kills), int(seed), Path(folder, "killed"), trainer_flags), "kills")
