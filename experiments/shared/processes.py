"""Python in processes of its own: commands at once, and runs of the trainer that a signal stops in the middle."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


def run_at_once(*arguments: Sequence[str]) -> int:
    """Run Python with each of these arguments, all at once, in silence: how many of them failed."""
    started = [
        subprocess.Popen([sys.executable, *those], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for those in arguments
    ]
    return sum(process.wait() != 0 for process in started)


class Stop(NamedTuple):
    signal: signal.Signals
    out: Path
    """the folder of the run"""
    lines: int
    """send the signal once the log has so many lines"""


def train_and_stop(flags: Sequence[str], stops: Sequence[Stop]) -> list[tuple[int, int]]:
    """(exit status, lines logged by then) of a run per stop, all at once; -9 is the status after SIGKILL."""
    running, stopped = {}, {}
    for stop in stops:
        _log(stop).unlink(missing_ok=True)
        command = [sys.executable, "-m", "experiments.train", *flags, "--out", str(stop.out), "--overwrite"]
        running[stop] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running:
        for stop, process in list(running.items()):
            if process.poll() is not None or _count_lines(stop) >= stop.lines:
                process.send_signal(stop.signal)
                stopped[stop] = (process.wait(), _count_lines(stop))
                del running[stop]
        time.sleep(0.001)
    return [stopped[stop] for stop in stops]


def _log(stop: Stop) -> Path:
    return stop.out / "metrics.jsonl"


def _count_lines(stop: Stop) -> int:
    return _log(stop).read_bytes().count(b"\n") if _log(stop).exists() else 0
