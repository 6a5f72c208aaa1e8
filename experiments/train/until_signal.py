"""Train until a signal stops the run: python -m experiments.train.until_signal SIGNAL LINES [trainer flags]

The process sends itself the signal after it has logged so many lines. No clock decides where the run stops.
"""

import os
import signal
import sys
from typing import Any

from experiments.shared import cli
from experiments.train import folder
from experiments.train.__main__ import main
from experiments.train.config import Config, parse


def stop_after(lines: int, sent: signal.Signals) -> None:
    """Make the trainer's log send this process the signal with its line number `lines`."""
    log = folder.log

    def log_and_stop(out: Any, history: folder.History, *args: Any, **entry: Any) -> None:
        log(out, history, *args, **entry)
        if len(history) == lines:
            os.kill(os.getpid(), sent)

    folder.log = log_and_stop


if __name__ == "__main__":
    name, count, *flags = sys.argv[1:]
    stop_after(int(count), signal.Signals[name])
    sys.argv = ["train", *flags]
    cli.run(Config, main, parse)
