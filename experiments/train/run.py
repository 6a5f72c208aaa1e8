"""Train from the start or from a checkpoint, then test the best epoch."""

import math
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.shared import cli, ranks, show
from experiments.train import folder, together
from experiments.train.build import Parts, build
from experiments.train.config import Config
from experiments.train.report import draw_curves
from experiments.train.together import lead
from fn import rng, tree
from fn.checkpoint import Progress
from fn.data.loader import batches
from fn.distributed import gather_state, scatter_state, sharded
from fn.dtensors import split_rows, whole
from fn.metrics import add_examples, count_targets, mean_per_example
from fn.train import TrainState, check_finite, eval_one_epoch, init_train_state, run_key
from fn.tree import Params


class Run(NamedTuple):
    config: Config
    parts: Parts
    ts: TrainState
    progress: Progress
    history: folder.History


def train(config: Config, device: torch.device) -> Run:
    """Train to the end of the last epoch, or until patience runs out, then test the best epoch.

    The first Ctrl-C finishes the step under way, saves, and raises KeyboardInterrupt; the next one raises it at once.
    Many processes take the same steps; one of them leads: it has the folder, logs, saves and evaluates.
    """
    with together.joined(config, device), ExitStack() as held:
        lead(take_folder, config, held)
        parts, ts, progress, history = start_or_resume(config, device)
        board = folder.open_board(config.out) if config.tensorboard and ranks.leads() else None
        log = partial(folder.log, config.out, history, board) if ranks.leads() else ignore
        step, key = check_finite(parts.step), run_key(config.seed)
        title = f"{config.model} on {config.dataset}"
        with show.progress(parts.total_steps, title, done=progress.step) as advance, stop_signals(config.out) as stop:
            for epoch in range(progress.epoch, config.epochs):
                if out_of_patience(config, progress):
                    break
                with closing(train_batches(config, parts, progress)) as data:  # ends the workers, whatever happens
                    for x, y in data:
                        ts, metrics = step(ts, x.to(device), y.to(device), key=key)
                        lr = float(parts.schedule(progress.step))
                        progress = after_step(progress, metrics, int(count_targets(y)))
                        log("step", progress, epoch=epoch + 1, examples=len(y), **metrics, lr=lr)
                        advance(metrics["loss"], len(y))
                        asked = together.any_asks(stop.asked, device)
                        if asked or save_is_due(config, parts, progress):
                            save(config, ts, progress, history)
                        if asked:
                            raise interrupted(config, progress)
                means = mean_per_example(progress.totals)
                validation = lead(evaluate, parts, whole_model(config, ts), "validation", device)
                progress = after_epoch(progress, validation)
                log("epoch", progress, train=means, validation=validation)
                save(config, ts, progress, history, best=progress.best_epoch == progress.epoch)
                show_epoch(config, progress, train=means, validation=validation)
        ts = whole_state(config, ts)
        test = lead(test_best, config, parts, ts, progress, device)
        log("end", progress, test=test, best_epoch=progress.best_epoch)
        if ranks.leads():
            draw_curves(history, config.out / "curves.png")
    return Run(config, parts, ts, progress, history)


def ignore(*_: Any, **__: Any) -> None:
    """Take the place of the log in a process that does not lead."""


def take_folder(config: Config, held: ExitStack) -> None:
    """Lock the folder of the run for as long as `held` lasts."""
    config.out.mkdir(parents=True, exist_ok=True)
    held.enter_context(folder.lock(config.out))


def start_or_resume(config: Config, device: torch.device) -> tuple[Parts, TrainState, Progress, folder.History]:
    """Return the parts of the run, and where it stands before its next step."""
    if config.tensorboard and not find_spec("tensorboard"):
        raise cli.UsageError("--tensorboard needs its package: uv run --extra tensorboard python -m experiments.train")
    torch.use_deterministic_algorithms(config.deterministic)
    if config.threads:
        torch.set_num_threads(config.threads)
    parts = together.leader_first(build, config, device)
    together.agree(config, parts.digest)
    optimizer = sharded(parts.optimizer) if config.shard == "optimizer" else parts.optimizer
    ts = init_train_state(parts.model, optimizer, seed=config.seed, device=device)
    read = partial(read_or_write_start, config, parts, ts)
    (begun, progress, history), opt_state = together.lead_and_keep(read)
    if config.shard == "optimizer":
        begun = begun._replace(opt_state=scatter_state(tree.to(opt_state or {}, device), ts.opt_state))
    ts = TrainState(*(tree.to(part, device) for part in begun))
    if not ranks.leads():
        rng.seed_global_state(config.seed)
        if progress.generators:
            rng.set_global_state(progress.generators)
    if config.shard == "params":
        ts = TrainState(*map(split_rows, ts))
    return parts, ts, progress, history


def read_or_write_start(
    config: Config, parts: Parts, ts: TrainState
) -> tuple[tuple[TrainState, Progress, folder.History], Params]:
    """Resume the run, also where torchrun has started it again after a process was lost; else start it.

    Return what all processes get, and the optimizer's whole state; where that is divided, they get none of it.
    """
    divided = config.shard == "optimizer"
    whole = ts._replace(opt_state=parts.optimizer.init(ts.params)) if divided else ts
    again = ranks.attempt() and folder.was_begun_by(config.out, ranks.launcher())
    path = config.out if again else config.resume
    begin = partial(folder.resume, path) if path else folder.start
    begun, progress, history = begin(config, whole, parts.digest)
    if ranks.among_many():
        folder.mark_launch(config.out, ranks.launcher())
    return (begun._replace(opt_state={}) if divided else begun, progress, history), begun.opt_state


def whole_state(config: Config, ts: TrainState) -> TrainState:
    """Return the state as a checkpoint holds it, in the leading process; all call this, as each may have a slice."""
    if config.shard == "optimizer":
        return ts._replace(opt_state=gather_state(ts.opt_state, ts.params))
    return TrainState(*map(whole, ts)) if config.shard == "params" else ts


def whole_model(config: Config, ts: TrainState) -> TrainState:
    """Return the state with whole parameters, to evaluate them; the optimizer's may stay divided."""
    return ts if config.shard == "optimizer" else whole_state(config, ts)


def save(config: Config, ts: TrainState, progress: Progress, history: folder.History, *, best: bool = False) -> None:
    """Have the leading process save a checkpoint; the others wait until it is on the disk."""
    lead(folder.save, config, whole_state(config, ts), progress, history, best=best)


def test_best(
    config: Config, parts: Parts, ts: TrainState, progress: Progress, device: torch.device
) -> dict[str, float]:
    return evaluate(parts, folder.load_best(config, ts, progress), "test", device)


def train_batches(config: Config, parts: Parts, progress: Progress) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Return the batches that are left of the epoch under way."""
    return batches(
        parts.data["train"],
        config.batch_size,
        seed=config.seed,
        epoch=progress.epoch,
        start=progress.batch,
        augment=parts.augment,
        workers=config.workers,
    )


def after_step(progress: Progress, metrics: dict[str, float], targets: int) -> Progress:
    totals = add_examples(progress.totals, metrics, targets)
    return progress._replace(step=progress.step + 1, batch=progress.batch + 1, totals=totals)


def after_epoch(progress: Progress, validation: dict[str, float]) -> Progress:
    """Count one more epoch as done, and as the best so far if its validation loss is the least and finite."""
    progress = progress._replace(epoch=progress.epoch + 1, batch=0, totals={})
    loss = validation.get("loss", math.nan)
    if math.isfinite(loss) and (progress.best is None or not progress.best <= loss):  # a NaN gives way to any number
        return progress._replace(best=loss, best_epoch=progress.epoch)
    return progress


def save_is_due(config: Config, parts: Parts, progress: Progress) -> bool:
    """Return whether `checkpoint_every` steps are over; False at the end of an epoch, which is saved anyway."""
    end_of_epoch = progress.batch * config.batch_size >= len(parts.data["train"].labels)
    return bool(config.checkpoint_every) and progress.step % config.checkpoint_every == 0 and not end_of_epoch


def out_of_patience(config: Config, progress: Progress) -> bool:
    return config.patience is not None and progress.epoch - progress.best_epoch >= config.patience


def interrupted(config: Config, progress: Progress) -> KeyboardInterrupt:
    return KeyboardInterrupt(f"interrupted at step {progress.step}; --resume {config.out} continues")


def evaluate(parts: Parts, ts: TrainState, split: str, device: torch.device) -> dict[str, float]:
    """Return loss and metrics on a split; none on an empty one."""
    if not len(parts.data[split].labels):
        return {}
    size = 1000 if isinstance(parts.data[split].images, Tensor) else 100  # what stays on the disk is to spare memory
    moved = ((x.to(device), y.to(device)) for x, y in batches(parts.data[split], size))
    return eval_one_epoch(ts.params, ts.state, moved, apply=parts.model.apply, metrics=parts.metrics)


def show_epoch(config: Config, progress: Progress, **splits: dict[str, float]) -> None:
    parts = [f"{name} loss {m['loss']:.4f} accuracy {m['accuracy']:.2%}" for name, m in splits.items() if m]
    show.log.print(f"epoch {progress.epoch} of {config.epochs}: {', '.join(parts)}", soft_wrap=True)


@contextmanager
def stop_signals(out: Path) -> Iterator[SimpleNamespace]:
    """Set `asked` after the first Ctrl-C or termination; the next one raises KeyboardInterrupt at once."""
    stop = SimpleNamespace(asked=False)

    def ask(number: int, _: Any) -> None:
        stop.asked = True
        signal.signal(number, interrupt)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt(f"interrupted; --resume {out} continues from the last checkpoint")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
