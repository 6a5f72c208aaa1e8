"""Training and evaluation: the objective, the step, the epoch. A training loop is four lines around a step:

    ts, key = init_train_state(model, optimizer, seed=seed), run_key(seed)
    for epoch in range(epochs):
        for x, y in batches(split, batch_size, seed=seed, epoch=epoch):
            ts, metrics = step(ts, x, y, key=key)

Each function is pure, so a step can be repeated, resumed, traced or mapped with `vmap`. The second half of this file
has variants of the step: gradients accumulated over parts of a batch, compiled, several in one call, in bfloat16.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, no_type_check

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.func import grad_and_value

from fn import tree
from fn.domains import Count, Integer, NonNegative, Ordinal, Probability
from fn.jit import jit
from fn.losses import cross_entropy
from fn.metrics import accuracy, add_examples, count, count_targets, mean_per_example
from fn.models import Model
from fn.optim import Optimizer, global_norm
from fn.rng import fold_in, generator
from fn.rng import key as rng_key
from fn.tensors import summarize
from fn.tree import Params

Metrics = dict[str, Any]
MetricFunctions = dict[str, Callable]

ACCURACY: MetricFunctions = {"accuracy": accuracy}


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
    accumulate: Count = 1,
) -> tuple[TrainState, Metrics]:
    """Run a step: forward, gradient, update. The metrics are those before the update.

    `key` is that of the run, see `run_key`; each step folds in its number. `accumulate` is the number of parts in which
    the gradient is computed, to save memory: see `accumulated`.
    """
    key = fold_in(key, ts.opt_state["step"])
    gradients = gradient_function(objective, accumulate)
    grads, (_, (metrics, state)) = gradients(ts.params, ts.state, x, y, key=key)
    params, opt_state = optimizer.update(ts.params, grads, ts.opt_state)
    return TrainState(params, state, opt_state), metrics | {"grad_norm": global_norm(grads)}


def gradient_function(objective: Callable, accumulate: Count = 1) -> Callable:
    """Return grad_and_value(objective), or the same computed from so many parts of the batch in turn."""
    if accumulate == 1:
        return grad_and_value(objective, has_aux=True)
    return partial(accumulated, objective, parts=accumulate)


def classifier_step(model: Model, optimizer: Optimizer, **options: Any) -> Callable:
    """Return step(ts, x, y, *, key), the `train_step` of a classifier; `options` go to `classification_loss`."""
    return partial(
        train_step, objective=partial(classification_loss, apply=model.apply, **options), optimizer=optimizer
    )


def check_finite(step: Callable) -> Callable:
    """Return `step` with its metrics as Python numbers, and stopped by NaN and infinity.

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
    metrics: MetricFunctions = ACCURACY,
) -> Metrics:
    """Return the loss and each of `metrics` over all batches, however they are cut. Nothing is updated.

    A batch weighs as much as its mean is over, see `fn.metrics.count`; one in which nothing counts adds nothing.
    """
    functions = {"loss": cross_entropy} | metrics
    totals: dict[str, Metrics] = {name: {} for name in functions}
    for x, y in batches:
        logits, _ = apply(params, state, x, train=False)
        for name, f in functions.items():
            totals[name] = add_examples(totals[name], {name: f(logits, y).item()}, int(count(f, y)))
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


def accumulated(
    objective: Callable,
    params: Params,
    state: Params,
    x: Float[Tensor, " batch *shape"] | Int[Tensor, " batch *shape"],
    y: Int[Tensor, " batch *positions"] | Float[Tensor, " batch *objects"],
    *,
    key: Int64[Tensor, ""],
    parts: Count,
) -> tuple[Params, tuple[Tensor, tuple[Metrics, Params]]]:
    """Compute grad_and_value(objective) of a batch from `parts` of it in turn, which takes less memory.

    The loss and the metrics are means over the targets that count, so each part weighs as many as it has of them, and
    one without any adds nothing. Batch norm normalises each part on its own.
    """
    total: Params = {}
    counts = torch.stack([count_targets(part) for part in y.chunk(parts)])
    counts = torch.where(counts.any(), counts, 1)  # if none counts, every part gives what the batch does
    gradients = grad_and_value(objective, has_aux=True)
    for i, (x_part, y_part) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
        grads, (loss, (metrics, state)) = gradients(params, state, x_part, y_part, key=fold_in(key, i))
        share = {"grads": grads, "loss": loss, "metrics": metrics}
        share = tree.map(partial(_share, count=counts[i], total=counts.sum()), share)
        total = tree.map(torch.add, total, share) if total else share
    return total["grads"], (total["loss"], (total["metrics"], state))


def _share(x: Float[Tensor, "..."], count: Int[Tensor, ""], total: Int[Tensor, ""]) -> Float[Tensor, "..."]:
    """Return x · count / total in the dtype of x; 0 where the count is 0, though x may be NaN."""
    dtype = torch.promote_types(x.dtype, torch.float32)  # half precision cannot count beyond 2,048
    share = x.to(dtype) * (count.to(dtype) / total.to(dtype))
    return torch.where(count > 0, share, 0.0).to(x.dtype)


def compiled(step: Callable, batch_size: Count) -> Callable:
    """Return `step`, compiled for batches of `batch_size`; a shorter last batch runs without compilation."""
    whole = jit(step)

    @wraps(step)
    @no_type_check
    def whole_or_rest(ts, x, y, *, key):
        return (whole if len(y) == batch_size else step)(ts, x, y, key=key)

    return whole_or_rest


def several_steps(
    ts: TrainState,
    x: Float[Tensor, "steps batch *shape"] | Int[Tensor, "steps batch *shape"],
    y: Int[Tensor, "steps batch *positions"],
    *,
    step: Callable,
    key: Int64[Tensor, ""],
) -> tuple[TrainState, Metrics]:
    """Run `step` on one batch after the other; each metric has an entry per step.

    Under `jit` this saves time for small models, where a call costs as much as the computation. The loop is unrolled,
    so compilation takes `steps` times as long.
    """
    metrics = []
    for x_step, y_step in zip(x, y, strict=True):
        ts, measured = step(ts, x_step, y_step, key=key)
        metrics.append(measured)
    return ts, tree.stack(*metrics)


def mixed_precision(apply: Callable, dtype: torch.dtype) -> Callable:
    """Return `apply` with its matrix products in `dtype`. Parameters, gradients, sums and logits stay in float32."""
    return partial(_autocast, apply=apply, dtype=dtype)


def _autocast(
    params: Params,
    state: Params,
    x: Float[Tensor, " batch *shape"],
    *,
    apply: Callable,
    dtype: torch.dtype,
    **options: Any,
) -> tuple[Float[Tensor, "..."], Params]:
    with torch.autocast(x.device.type, dtype=dtype):
        logits, state = apply(params, state, x, **options)
    return logits.float(), state
