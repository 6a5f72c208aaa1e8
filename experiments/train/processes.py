"""Python in processes of its own, all at once: commands, and runs of the trainer that a signal stops in the middle."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.train.folder import log_file


class Stop(NamedTuple):
    signal: signal.Signals
    out: Path
    """the folder of the run"""
    lines: int
    """the run is sent the signal once its log has so many lines"""


def run_at_once(*arguments: Sequence[str]) -> list[int]:
    """Run Python with each of these arguments, all at once, in silence; return their exit statuses."""
    started = [
        subprocess.Popen([sys.executable, *those], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for those in arguments
    ]
    return [process.wait() for process in started]


def train_and_stop(flags: Sequence[str], stops: Sequence[Stop]) -> list[tuple[int, int]]:
    """Train once per stop; return (exit status, lines logged) of each run; -9 is the status after SIGKILL."""
    commands = []
    for stop in stops:
        stopped = ["-m", "experiments.train.until_signal", stop.signal.name, str(stop.lines)]
        commands.append([*stopped, *flags, "--out", str(stop.out), "--overwrite"])
    return [(status, count_lines(stop.out)) for status, stop in zip(run_at_once(*commands), stops, strict=True)]


def count_lines(run: Path) -> int:
    log = log_file(run)
    return log.read_bytes().count(b"\n") if log.exists() else 0
