"""Training and evaluation: the objective, the step, the epoch. A training loop is four lines around a step:

    ts, key = init_train_state(model, optimizer, seed=seed), run_key(seed)
    for epoch in range(epochs):
        for x, y in batches(split, batch_size, seed=seed, epoch=epoch):
            ts, metrics = step(ts, x, y, key=key)

Each function is pure, so a step can be repeated, resumed, traced or mapped with `vmap`. fn/train_variants.py has other
steps of the same signature: gradients accumulated over parts of a batch, compiled, several in one call, in bfloat16.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.func import grad_and_value

from fn import tree
from fn.domains import Count, Integer, NonNegative, Ordinal, Probability
from fn.losses import cross_entropy
from fn.metrics import Metric, accuracy, add_examples, count_targets, mean_per_example
from fn.models import Model
from fn.optim import Optimizer, global_norm
from fn.rng import fold_in, generator
from fn.rng import key as rng_key
from fn.tensors import summarize
from fn.tree import Params

Metrics = dict[str, Any]
NamedMetrics = dict[str, Metric]

ACCURACY: NamedMetrics = {"accuracy": Metric(accuracy, count_targets)}


class TrainState(NamedTuple):
    """Everything that a step updates."""

    params: Params
    state: Params
    opt_state: Params


def init_train_state(
    model: Model, optimizer: Optimizer, *, seed: Integer, device: torch.device | str = "cpu"
) -> TrainState:
    """Return the initial parameters and states, drawn on the CPU so that every device starts from the same numbers."""
    params, state = (tree.to(part, device) for part in model.init(generator(seed)))
    return TrainState(params, state, optimizer.init(params))


def run_key(seed: Integer) -> Int64[Tensor, ""]:
    """Return the key of a run's steps. It differs from key(seed, epoch), under which the loader augments images."""
    return rng_key(seed, 2**62)


def classification_loss(
    params: Params,
    state: Params,
    x: Float[Tensor, " batch *shape"] | Int[Tensor, " batch *shape"],
    y: Int[Tensor, " batch *positions"],
    *,
    apply: Callable,
    key: Int64[Tensor, ""] | None = None,
    label_smoothing: Probability = 0.0,
) -> tuple[Float[Tensor, ""], tuple[Metrics, Params]]:
    """Return (loss, (metrics, new state)) of a training batch: an objective, to be differentiated in `params`."""
    logits, state = apply(params, state, x, train=True, key=key)
    loss = cross_entropy(logits, y, label_smoothing=label_smoothing)
    return loss, ({"loss": loss.detach(), "accuracy": accuracy(logits, y)}, state)


def train_step(
    ts: TrainState,
    x: Tensor,
    y: Tensor,
    *,
    objective: Callable,
    optimizer: Optimizer,
    key: Int64[Tensor, ""],
) -> tuple[TrainState, Metrics]:
    """Run a step: forward, gradient, update. The metrics are those before the update.

    `key` is that of the run, see `run_key`; each step folds in its number.
    """
    key = fold_in(key, ts.opt_state["step"])
    grads, (_, (metrics, state)) = grad_and_value(objective, has_aux=True)(ts.params, ts.state, x, y, key=key)
    params, opt_state = optimizer.update(ts.params, grads, ts.opt_state)
    return TrainState(params, state, opt_state), metrics | {"grad_norm": global_norm(grads)}


def classifier_step(model: Model, optimizer: Optimizer, *, step: Callable = train_step, **options: Any) -> Callable:
    """Return step(ts, x, y, *, key), the `train_step` of a classifier or another; `options`: `classification_loss`."""
    return partial(step, objective=partial(classification_loss, apply=model.apply, **options), optimizer=optimizer)


def check_finite(step: Callable) -> Callable:
    """Return `step`, stopped by NaN and infinity. To look at its metrics is to fetch them: they come as Python numbers.

    FloatingPointError if the loss or the gradient norm is not finite. It names the step and the first parameter that
    the update would make non-finite; the caller keeps the state before the update.
    """
    return partial(_checked_step, step=step)


def _checked_step(
    ts: TrainState, x: Tensor, y: Tensor, *, step: Callable, key: Int64[Tensor, ""]
) -> tuple[TrainState, Metrics]:
    after, tensors = step(ts, x, y, key=key)
    metrics = {name: value.item() for name, value in tensors.items()}
    if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
        number = int(ts.opt_state["step"])
        reason = _describe_update(after.params) if count_targets(y) else "as no target of the batch counts"
        raise FloatingPointError(f"step {number}: loss {metrics['loss']}, {reason}")
    return after, metrics


def _describe_update(params: Params) -> str:
    match tree.first_non_finite(params):
        case None:
            return "every parameter after the update is finite, though the gradient is large"
        case name, leaf:
            return f"first non-finite update in {name}: {summarize(leaf)}"


def train_one_epoch(
    ts: TrainState,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    step: Callable,
    seed: Integer,
    on_step: Callable | None = None,
) -> tuple[TrainState, Metrics]:
    """Train on each batch once; return the state, and the mean of each metric over what counts, not over the batches.

    The labs write this loop out. on_step(ts, metrics) is called after every step. FloatingPointError as in
    `check_finite`.
    """
    totals: Metrics = {}
    step, key = check_finite(step), run_key(seed)
    for x, y in batches:
        ts, metrics = step(ts, x, y, key=key)
        totals = add_examples(totals, metrics, int(count_targets(y)))
        if on_step:
            on_step(ts, metrics)
    return ts, mean_per_example(totals)


@torch.no_grad()
def eval_one_epoch(
    params: Params,
    state: Params,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    apply: Callable,
    metrics: NamedMetrics = ACCURACY,
) -> Metrics:
    """Return the loss and each of `metrics` over all batches, however they are cut. Nothing is updated.

    A batch weighs as much as its mean is over, see `fn.metrics.Metric`; one in which nothing counts adds nothing.
    """
    metrics = {"loss": Metric(cross_entropy, count_targets)} | metrics
    totals: dict[str, Metrics] = {name: {} for name in metrics}
    for x, y in batches:
        logits, _ = apply(params, state, x, train=False)
        for name, metric in metrics.items():
            value = metric.mean(logits, y).item()
            totals[name] = add_examples(totals[name], {name: value}, int(metric.over(y)))
    return {name: mean for of_one in totals.values() for name, mean in mean_per_example(of_one).items()}


def count_steps(examples: Ordinal, *, epochs: Ordinal, batch_size: Count) -> int:
    """Return the number of batches in all epochs, with the short last ones."""
    return epochs * math.ceil(examples / batch_size)


def is_overfit(metrics: Metrics, loss_below: NonNegative = 1e-3) -> bool:
    """Return whether the model has fitted its examples: all of them right, and the loss below `loss_below`."""
    return metrics["accuracy"] == 1 and metrics["loss"] < loss_below


def steps_to_overfit(history: Sequence[Metrics]) -> float:
    """Return the first step, counted from 1, after which the model `is_overfit`; infinity if there is none."""
    return next((step for step, metrics in enumerate(history, start=1) if is_overfit(metrics)), math.inf)
