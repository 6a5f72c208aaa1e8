"""A run of the trainer: what its config names, built; its log; its checkpoints; the loop that ties them together."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments import cli, show
from experiments.registry import AUGMENTS, MODELS, OPTIMIZERS, SCHEDULES, resolve
from experiments.train import Config
from fn import checkpoint, plots, rng, train
from fn.checkpoint import CheckpointError, Progress
from fn.data.datasets import Split
from fn.data.loader import batches, epoch_order
from fn.data.transforms import compose
from fn.files import remove_leftovers, write_atomic
from fn.metrics import top_k_accuracy
from fn.models import Model
from fn.optim import clip_grad_norm, warmup_schedule
from fn.train import ACCURACY, MetricFunctions, TrainState
from fn.tree import Params


class Setup(NamedTuple):
    """What a config names."""

    model: Model
    objective: Callable
    optimizer: Callable
    optimizer_init: Callable
    rate: Callable[[int | Tensor], Tensor]
    metrics: MetricFunctions
    augment: Callable | None
    train: Split
    validation: Split
    test: Split


def setup(config: Config, device: torch.device) -> Setup:
    """UsageError for parts that do not fit together."""
    data = cli.load(config.dataset, None if config.workers else device, root=config.root, image_size=config.image_size)
    train_split, test = (_thin(split, config.limit) for split in (data.train, data.test))
    order = epoch_order(len(train_split.labels), seed=config.seed, epoch=-1)  # an epoch that no run has
    held_out, kept = order.tensor_split([round(config.validation * len(order))])
    if not len(kept):
        raise cli.UsageError(f"--limit {config.limit} and --validation {config.validation} leave nothing to train on")
    try:
        model = cli.by_name(
            MODELS, config.model, hidden=config.hidden, widths=config.widths, dropout_p=config.dropout_p
        )(data.shape, len(data.classes))
        params, state = model.init(rng.generator(config.seed))
        model.apply(params, state, torch.zeros(2, *data.shape), train=True, key=rng.key(0))
    except ValueError as error:
        raise cli.UsageError(f"--model {config.model} does not suit --dataset {config.dataset}: {error}") from None
    if config.precision == "bf16":
        model = model._replace(apply=train.mixed_precision(model.apply, torch.bfloat16))
    update = cli.by_name(OPTIMIZERS, config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay)
    steps = train.count_steps(len(kept), epochs=config.epochs, batch_size=config.batch_size)
    rate = partial(resolve(SCHEDULES[config.schedule]), lr=config.lr, total_steps=steps)
    rate = partial(_warmed_up, rate=rate, warmup_steps=config.warmup_steps) if config.warmup_steps else rate
    classes = len(data.classes)
    return Setup(
        model,
        partial(train.classification_loss, apply=model.apply, label_smoothing=config.label_smoothing),
        partial(_optimize, update=update, rate=rate, clip_norm=config.clip_norm),
        resolve(f"{OPTIMIZERS[config.optimizer]}_init"),
        rate,
        ACCURACY | ({"top_5_accuracy": partial(top_k_accuracy, k=5)} if classes > 5 else {}),
        partial(compose, transforms=[resolve(AUGMENTS[name]) for name in config.augment]) if config.augment else None,
        Split(train_split.images[kept], train_split.labels[kept]),
        Split(train_split.images[held_out], train_split.labels[held_out]),
        test,
    )


def _thin(split: Split, limit: int | None) -> Split:
    """At most `limit` examples, evenly spaced, as some sets are sorted by class."""
    n = len(split.labels)
    return split if limit is None or limit >= n else Split(*(x[torch.arange(limit) * n // limit] for x in split))


def _warmed_up(step: int | Tensor, *, rate: Callable, warmup_steps: int) -> Tensor:
    return warmup_schedule(step, lr=rate(step), warmup_steps=warmup_steps)


def _optimize(
    params: Params, grads: Params, state: Params, *, update: Callable, rate: Callable, clip_norm: float | None
) -> tuple[Params, Params]:
    if clip_norm is not None:
        grads, _ = clip_grad_norm(grads, clip_norm)
    return update(params, grads, state, lr=rate(state["step"]))


class Run:
    """A run under way: its latest state, its log, its folder."""

    def __init__(self, config: Config, parts: Setup, ts: TrainState, device: torch.device) -> None:
        self.config, self.parts, self.ts, self.device = config, parts, ts, device
        self.progress = Progress(0, 0, 0, {}, 0, None, 0, {})
        self.history: list[dict[str, Any]] = []
        self.log_file, self.checkpoints = config.out / "metrics.jsonl", config.out / "checkpoints"
        self.board = _open_board(config)
        self.stop_asked = False

    def start(self) -> None:
        """A first checkpoint before the first step. UsageError if the folder is taken."""
        out = self.config.out
        if checkpoint.find(self.checkpoints) and not self.config.overwrite:
            raise cli.UsageError(
                f"{out} holds a run: --resume {out} continues it, --overwrite starts anew, --out takes another folder"
            )
        rng.seed_global_state(self.config.seed)
        with self.writing("the start of the run"):
            for old in [*checkpoint.find(self.checkpoints), *checkpoint.find(self.checkpoints, "best")]:
                old.unlink()
            config = cli.as_json(self.config)
            kept = {name: value for name, value in config.items() if name not in ("resume", "config", "overwrite")}
            write_atomic(out / "config.json", json.dumps(kept, indent=2) + "\n")
            write_atomic(self.log_file, "")
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
        self.ts = TrainState(**tensors)
        try:
            lines = self.log_file.read_bytes().splitlines(keepends=True)[: self.progress.lines]
            self.history = [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise cli.UsageError(f"{self.log_file}, the log of the run, cannot be read: {error}") from None
        if len(lines) < self.progress.lines:
            raise cli.UsageError(f"{self.log_file} has lost lines: {len(lines)} are left of {self.progress.lines}")
        with self.writing("the log"):
            remove_leftovers(self.checkpoints, older_than=0.0)
            write_atomic(self.log_file, b"".join(lines))
            for kind in ("step", "best"):
                for later in checkpoint.find(self.checkpoints, kind):
                    if checkpoint.step_of(later) > self.progress.step:
                        later.unlink()

    def log(self, event: str, **values: Any) -> None:
        entry = {"event": event, "step": self.progress.step, "epoch": self.progress.epoch} | values
        line = json.dumps(entry).encode() + b"\n"
        with self.writing("the log"), self.log_file.open("ab", buffering=0) as file:
            if file.write(line) < len(line):
                raise OSError(None, "No space left on device")
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
        """A disk that is full stops the run, and says how it goes on."""
        try:
            yield
        except OSError as error:
            saved = checkpoint.find(self.checkpoints)
            stands = f"{saved[-1].name} is whole: make room, then --resume {self.config.out}" if saved else "make room"
            raise cli.RunError(
                f"{what} could not be written to {self.config.out} ({error.strerror}); {stands}"
            ) from None

    def after_step(self, ts: TrainState, metrics: dict[str, float], totals: dict[str, Any]) -> None:
        examples = totals["examples"] - self.progress.totals.get("examples", 0)
        rate = float(self.parts.rate(self.progress.step))
        self.ts = ts
        self.progress = self.progress._replace(
            step=self.progress.step + 1, batch=self.progress.batch + 1, totals=totals
        )
        self.log("step", epoch=self.progress.epoch + 1, examples=examples, **metrics, lr=rate)
        self.advance(metrics["loss"], examples)
        if self.stop_asked:
            self.save()
            raise KeyboardInterrupt(f"interrupted at step {self.progress.step}; --resume {self.config.out} continues")
        every, examples = self.config.checkpoint_every, len(self.parts.train.labels)
        if every and self.progress.step % every == 0 and totals["examples"] < examples:  # else after_epoch saves
            self.save()

    def after_epoch(self, means: dict[str, float]) -> None:
        """Validate, log, save."""
        before, validation = self.progress.best, self.evaluate(self.ts, self.parts.validation)
        best = bool(validation) and (before is None or validation["loss"] < before)
        self.progress = self.progress._replace(epoch=self.progress.epoch + 1, batch=0, totals={})
        if best:
            self.progress = self.progress._replace(best=validation["loss"], best_epoch=self.progress.epoch)
        self.log("epoch", train=means, validation=validation)
        self.save(best=best)
        said = ", ".join(f"{split} {_said(m)}" for split, m in (("train", means), ("validation", validation)) if m)
        show.log.print(f"epoch {self.progress.epoch} of {self.config.epochs}: {said}", soft_wrap=True)

    def evaluate(self, ts: TrainState, split: Split) -> dict[str, float]:
        if not len(split.labels):
            return {}
        return train.eval_one_epoch(
            ts.params,
            ts.state,
            self.feed(batches(split, 1000)),
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
        config, examples = self.config, len(self.parts.train.labels)
        total = train.count_steps(examples, epochs=config.epochs, batch_size=config.batch_size)
        title = f"{config.model} on {config.dataset}"
        with show.progress(total, title, done=self.progress.step) as self.advance, asked_to_stop(self):
            while not self.done():
                data = batches(
                    self.parts.train,
                    config.batch_size,
                    seed=config.seed,
                    epoch=self.progress.epoch,
                    start=self.progress.batch,
                    augment=self.parts.augment,
                    workers=config.workers,
                )
                with closing(data):  # so that workers end when the loop does, however it does
                    _, means = train.train_one_epoch(
                        self.ts,
                        self.feed(data),
                        objective=self.parts.objective,
                        optimizer=self.parts.optimizer,
                        seed=config.seed,
                        accumulate=config.accumulate,
                        totals=self.progress.totals,
                        each=self.after_step,
                    )
                self.after_epoch(means)


@contextmanager
def asked_to_stop(run: Run) -> Iterator[None]:
    """The first Ctrl-C or termination asks the run to stop after its step; the next one is obeyed at once."""

    def ask(number: int, _: Any) -> None:
        run.stop_asked = True
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open_board(config: Config) -> Any:
    if not config.tensorboard:
        return None
    if not find_spec("tensorboard"):
        raise cli.UsageError("--tensorboard needs its package: uv run --extra tensorboard python -m experiments.train")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(config.out / "tensorboard"))


def _scalars(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        yield from _scalars(value, f"{path}{name}/") if isinstance(value, dict) else [(path + name, value)]


def _said(metrics: Mapping[str, float]) -> str:
    return f"loss {metrics['loss']:.4f} accuracy {metrics['accuracy']:.2%}"


def fit(config: Config, device: torch.device) -> Run:
    """Train as the config says, from the start or from where it was left, and judge the best epoch on the test set."""
    torch.use_deterministic_algorithms(config.deterministic)
    parts = setup(config, device)
    ts = train.init(parts.model, parts.optimizer_init, seed=config.seed, device=device)
    this = Run(config, parts, ts, device)
    if config.resume:
        this.resume(config.resume)
    else:
        this.start()
    this.loop()
    chosen = this.ts
    if best := checkpoint.find(this.checkpoints, "best"):
        chosen = TrainState(**checkpoint.load(best[-1], ts._asdict())[0])
    this.log("end", test=this.evaluate(chosen, parts.test), best_epoch=this.progress.best_epoch)
    draw(this.history, config.out / "curves.png")
    return this


def run(config: Config, device: torch.device) -> list[cli.Check]:
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


def draw(history: list[dict[str, Any]], path: Path) -> None:
    """Loss and accuracy: of every step in training, of every epoch in validation."""
    panels: dict[str, Any] = {}
    for quantity in ("loss", "accuracy"):
        panels[quantity] = {"train": [entry[quantity] for entry in history if entry["event"] == "step"]}
        validated = [entry for entry in history if entry["event"] == "epoch" and entry["validation"]]
        if validated:
            panels[quantity]["validation"] = {entry["step"]: entry["validation"][quantity] for entry in validated}
    plots.save(plots.curves(panels, log=["loss"]), path)
