"""One process among many, as torchrun starts them: whether it leads, and how it tells its end to who started it."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ENDS = "FN_ENDS"
"""the variable that names the folder in which each process of `just train --processes` leaves its end"""


class Told:
    """The last line of this process, and its exit status."""

    message: str = ""
    lost: bool = False
    """whether it ends only because another process has"""


def among_many() -> bool:
    """Return whether torchrun, or who sets its variables, has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def processes() -> int | None:
    """Return how many processes torchrun has started; None for a process of its own."""
    return int(os.environ["WORLD_SIZE"]) if among_many() else None


def leads() -> bool:
    """Return whether this process writes, prints and draws: the one of rank 0, or the only one."""
    return not among_many() or os.environ["RANK"] == "0"


def attempt() -> int:
    """Return how often torchrun has started this group of processes anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if among_many() else 0


def launcher() -> str:
    """Return what tells the torchrun that has started this process from any other; it stays over its restarts."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')} {os.getppid()}"


def hush() -> None:
    """Send what a process that does not lead prints to nowhere, that of libraries too."""
    if not leads():
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)


def say(message: str) -> None:
    """Print the error that ends a process; among many it is left for the one that started them, to be said once."""
    Told.message = message
    if ENDS not in os.environ:
        print(f"error: {message}", file=sys.stderr)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Leave this process's exit status and message for who started it.

    To torchrun every end but the loss of a process is a success: it starts lost ones again, and must not start a run
    again that has ended, however that was. Where nobody reads the ends, under torchrun itself, a run that is started
    again after its end goes no further than here.
    """
    if ENDS not in os.environ and attempt() and (ended := _ended()) and ended.exists():
        sys.exit(int(ended.read_text()))
    try:
        yield
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if ENDS not in os.environ:
            _write_error_file(status)
            _remember_end(status)
            raise
        folder = Path(os.environ[ENDS])
        if not Told.lost and (status or leads()):
            (folder / os.environ["RANK"]).write_text(json.dumps([status, Told.message]))
        sys.exit(1 if Told.lost and not any(folder.iterdir()) else 0)


def _write_error_file(status: int) -> None:
    """Put the message where torchrun looks for it: its report then has the reason in it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and status and Told.message:
        Path(file).write_text(json.dumps({"message": Told.message}))


def _ended() -> Path | None:
    """Return where the status of a run that has ended is left: in torchrun's own folder, which its restarts share."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE", os.devnull)  # <folder>/attempt_<n>/<rank>/error.json
    return None if file == os.devnull else Path(file).parents[2] / "ended"


def _remember_end(status: int) -> None:
    """Leave the status, where torchrun would start the run again because it is not 0."""
    may_restart = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if status and not Told.lost and leads() and may_restart and (ended := _ended()):
        ended.write_text(str(status))


def read_end(folder: Path) -> tuple[int, str] | None:
    """Return (status, message) of the first process that left its end; None if all were lost."""
    ends = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    return next((tuple(json.loads(path.read_text())) for path in ends), None)
