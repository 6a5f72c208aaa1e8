"""The work of experiments.sweep: the ensemble trained, judged, and compared with models trained one by one."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.func import vmap

from experiments.shared import cli, show
from experiments.sweep.__main__ import Config
from experiments.train.build import split_data
from experiments.train.config import Config as TrainerConfig
from fn import draw, tree
from fn.curvature import gradient_noise_scale, per_sample_grads, sharpness
from fn.data.datasets import Split, take
from fn.data.loader import batches
from fn.ensemble import ensemble_eval, ensemble_fit, ensemble_init, ensemble_step, member, stack
from fn.files import write_atomic
from fn.jit import jit
from fn.models import Model
from fn.models.mlp import mlp
from fn.optim import adam_init, adamw, sgd, sgd_init
from fn.rng import key
from fn.train import TrainState, classification_loss, classifier_step, count_steps, eval_one_epoch, init, run_key
from fn.tree import Params

PROBE, MOST_NUMBERS = 1200, 10**8
"""how many examples the noise is measured on at most, and how many numbers their gradients may be"""
DESCENT_EXAMPLES = 500
DESCENT_RATES = (0.1, 0.3, 0.6, 1.2)
DESCENT_STEPS = (*range(10), *range(10, 30, 4), *range(30, 151, 15))
"""the steps of gradient descent after which the curvature is measured"""


class Grid(NamedTuple):
    """What member k of the ensemble is trained with: every rate with every seed."""

    rates: list[float]
    seeds: list[int]


def report(config: Config, device: torch.device) -> list[cli.Check]:
    dataset = cli.load(config.dataset, device, root=config.root)
    data = split_data(TrainerConfig(validation=config.validation, seed=config.seed), dataset)
    if not len(data["validation"].labels):
        raise cli.UsageError(f"--validation {config.validation} leaves no example to choose by")
    model = mlp(dataset.shape, len(dataset.classes), hidden=config.hidden)
    pairs = [(rate, seed) for rate in config.rates for seed in cli.seeds(config, config.seeds)]
    grid = Grid([rate for rate, _ in pairs], [seed for _, seed in pairs])
    step = partial(ensemble_step, objective=partial(classification_loss, apply=model.apply), update=adamw)
    step = jit(step) if config.compile else step
    threads = torch.get_num_threads()
    if not config.compile:
        torch.set_num_threads(1)  # operations this small wait longer for a second thread than it helps them
    show.log.print(f"{len(pairs)} models at once, compared with each alone over 20 steps")
    same = compare_with_separate_runs(config, model, data["train"], grid, step)
    history = train(config, model, data["train"], grid, step)
    best = judge(config, model, data, grid, history[-1])
    draw_noise(config, model, data["train"], [member(ts, best) for ts in history])
    descend(config, model, take(data["train"], DESCENT_EXAMPLES))
    torch.set_num_threads(threads)
    if not config.bench:
        return [same]
    from experiments.sweep.speed import compare_speed  # here, not above: what it imports is for --bench alone

    return [same, *compare_speed(data["train"])]


def train(config: Config, model: Model, split: Split, grid: Grid, step: Callable) -> list[TrainState]:
    """Where all members stood at the start and after each epoch: no step writes to what it was given."""
    start = ensemble_init(model, adam_init, seeds=grid.seeds, device=split.images.device)
    per_epoch = count_steps(len(split.labels), epochs=1, batch_size=config.batch_size)
    history, steps = [start], config.epochs * per_epoch
    title = f"{len(grid.seeds)} models at once, median"
    with show.progress(steps, title) as advance:
        numbers = iter(range(1, steps + 1))

        def each(ts: TrainState, metrics: Params) -> None:
            if next(numbers) % per_epoch == 0:
                history.append(ts)
            advance(float(metrics["loss"].nanmedian()))

        run = {"epochs": config.epochs, "batch_size": config.batch_size}
        ensemble_fit(start, split, step=step, rates=grid.rates, seeds=grid.seeds, each=each, **run)
    return history


def judge(config: Config, model: Model, data: Mapping[str, Split], grid: Grid, ts: TrainState) -> int:
    """The number of the member that does best on the validation examples, saved, and only then shown the test's."""
    seen = ensemble_eval(ts.params, ts.state, *data["validation"], apply=model.apply)
    diverged, chance = ~seen["loss"].isfinite(), 1 / len(data["train"].labels.unique())
    accuracy = torch.where(diverged, chance, seen["accuracy"]).cpu()
    best = min(range(len(accuracy)), key=lambda k: (diverged[k].item(), -accuracy[k].item(), seen["loss"][k].item()))
    by_rate = accuracy.reshape(len(config.rates), config.seeds)
    lost = diverged.reshape(by_rate.shape).sum(dim=1).tolist()
    rows = [
        (f"{rate:g}", _mean_and_deviation(row), f"{min(row):.2%}", f"{max(row):.2%}", f"{n or ''}")
        for rate, row, n in zip(config.rates, by_rate.tolist(), lost, strict=True)
    ]
    title = f"Validation accuracy after {config.epochs} epochs, {config.seeds} seeds a rate"
    note = f" (a diverged model counts as chance, {chance:.0%})" if any(lost) else ""
    show.table(title + note, ("rate", "mean ± sd", "least", "most", "diverged"), rows)
    if diverged[best]:
        raise cli.RunError("every model has diverged: try lower --rates")

    rate, seed = grid.rates[best], grid.seeds[best]
    mark = (rate, float(accuracy[best]), f"best: {accuracy[best]:.2%} at {rate:g}, seed {seed}")
    figure = draw.spread(config.rates, by_rate, xlabel="learning rate", ylabel="validation accuracy", marked=mark)
    draw.save(figure, config.out / "sweep.png")
    chosen = member(ts, best)
    tested = eval_one_epoch(chosen.params, chosen.state, [data["test"]], apply=model.apply)["accuracy"]
    save_best(config.out / "best.safetensors", chosen, {"rate": f"{rate:g}", "seed": f"{seed}"})
    say = partial(show.console.print, markup=False, soft_wrap=True)
    say(f"best on validation: rate {rate:g}, seed {seed}, {accuracy[best]:.2%}; on the test set {tested:.2%}")
    if len(config.rates) > 1 and rate in (config.rates[0], config.rates[-1]):
        say(f"{rate:g} is at the edge of --rates: a better one may lie beyond")
    say(f'load it back: params = tree.unflatten(load_file("{config.out}/best.safetensors"))')
    return best


def _mean_and_deviation(values: Sequence[float]) -> str:
    return f"{mean(values):.2%}" + (f" ± {stdev(values):.2%}" if len(values) > 1 else "")


def save_best(path: Path, ts: TrainState, about: dict[str, str]) -> None:
    """The parameters under dotted names, as a state_dict has them, in a file that safetensors' load_file reads."""
    flat = {name: x.detach().cpu().contiguous() for name, x in tree.flatten(ts.params).items()}
    write_atomic(path, to_bytes(flat, about))


def compare_with_separate_runs(config: Config, model: Model, split: Split, grid: Grid, step: Callable) -> cli.Check:
    """Of parameters, both moments, step count and metrics after 20 steps, against `train_step` on each member alone.

    In the sweep's own float32 where the step runs as it is. A compiled step rounds otherwise, which AdamW at the
    highest rates amplifies, a 1e-7 to a 1e-4 within 20 steps: that the arithmetic is the same then shows in float64.
    """
    dtype = torch.float64 if config.compile else torch.float32
    few = take(split, 10 * config.batch_size - 1)  # so that the last batch of each epoch is a short one
    few = Split(few.images.to(dtype), few.labels)
    epochs = math.ceil(20 / count_steps(len(few.labels), epochs=1, batch_size=config.batch_size))
    starts = [in_dtype(init(model, adam_init, seed=seed, device=few.images.device), dtype) for seed in grid.seeds]
    seen: list[Params] = []
    fit_all = partial(ensemble_fit, stack(starts), few, step=step, epochs=epochs, batch_size=config.batch_size)
    ts = fit_all(rates=grid.rates, seeds=grid.seeds, each=lambda ts, metrics: seen.append(metrics))
    together = ts._asdict() | {"metrics": tree.stack(*seen)}
    gaps = []
    for k, (rate, seed) in enumerate(zip(*grid, strict=True)):
        alone, own = starts[k], []
        one_step = classifier_step(model, partial(adamw, lr=rate))
        for epoch in range(epochs):
            for x, y in batches(few, config.batch_size, seed=seed, epoch=epoch):
                alone, metrics = one_step(alone, x, y, key=run_key(seed))
                own.append(metrics)
        parts = member(ts, k)._asdict() | {"metrics": tree.map(lambda x, k=k: x[:, k], together["metrics"])}
        gaps += tree.leaves(tree.map(_gap, parts, alone._asdict() | {"metrics": tree.stack(*own)}))
    name = f"{len(grid.seeds)} models at once: largest difference from separate runs, {len(seen)} steps"
    return cli.check(name, float(torch.tensor(gaps).max()), "<=", 1e-5)


def in_dtype(ts: TrainState, dtype: torch.dtype) -> TrainState:
    """Its floating-point tensors in that dtype; the step count stays whole."""
    return TrainState(*(tree.map(lambda x: x.to(dtype) if x.is_floating_point() else x, part) for part in ts))


def _gap(x: Tensor, reference: Tensor) -> float:
    """The largest difference, relative to what exceeds 1; of two that diverged alike, none."""
    alike = (x == reference) | (x.isnan() & reference.isnan())
    gap = (x - reference).abs() / reference.abs().clamp(min=1)
    return float(torch.where(alike, 0.0, gap.double()).max())


def draw_noise(config: Config, model: Model, split: Split, history: Sequence[TrainState]) -> None:
    """The gradient noise scale along the run of one model, beside the size of its batches."""
    some = take(split, max(2, min(PROBE, MOST_NUMBERS // tree.size(history[0].params))))
    grads = partial(per_sample_grads, partial(classification_loss, apply=model.apply))
    whole = len(some.labels) == len(split.labels)
    scales = [float(gradient_noise_scale(grads(ts.params, ts.state, *some), whole=whole)) for ts in history]
    lines = {
        "noise scale tr Σ / |G|²": dict(enumerate(scales)),
        "batch size": {0: config.batch_size, config.epochs: config.batch_size},
    }
    panel = "examples"
    draw.save(draw.curves({panel: lines}, xlabel="epoch of the best model", log=[panel]), config.out / "noise.png")
    shown = sorted({0, 1, config.epochs // 4, config.epochs // 2, config.epochs})
    title = f"Gradient noise scale of the best model over {len(some.labels)} training examples, in examples"
    show.table(title, [f"epoch {epoch}" for epoch in shown], [[f"{scales[epoch]:.3g}" for epoch in shown]])


def descend(config: Config, model: Model, split: Split) -> None:
    """The sharpness along plain gradient descent on all of `split`, which is unstable above 2/η.

    Not along the sweep's own runs: AdamW rescales each direction, which moves the limit (Cohen et al. 2022).
    """
    objective = partial(classification_loss, apply=model.apply)
    seeds = [config.seed] * len(DESCENT_RATES)
    start = ensemble_init(model, sgd_init, seeds=seeds, device=split.images.device)
    states, last = [start.params], DESCENT_STEPS[-1]
    with show.progress(last, f"gradient descent at {len(seeds)} rates, median") as advance:

        def each(ts: TrainState, metrics: Params) -> None:
            states.append(ts.params)
            advance(float(metrics["loss"].nanmedian()))

        run = {"epochs": last, "batch_size": len(split.labels)}
        step = partial(ensemble_step, objective=objective, update=sgd)
        ensemble_fit(start, split, step=step, rates=DESCENT_RATES, seeds=seeds, each=each, **run)
    loss = lambda params: objective(params, start.state, *split)[0]  # noqa: E731
    at = vmap(partial(sharpness, loss, key=key(config.seed).to(split.images.device), steps=12))
    measured = {step: at(states[step]).tolist() for step in DESCENT_STEPS}
    runs = {rate: {step: values[k] for step, values in measured.items()} for k, rate in enumerate(DESCENT_RATES)}
    panels = {
        f"sharpness at η = {rate:g}": {"largest eigenvalue": run, "2/η": {0: 2 / rate, last: 2 / rate}}
        for rate, run in runs.items()
    }
    draw.save(draw.curves(panels, xlabel="step of gradient descent"), config.out / "sharpness.png")
    rows = [
        (f"{rate:g}", f"{2 / rate:.3g}", f"{run[0]:.3g}", f"{max(run.values()):.3g}", f"{run[last]:.3g}")
        for rate, run in runs.items()
    ]
    title = f"Sharpness along gradient descent on {len(split.labels)} examples"
    show.table(title, ("rate η", "2/η", "at the start", "highest", f"after {last} steps"), rows)
