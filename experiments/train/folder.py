"""The folder of a run: lock, config.json, metrics.jsonl, checkpoints. It is whole after a kill at any instant."""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from experiments.shared import cli, strict_json
from experiments.train.config import Config
from fn import checkpoint, rng
from fn.checkpoint import CheckpointError, Progress
from fn.files import read_bytes, remove_leftovers, write_atomic
from fn.train import TrainState

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
History = list[dict[str, Any]]
"""the entries of the log"""


def log_file(out: Path) -> Path:
    return out / "metrics.jsonl"


def checkpoints(out: Path) -> Path:
    return out / "checkpoints"


def lock(out: Path) -> AcquireReturnProxy:
    """Lock the folder for this process, for a `with`. The system lets go however the process ends.

    UsageError if another process has it. Worker processes do not inherit the lock.
    """
    try:
        return FileLock(out / ".lock").acquire(blocking=False)
    except Timeout:
        raise cli.UsageError(f"another process is training in {out}") from None


def start(config: Config, ts: TrainState, digest: str) -> tuple[TrainState, Progress, History]:
    """Start a new run and save its first checkpoint, before the first step. UsageError if the folder holds a run."""
    out, content, config_file = config.out, config_text(config), config.out / "config.json"
    saved = checkpoint.find(checkpoints(out), "*")
    with writing("the start of the run", out):
        has_log = log_file(out).exists() and log_file(out).stat().st_size
        other_config = config_file.exists() and read_bytes(config_file, "json") != content.encode()
        if (saved or has_log or other_config) and not config.overwrite:
            ways = f"--resume {out} continues it, --overwrite starts anew, --out takes another folder"
            raise cli.UsageError(f"{out} holds a run: {ways}")
        if config.overwrite:
            shutil.rmtree(out / "tensorboard", ignore_errors=True)
        for old in saved:
            old.unlink()
        write_atomic(config_file, content)
        write_atomic(log_file(out), "")
    rng.seed_global_state(config.seed)
    progress, history = Progress(data=digest), []
    save(config, ts, progress, history)
    return ts, progress, history


def config_text(config: Config) -> str:
    """Return config.json: the flags that belong to the run, not to one start of it."""
    flags = cli.as_json(config)
    for name in ("resume", "config", "overwrite", "processes", "max_restarts"):
        del flags[name]
    return strict_json.dumps(flags, indent=2) + "\n"


def mark_launch(out: Path, launcher: str) -> None:
    """Note who launched the processes that have begun the run, or gone on with it."""
    with writing("the start of the run", out):
        write_atomic(out / ".launch", launcher)


def was_begun_by(out: Path, launcher: str) -> bool:
    """Return whether that launcher's processes have begun the run of the folder: an earlier run may lie there."""
    file = out / ".launch"
    return file.exists() and read_bytes(file, "text") == launcher.encode()


def resume(path: Path, config: Config, ts: TrainState, digest: str) -> tuple[TrainState, Progress, History]:
    """Load the run from its newest checkpoint, or from the one at `path`; remove later lines and checkpoints.

    `ts` says which names, shapes and dtypes the tensors must have. UsageError if anything does not fit.
    """
    out, like = config.out, ts._asdict()
    try:
        tensors, progress = (
            checkpoint.load_newest(checkpoints(out), like) if path.is_dir() else checkpoint.load(path, like)
        )
        rng.set_global_state(progress.generators)
    except CheckpointError as error:
        raise cli.UsageError(str(error)) from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise cli.UsageError(f"{path}: its random generators cannot be set ({error})") from None
    if progress.data != digest:
        raise cli.UsageError(f"{path} was trained on other data than {config.dataset} now holds")
    lines, history = read_log(out, progress.lines)
    with writing("the log", out):
        remove_leftovers(checkpoints(out), older_than=0.0)
        write_atomic(log_file(out), b"".join(lines))
        for later in checkpoint.find(checkpoints(out), "*"):
            if checkpoint.step_of(later) > progress.step:
                later.unlink()
    return TrainState(**tensors), progress, history


def read_log(out: Path, count: int) -> tuple[list[bytes], History]:
    """Return the first `count` lines, as bytes and as entries: what came after the checkpoint happens once more."""
    try:
        lines = read_bytes(log_file(out), "log").splitlines(keepends=True)[:count]
        history = [strict_json.loads_numbers(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise cli.UsageError(f"{log_file(out)}, the log of the run, cannot be read: {error}") from None
    if len(lines) < count or not all(isinstance(entry, dict) for entry in history):
        raise cli.UsageError(f"{log_file(out)} has lost lines: {count} were there at the checkpoint")
    return lines, history


def save(config: Config, ts: TrainState, progress: Progress, history: History, *, best: bool = False) -> None:
    """Save a checkpoint, after the lines of the log that it counts on are on the disk."""
    progress = progress._replace(lines=len(history), generators=rng.global_state())
    with writing("a checkpoint", config.out):
        with log_file(config.out).open("rb") as log:
            os.fsync(log.fileno())
        checkpoint.save(checkpoints(config.out), ts._asdict(), progress, keep=config.keep, best=best)


def load_best(config: Config, ts: TrainState, progress: Progress) -> TrainState:
    """Return the state after the epoch of the least validation loss; `ts`, the last, if none was finite or measured."""
    if not progress.best_epoch:
        return ts
    best = checkpoint.find(checkpoints(config.out), "best")
    if not best:
        raise cli.UsageError(f"{checkpoints(config.out)} has lost the checkpoint of the best epoch")
    try:
        return TrainState(**checkpoint.load(best[-1], ts._asdict())[0])
    except CheckpointError as error:
        raise cli.UsageError(str(error)) from None


def log(out: Path, history: History, board: Any, event: str, progress: Progress, **values: Any) -> None:
    """Append an entry to metrics.jsonl and, where there is one, to TensorBoard's `board`.

    The history gets it as it will be read back: NaN for what is not finite, which is null in the file.
    """
    entry = {"event": event, "step": progress.step, "epoch": progress.epoch} | values
    line = strict_json.dumps(entry).encode() + b"\n"
    with writing("the log", out), log_file(out).open("ab", buffering=0) as file:
        if file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    history.append(strict_json.loads_numbers(line))
    if board:
        for name, value in _scalars(values):
            board.add_scalar(f"{event}/{name}", value, entry["step"])


def open_board(out: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # here, not above: an extra, which most do without

    return SummaryWriter(str(out / "tensorboard"))


def _scalars(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        yield from _scalars(value, f"{path}{name}/") if isinstance(value, dict) else [(path + name, value)]


@contextmanager
def writing(what: str, out: Path) -> Iterator[None]:
    """Raise RunError if the disk is full or refuses a write: says what was not written and how the run goes on."""
    try:
        yield
    except OSError as error:
        room = "make room, then " if error.errno in NO_ROOM else ""
        saved = checkpoint.find(checkpoints(out))
        go_on = f"{saved[-1].name} is whole: {room}--resume {out}" if saved else f"{room}start again"
        reason = error.strerror or str(error)
        raise cli.RunError(f"{what} could not be written to {out} ({reason}); {go_on}") from None
