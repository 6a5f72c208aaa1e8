"""Run the trainer once in peace, once killed at random instants: python tests/killer.py KILLS SEED FOLDER [flags]

Every try is a fork of this process, which has imported all that it needs, so that it begins within milliseconds. The
runs are FOLDER/whole and FOLDER/killed. No gradient is taken here: a child of a process that has taken one cannot.

A try stops at its checkpoint number CHECKPOINTS and waits for its kill. So the run cannot end before the last kill,
however fast the machine is; and a slow one kills as often, only after fewer steps.
"""

import os
import random
import signal
import sys
import time
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
from fn import checkpoint

CHECKPOINTS = 6


def stop_at_checkpoint(number: int) -> None:
    """Stop this process once it has written so many checkpoints."""
    save, written = checkpoint.save, count(1)

    def counted(*args: Any, **options: Any) -> Path:
        path = save(*args, **options)
        if next(written) == number:
            os.kill(os.getpid(), signal.SIGSTOP)
        return path

    checkpoint.save = counted


def begin(argv: list[str], said: Path, checkpoints: int | None = None) -> int:
    """The process id of a trainer with these flags, which stops after so many checkpoints. Its errors go to a file."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["train", *argv]
    if checkpoints:
        stop_at_checkpoint(checkpoints)
    status: object = 99
    try:
        cli.run(Config, main, parse)
    except SystemExit as stop:
        status = stop.code
    finally:
        os._exit(status if isinstance(status, int) else 98)


def begin_or_resume(run: Path, flags: list[str], checkpoints: int | None = None) -> int:
    resumed = any((run / "checkpoints").glob("step-*"))
    return begin(["--resume", str(run)] if resumed else [*flags, "--out", str(run)], said_by(run), checkpoints)


def said_by(run: Path) -> Path:
    return run.with_suffix(".stderr")


def ended(run: Path, status: int) -> None:
    sys.exit(f"a try ended with {os.waitstatus_to_exitcode(status)}: {said_by(run).read_text()}")


def finish(run: Path, flags: list[str]) -> None:
    """Start the run, or resume it, and let it end."""
    _, status = os.waitpid(begin_or_resume(run, flags), 0)
    if status:
        ended(run, status)


def kill_once(run: Path, flags: list[str], instant: float | None) -> float:
    """Start the run, or resume it, and kill it after `instant` seconds, or where it stops: the seconds that it had."""
    began, child = time.perf_counter(), begin_or_resume(run, flags, CHECKPOINTS)
    if instant is None:
        _, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            ended(run, status)
    else:
        time.sleep(instant)
    seconds = time.perf_counter() - began
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        ended(run, status)
    return seconds


if __name__ == "__main__":
    torch.set_num_threads(1)
    kills, seed, folder, *trainer_flags = sys.argv[1:]
    finish(Path(folder, "whole"), trainer_flags)
    rng, killed = random.Random(int(seed)), Path(folder, "killed")
    longest = kill_once(killed, trainer_flags, None)
    for _ in range(int(kills) - 1):
        kill_once(killed, trainer_flags, rng.uniform(0, longest))
    finish(killed, trainer_flags)
    print(kills, "kills")
