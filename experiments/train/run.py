"""A run of the trainer: its folder, its log, its checkpoints, and the loop that ties them together."""

import errno
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.shared import cli, show
from experiments.train.build import Setup, setup
from experiments.train.config import Config
from fn import checkpoint, draw, rng, train
from fn.checkpoint import CheckpointError, Progress
from fn.data.loader import batches
from fn.files import remove_leftovers, write_atomic
from fn.train import TrainState

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class Run:
    """A run under way: its latest state, its log, its folder."""

    def __init__(self, config: Config, parts: Setup, ts: TrainState, device: torch.device) -> None:
        self.config, self.parts, self.ts, self.device = config, parts, ts, device
        self.progress = Progress(data=parts.digest)
        self.history: list[dict[str, Any]] = []
        self.log_file, self.checkpoints = config.out / "metrics.jsonl", config.out / "checkpoints"
        self.board: Any = None
        self.advance: Any = None
        self.stop_asked = False

    def start(self) -> None:
        """A first checkpoint before the first step. UsageError if the folder holds a run."""
        out, kept = self.config.out, cli.as_json(self.config)
        for name in ("resume", "config", "overwrite"):
            del kept[name]
        config, config_file = json.dumps(kept, indent=2) + "\n", out / "config.json"
        saved = checkpoint.find(self.checkpoints, "*")
        with self.writing("the start of the run"):
            begun = self.log_file.exists() and self.log_file.stat().st_size
            foreign = config_file.exists() and config_file.read_text() != config
            if (saved or begun or foreign) and not self.config.overwrite:
                ways = f"--resume {out} continues it, --overwrite starts anew, --out takes another folder"
                raise cli.UsageError(f"{out} holds a run: {ways}")
            if self.config.overwrite:
                shutil.rmtree(out / "tensorboard", ignore_errors=True)
            for old in saved:
                old.unlink()
            write_atomic(config_file, config)
            write_atomic(self.log_file, "")
        rng.seed_global_state(self.config.seed)
        self.save()

    def resume(self, path: Path) -> None:
        """Go back to a checkpoint: its tensors, its place in the data, its generators, its end of the log."""
        like = self.ts._asdict()
        try:
            if path.is_dir():
                tensors, self.progress = checkpoint.load_newest(self.checkpoints, like)
            else:
                tensors, self.progress = checkpoint.load(path, like)
            rng.set_global_state(self.progress.generators)
        except CheckpointError as error:
            raise cli.UsageError(str(error)) from None
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise cli.UsageError(f"{path}: its random generators cannot be set ({error})") from None
        if self.progress.data != self.parts.digest:
            raise cli.UsageError(f"{path} was trained on other data than {self.config.dataset} now holds")
        self.ts = TrainState(**tensors)
        lines = self.read_log()
        with self.writing("the log"):
            remove_leftovers(self.checkpoints, older_than=0.0)
            write_atomic(self.log_file, b"".join(lines))
            for later in checkpoint.find(self.checkpoints, "*"):
                if checkpoint.step_of(later) > self.progress.step:
                    later.unlink()

    def read_log(self) -> list[bytes]:
        """The lines up to the checkpoint; what a killed process wrote after it happens once more."""
        try:
            lines = self.log_file.read_bytes().splitlines(keepends=True)[: self.progress.lines]
            self.history = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise cli.UsageError(f"{self.log_file}, the log of the run, cannot be read: {error}") from None
        if len(lines) < self.progress.lines or not all(isinstance(entry, dict) for entry in self.history):
            raise cli.UsageError(f"{self.log_file} has lost lines: {self.progress.lines} were there at the checkpoint")
        return lines

    def log(self, event: str, **values: Any) -> None:
        entry = {"event": event, "step": self.progress.step, "epoch": self.progress.epoch} | values
        line = json.dumps(entry).encode() + b"\n"
        with self.writing("the log"), self.log_file.open("ab", buffering=0) as file:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.history.append(entry)
        if self.board:
            for name, value in _scalars(values):
                self.board.add_scalar(f"{event}/{name}", value, entry["step"])

    def save(self, *, best: bool = False) -> None:
        self.progress = self.progress._replace(lines=len(self.history), generators=rng.global_state())
        with self.writing("a checkpoint"):
            with self.log_file.open("rb") as log:
                os.fsync(log.fileno())
            checkpoint.save(self.checkpoints, self.ts._asdict(), self.progress, keep=self.config.keep, best=best)

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """A disk that is full, or any other that will not be written to, stops the run, which says how it goes on."""
        try:
            yield
        except OSError as error:
            room = "make room, then " if error.errno in NO_ROOM else ""
            saved = checkpoint.find(self.checkpoints)
            go_on = f"{saved[-1].name} is whole: {room}--resume {self.config.out}" if saved else f"{room}start again"
            reason = error.strerror or str(error)
            raise cli.RunError(f"{what} could not be written to {self.config.out} ({reason}); {go_on}") from None

    def after_step(self, ts: TrainState, metrics: dict[str, float], totals: dict[str, Any]) -> None:
        """Log; save if it is time, or if the run is to stop. The end of an epoch is for `after_epoch` to save."""
        before, config = self.progress, self.config
        in_batch = totals["examples"] - before.totals.get("examples", 0)
        self.ts, self.progress = ts, before._replace(step=before.step + 1, batch=before.batch + 1, totals=totals)
        rate = float(self.parts.rate(before.step))
        self.log("step", epoch=before.epoch + 1, examples=in_batch, **metrics, lr=rate)
        self.advance(metrics["loss"], in_batch)
        last_of_epoch = totals["examples"] == len(self.parts.data["train"].labels)
        due = config.checkpoint_every and self.progress.step % config.checkpoint_every == 0
        if self.stop_asked or (due and not last_of_epoch):
            self.save()
        if self.stop_asked:
            raise KeyboardInterrupt(f"interrupted at step {self.progress.step}; --resume {config.out} continues")

    def after_epoch(self, means: dict[str, float]) -> None:
        """Validate, log, save."""
        done, validation = self.progress.epoch + 1, self.evaluate(self.ts, "validation")
        best = bool(validation) and (self.progress.best is None or validation["loss"] < self.progress.best)
        self.progress = self.progress._replace(epoch=done, batch=0, totals={})
        if best:
            self.progress = self.progress._replace(best=validation["loss"], best_epoch=done)
        self.log("epoch", train=means, validation=validation)
        self.save(best=best)
        said = ", ".join(f"{split} {_said(m)}" for split, m in (("train", means), ("validation", validation)) if m)
        show.log.print(f"epoch {done} of {self.config.epochs}: {said}", soft_wrap=True)

    def evaluate(self, ts: TrainState, split: str) -> dict[str, float]:
        if not len(self.parts.data[split].labels):
            return {}
        return train.eval_one_epoch(
            ts.params,
            ts.state,
            self.feed(batches(self.parts.data[split], 1000)),
            apply=self.parts.model.apply,
            metrics=self.parts.metrics,
        )

    def feed(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.to(self.device), y.to(self.device)) for x, y in batches)

    def done(self) -> bool:
        """All epochs, or too many in a row without a better one."""
        patience, stale = self.config.patience, self.progress.epoch - self.progress.best_epoch
        return self.progress.epoch >= self.config.epochs or (patience is not None and stale >= patience)

    def loop(self) -> None:
        """From where the run stands to its end. Ctrl-C finishes the step and saves; a second one does not wait."""
        title = f"{self.config.model} on {self.config.dataset}"
        with (
            show.progress(self.parts.total_steps, title, done=self.progress.step) as self.advance,
            asked_to_stop(self),
        ):
            while not self.done():
                self.epoch()

    def epoch(self) -> None:
        """What is left of the epoch under way."""
        config = self.config
        data = batches(
            self.parts.data["train"],
            config.batch_size,
            seed=config.seed,
            epoch=self.progress.epoch,
            start=self.progress.batch,
            augment=self.parts.augment,
            workers=config.workers,
        )
        with closing(data):  # so that workers end when the loop does, however it does
            self.ts, means = train.train_one_epoch(
                self.ts,
                self.feed(data),
                step=self.parts.step,
                seed=config.seed,
                totals=self.progress.totals,
                each=self.after_step,
            )
        self.after_epoch(means)

    def judge(self) -> None:
        """The best epoch, or the last where none is held out to choose by, on the test set."""
        chosen = self.ts
        if self.progress.best_epoch:
            best = checkpoint.find(self.checkpoints, "best")
            if not best:
                raise cli.UsageError(f"{self.checkpoints} has lost the checkpoint of the best epoch")
            try:
                chosen = TrainState(**checkpoint.load(best[-1], self.ts._asdict())[0])
            except CheckpointError as error:
                raise cli.UsageError(str(error)) from None
        self.log("end", test=self.evaluate(chosen, "test"), best_epoch=self.progress.best_epoch)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """The folder, for this process alone; the system lets go of it however the process ends."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which workers that outlive us would hold
        except OSError:
            raise cli.UsageError(f"another process is training in {out}") from None
        yield


@contextmanager
def asked_to_stop(run: Run) -> Iterator[None]:
    """The first Ctrl-C or termination asks the run to stop after its step; the next one is obeyed at once."""

    def ask(number: int, _: Any) -> None:
        run.stop_asked = True
        signal.signal(number, now)

    def now(*_: Any) -> None:
        raise KeyboardInterrupt(f"interrupted; --resume {run.config.out} continues from the last checkpoint")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_board(out: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"))


def _scalars(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        yield from _scalars(value, f"{path}{name}/") if isinstance(value, dict) else [(path + name, value)]


def _said(metrics: Mapping[str, float]) -> str:
    return f"loss {metrics['loss']:.4f} accuracy {metrics['accuracy']:.2%}"


def fit(config: Config, device: torch.device) -> Run:
    """Train as the config says, from the start or from where it was left, and judge the best epoch on the test set."""
    if config.tensorboard and not find_spec("tensorboard"):
        raise cli.UsageError("--tensorboard needs its package: uv run --extra tensorboard python -m experiments.train")
    torch.use_deterministic_algorithms(config.deterministic)
    config.out.mkdir(parents=True, exist_ok=True)
    with locked(config.out):
        parts = setup(config, device)
        ts = train.init(parts.model, parts.optimizer_init, seed=config.seed, device=device)
        run = Run(config, parts, ts, device)
        if config.resume:
            run.resume(config.resume)
        else:
            run.start()
        run.board = open_board(config.out) if config.tensorboard else None
        run.loop()
        run.judge()
        draw_history(run.history, config.out / "curves.png")
    return run


def report(config: Config, device: torch.device) -> list[cli.Check]:
    """`fit`, a table of how it ended, and the claim about the test accuracy."""
    *_, last, end = fit(config, device).history
    title = f"{config.model} on {config.dataset} after {last['epoch']} epochs"
    if last["validation"]:
        title += f"; the test is of epoch {end['best_epoch']}, the best in validation"
    rows = {"train": last["train"], "validation": last["validation"], "test": end["test"]}
    show.table(
        title,
        ("", *end["test"]),
        [(split, *(f"{m[c]:.4f}" if c in m else "" for c in end["test"])) for split, m in rows.items() if m],
    )
    return [cli.check(f"{config.dataset}: test accuracy", end["test"]["accuracy"], ">=", config.target_accuracy)]


def draw_history(history: list[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy: of every step in training, of every epoch in validation."""
    panels: dict[str, Any] = {}
    validated = [entry for entry in history if entry["event"] == "epoch" and entry["validation"]]
    for quantity in ("loss", "accuracy"):
        panels[quantity] = {"train": [entry[quantity] for entry in history if entry["event"] == "step"]}
        if validated:
            panels[quantity]["validation"] = {entry["step"]: entry["validation"][quantity] for entry in validated}
    draw.save(draw.curves(panels, log=["loss"]), path)
