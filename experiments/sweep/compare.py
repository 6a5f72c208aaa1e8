"""The check of experiments.sweep: every member of the ensemble ends where it ends when trained alone."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from experiments.shared import cli
from experiments.sweep.config import Config, Grid
from fn import tree
from fn.data.datasets import Split, take
from fn.data.loader import batches
from fn.ensemble import ensemble_batches, ensemble_init, ensemble_key, member
from fn.gradcheck import largest
from fn.models import Model
from fn.optim import adamw
from fn.train import TrainState, classifier_step, count_steps, init_train_state, run_key
from fn.tree import Params

STEPS = 20


def compare_with_separate_runs(config: Config, model: Model, split: Split, grid: Grid, step: Callable) -> cli.Check:
    """Check parameters, both moments, step count and metrics of 20 ensemble steps against `train_step` on each alone.

    In the sweep's own float32 where the step runs as it is. A compiled step rounds differently, which AdamW at the
    highest rates amplifies from 1e-7 to 1e-4 within 20 steps: that the arithmetic is the same then shows in float64.
    """
    dtype = torch.float64 if config.compile else torch.float32
    few = take(split, 10 * config.batch_size - 1)  # so that the last batch of each epoch is a short one
    few = Split(few.images.to(dtype), few.labels)
    ts = in_dtype(ensemble_init(model, adamw, seeds=grid.seeds, device=few.images.device), dtype)
    after, metrics = train_together(config, few, grid, step, ts)
    gaps = []
    for k in range(len(grid.seeds)):
        parts = member(after, k)._asdict() | {"metrics": tree.map(lambda x, k=k: x[:, k], metrics)}
        alone, own_metrics = train_alone(config, model, few, grid, k)
        gaps += tree.leaves(tree.map(_gap, parts, alone._asdict() | {"metrics": own_metrics}))
    steps = len(metrics["loss"])
    name = f"{len(grid.seeds)} models at once: largest difference from separate runs, {steps} steps"
    return cli.check(name, largest(gaps), "<=", 1e-5)


def train_together(
    config: Config, split: Split, grid: Grid, step: Callable, ts: TrainState
) -> tuple[TrainState, Params]:
    """Return (the ensemble after at least 20 steps, its metrics with axes of steps and models)"""
    history, device = [], split.images.device
    lr, key = torch.tensor(grid.lrs, dtype=split.images.dtype, device=device), ensemble_key(grid.seeds, device)
    for epoch in range(_epochs(config, split)):
        for index in ensemble_batches(
            len(split.labels), config.batch_size, seeds=grid.seeds, epoch=epoch, device=device
        ):
            ts, metrics = step(ts, *split, index, lr, key)
            history.append(metrics)
    return ts, tree.stack(*history)


def train_alone(config: Config, model: Model, split: Split, grid: Grid, k: int) -> tuple[TrainState, Params]:
    """Return (member k trained without the others for as many steps, its metrics with an axis of steps)"""
    history, optimizer, seed = [], adamw(lr=grid.lrs[k]), grid.seeds[k]
    step, key = classifier_step(model, optimizer), run_key(seed)
    ts = init_train_state(model, optimizer, seed=seed, device=split.images.device)
    ts = in_dtype(ts, split.images.dtype)
    for epoch in range(_epochs(config, split)):
        for x, y in batches(split, config.batch_size, seed=seed, epoch=epoch):
            ts, metrics = step(ts, x, y, key=key)
            history.append(metrics)
    return ts, tree.stack(*history)


def _epochs(config: Config, split: Split) -> int:
    return math.ceil(STEPS / count_steps(len(split.labels), epochs=1, batch_size=config.batch_size))


def in_dtype(ts: TrainState, dtype: torch.dtype) -> TrainState:
    """Return the TrainState with its floating-point tensors in that dtype; the step count stays an integer."""
    return TrainState(*(tree.map(lambda x: x.to(dtype) if x.is_floating_point() else x, part) for part in ts))


def _gap(x: Tensor, reference: Tensor) -> float:
    """Return the largest difference, relative to what exceeds 1; 0 between two values that diverged alike."""
    alike = (x == reference) | (x.isnan() & reference.isnan())
    gap = (x - reference).abs() / reference.abs().clamp(min=1)
    return float(torch.where(alike, 0.0, gap.double()).max())
