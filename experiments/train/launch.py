"""Start the processes of a run on this machine by torchrun's own engine, and end as the run ends."""

import ctypes
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.shared import ranks
from experiments.train.config import Config

PATIENCE = 60
"""seconds that processes have to save and end once they are told to"""
PR_SET_PDEATHSIG = 1


def launch(config: Config) -> int:
    """Run this command in `config.processes` processes, started again up to `max_restarts` times if one is lost.

    Return the exit status of the run; what went wrong is said in a line.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # torchrun's own lines, forty of them for a process that is lost
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.processes or 1,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=config.max_restarts,
        shutdown_timeout=PATIENCE,
    )
    with tempfile.TemporaryDirectory() as ends:
        os.environ[ranks.ENDS] = ends
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        lost: Mapping[int, Any] = {}
        try:
            elastic_launch(settings, sys.executable)("-m", "experiments.train", *sys.argv[1:])
            interrupted = False
        except ChildFailedError as error:
            lost, interrupted = error.failures, False
        except SignalException:
            interrupted = True
        end = ranks.read_end(Path(ends))
        del os.environ[ranks.ENDS]
    if end is None:
        end = (130, f"interrupted; --resume {config.out} continues") if interrupted else (1, describe(config, lost))
    status, message = end
    if message:
        ranks.say(message)
    return status


def describe(config: Config, lost: Mapping[int, Any]) -> str:
    """Say which process was lost: one that a signal ended, if there is one, as others end because of it."""
    by_signal = {rank: -failure.exitcode for rank, failure in lost.items() if failure.exitcode < 0}
    ours = {rank: number for rank, number in by_signal.items() if number != signal.SIGTERM}  # torchrun ends the others
    rank = min(ours or by_signal or lost, default=0)
    how = f" ({signal.Signals(by_signal[rank]).name})" if rank in by_signal else ""
    return f"process {rank} of {config.processes} was lost{how}; --resume {config.out} continues"


def end_with_launcher() -> None:
    """Have the system end this process when the one that launched it is gone, where it can: Linux."""
    if ranks.ENDS in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
