"""The work of experiments.sweep: train the ensemble, choose the best member on the validation examples, save it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
from safetensors.torch import save as to_bytes

from experiments.shared import cli, show
from experiments.sweep.compare import compare_with_separate_runs
from experiments.sweep.config import Config, Grid, make_grid
from experiments.sweep.curvature import descend, draw_noise
from experiments.train.build import split_data
from experiments.train.config import Config as TrainerConfig
from fn import draw, tree
from fn.data.datasets import Split
from fn.ensemble import ensemble_batches, ensemble_eval, ensemble_init, ensemble_key, ensemble_step, member
from fn.files import write_atomic
from fn.jit import jit
from fn.models import Model
from fn.models.mlp import mlp
from fn.optim import adamw
from fn.train import TrainState, classification_loss, count_steps, eval_one_epoch


def report(config: Config, device: torch.device) -> list[cli.Check]:
    """Run the sweep on all its data; print, draw and save; return the checks."""
    dataset = cli.load(config.dataset, device, root=config.root)
    data = split_data(TrainerConfig(validation=config.validation, seed=config.seed), dataset)
    if not len(data["validation"].labels):
        raise cli.UsageError(f"--validation {config.validation} leaves no example to choose by")
    model = mlp(dataset.shape, len(dataset.classes), hidden=config.hidden)
    grid = make_grid(config)
    step = partial(ensemble_step, objective=partial(classification_loss, apply=model.apply), optimizer=adamw)
    step = jit(step) if config.compile else step
    threads = torch.get_num_threads()
    if not config.compile:
        torch.set_num_threads(1)  # operations this small wait longer for a second thread than it helps them
    show.log.print(f"{len(grid.seeds)} models at once, compared with each alone over 20 steps")
    agreement = compare_with_separate_runs(config, model, data["train"], grid, step)
    history = train(config, model, data["train"], grid, step)
    best = evaluate(config, model, data, grid, history[-1])
    draw_noise(config, model, data["train"], [member(ts, best) for ts in history])
    descend(config, model, data["train"])
    torch.set_num_threads(threads)
    if not config.bench:
        return [agreement]
    from experiments.sweep.speed import compare_speed  # here, not above: what it imports is for --bench alone

    return [agreement, *compare_speed(data["train"])]


def train(config: Config, model: Model, split: Split, grid: Grid, step: Callable) -> list[TrainState]:
    """Return the TrainState of the ensemble at the start and after each epoch; no step writes to its input."""
    examples, device = len(split.labels), split.images.device
    lr = torch.tensor(grid.lrs, dtype=split.images.dtype, device=device)
    ts, key = ensemble_init(model, adamw, seeds=grid.seeds, device=device), ensemble_key(grid.seeds, device)
    history = [ts]
    total = count_steps(examples, epochs=config.epochs, batch_size=config.batch_size)
    with show.progress(total, f"{len(grid.seeds)} models at once, median") as advance:
        for epoch in range(config.epochs):
            for index in ensemble_batches(examples, config.batch_size, seeds=grid.seeds, epoch=epoch, device=device):
                ts, metrics = step(ts, *split, index, lr, key)
                advance(float(metrics["loss"].nanmedian()))
            history.append(ts)
    return history


def evaluate(config: Config, model: Model, data: Mapping[str, Split], grid: Grid, ts: TrainState) -> int:
    """Choose the best member on the validation examples, test and save it: its number."""
    metrics = ensemble_eval(ts.params, ts.state, *data["validation"], apply=model.apply)
    diverged, chance = ~metrics["loss"].isfinite(), 1 / len(data["train"].labels.unique())
    accuracy = torch.where(diverged, chance, metrics["accuracy"]).cpu()
    rank = lambda k: (diverged[k].item(), -accuracy[k].item(), metrics["loss"][k].item())  # noqa: E731
    best = min(range(len(accuracy)), key=rank)
    by_lr = accuracy.reshape(len(config.lrs), config.seeds)
    show_accuracies(config, by_lr.tolist(), diverged.reshape(by_lr.shape).sum(dim=1).tolist(), chance)
    if diverged[best]:
        raise cli.RunError("every model has diverged: try lower --lrs")

    lr, seed = grid.lrs[best], grid.seeds[best]
    mark = (lr, float(accuracy[best]), f"best: {accuracy[best]:.2%} at {lr:g}, seed {seed}")
    title = f"Each dot is a model of another seed: the best of {len(grid.seeds)} learned at lr {lr:g}"
    labels = {"xlabel": "learning rate", "ylabel": "validation accuracy"}
    figure = draw.spread(config.lrs, by_lr, **labels, marked=mark, title=title)
    show.picture(show.save)(figure, config.out / "sweep.png")
    chosen = member(ts, best)
    tested = eval_one_epoch(chosen.params, chosen.state, [data["test"]], apply=model.apply)["accuracy"]
    save_best(config.out / "best.safetensors", chosen, {"lr": f"{lr:g}", "seed": f"{seed}"})
    say = partial(show.console.print, markup=False, soft_wrap=True)
    say(f"best on validation: lr {lr:g}, seed {seed}, {accuracy[best]:.2%}; on the test set {tested:.2%}")
    if len(config.lrs) > 1 and lr in (config.lrs[0], config.lrs[-1]):
        say(f"{lr:g} is at the edge of --lrs: a better one may lie beyond")
    say(f'load it back: params = tree.unflatten(load_file("{config.out}/best.safetensors"))')
    return best


def show_accuracies(
    config: Config, accuracies: Sequence[Sequence[float]], diverged: Sequence[int], chance: float
) -> None:
    """Print a row per learning rate: mean, deviation and extremes over its seeds, and how many models diverged."""
    rows = [
        (f"{lr:g}", _mean_and_deviation(row), f"{min(row):.2%}", f"{max(row):.2%}", f"{n or ''}")
        for lr, row, n in zip(config.lrs, accuracies, diverged, strict=True)
    ]
    title = f"Validation accuracy after {config.epochs} epochs, {config.seeds} seeds each"
    note = f" (a diverged model counts as chance, {chance:.0%})" if any(diverged) else ""
    show.table(title + note, ("lr", "mean ± sd", "least", "most", "diverged"), rows)


def _mean_and_deviation(values: Sequence[float]) -> str:
    return f"{mean(values):.2%}" + (f" ± {stdev(values):.2%}" if len(values) > 1 else "")


def save_best(path: Path, ts: TrainState, metadata: dict[str, str]) -> None:
    """Write the parameters under dotted names, as a state_dict has them, for safetensors' load_file."""
    flat = {name: x.detach().cpu().contiguous() for name, x in tree.flatten(ts.params).items()}
    write_atomic(path, to_bytes(flat, metadata))
