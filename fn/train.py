"""From a loss to a trained model: the objective, the step, the loop, the evaluation.

Each is a pure function of what it is given, so a step can be replayed, `vmap`ped, traced, or resumed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.func import grad_and_value

from fn import tree
from fn.data.datasets import Split
from fn.data.loader import batches
from fn.losses import cross_entropy
from fn.metrics import accuracy
from fn.models import Model
from fn.optim import adam, adam_init, adamw, adamw_init, global_norm, one_cycle_schedule
from fn.rng import generator
from fn.rng import key as rng_key
from fn.tree import Params

Metrics = dict[str, Any]


class TrainState(NamedTuple):
    """All that a step changes."""

    params: Params
    state: Params
    opt_state: Params


def classification_loss(
    params: Params,
    state: Params,
    x: Float[Tensor, " batch *shape"],
    y: Int[Tensor, " batch"],
    *,
    apply: Callable,
    key: Int64[Tensor, ""] | None = None,
) -> tuple[Float[Tensor, ""], tuple[Metrics, Params]]:
    """(loss, (metrics, new state)) of a training batch: an objective, differentiable in `params`."""
    logits, state = apply(params, state, x, train=True, key=key)
    loss = cross_entropy(logits, y)
    return loss, ({"loss": loss.detach(), "accuracy": accuracy(logits, y)}, state)


def train_step(
    ts: TrainState, x: Tensor, y: Tensor, *, objective: Callable, optimizer: Callable, key: Int64[Tensor, ""]
) -> tuple[TrainState, Metrics]:
    """Forward, gradient, update. The metrics are those before the update."""
    grads, (_, (metrics, state)) = grad_and_value(objective, has_aux=True)(ts.params, ts.state, x, y, key=key)
    params, opt_state = optimizer(ts.params, grads, ts.opt_state)
    return TrainState(params, state, opt_state), metrics | {"grad_norm": global_norm(grads)}


def train(
    ts: TrainState,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    objective: Callable,
    optimizer: Callable,
    seed: int,
) -> Iterator[tuple[TrainState, Metrics]]:
    """Yield (state, metrics) after each batch; stop listening, and it stops training.

    FloatingPointError at the first loss or gradient that is not finite: the update is not made, and the error names the
    step and the first parameter whose gradient is bad.
    """
    for x, y in batches:
        step = int(ts.opt_state["step"])
        key = rng_key(seed, step)
        after, metrics = train_step(ts, x, y, objective=objective, optimizer=optimizer, key=key)
        metrics = {name: value.item() for name, value in metrics.items()}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            grads, _ = grad_and_value(objective, has_aux=True)(ts.params, ts.state, x, y, key=key)
            raise FloatingPointError(f"step {step}: loss {metrics['loss']}, {_describe_bad_gradient(grads)}")
        ts = after
        yield ts, metrics


def _describe_bad_gradient(grads: Params) -> str:
    match tree.first_non_finite(grads):
        case None:
            return "every gradient is finite, though large"
        case name, grad:
            bad = int((~grad.isfinite()).sum())
            return f"first bad gradient in {name} ({bad} of {grad.numel()} entries are not finite)"


def init(model: Model, optimizer_init: Callable, *, seed: int, device: torch.device | str = "cpu") -> TrainState:
    """Weights from the seed, drawn on the CPU so that every device starts alike."""
    params, state = (tree.to(part, device) for part in model.init(generator(seed)))
    return TrainState(params, state, optimizer_init(params))


def count_steps(split: Split, *, epochs: int, batch_size: int) -> int:
    """How many batches `fit` takes, the short last ones included."""
    return epochs * math.ceil(len(split.labels) / batch_size)


def fit(
    model: Model,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    max_lr: float,
    seed: int,
    weight_decay: float = 1e-2,
    augment: Callable | None = None,
) -> Iterator[tuple[TrainState, Metrics]]:
    """A classifier from its first weights to its last: AdamW under a one-cycle schedule, a new order every epoch."""
    total_steps = count_steps(split, epochs=epochs, batch_size=batch_size)
    yield from train(
        init(model, adamw_init, seed=seed, device=split.images.device),
        (batch for e in range(epochs) for batch in batches(split, batch_size, rng=generator(seed, e), augment=augment)),
        objective=partial(classification_loss, apply=model.apply),
        optimizer=lambda params, grads, state: adamw(
            params,
            grads,
            state,
            lr=one_cycle_schedule(state["step"], max_lr=max_lr, total_steps=total_steps),
            weight_decay=weight_decay,
        ),
        seed=seed,
    )


def overfit(
    model: Model, split: Split, *, seed: int, steps: int = 300, lr: float = 1e-2, loss_below: float = 1e-3
) -> Iterator[tuple[TrainState, Metrics]]:
    """Adam on a handful of examples until evaluation knows them by heart: all right, and the loss below `loss_below`.

    The metrics are those of `evaluate` after each step, so that batch norm must stand on its running statistics.
    """
    start = init(model, adam_init, seed=seed, device=split.images.device)
    objective = partial(classification_loss, apply=model.apply)
    for ts, metrics in train(
        start, repeat(split, steps), objective=objective, optimizer=partial(adam, lr=lr), seed=seed
    ):
        metrics |= evaluate(ts.params, ts.state, split, apply=model.apply)
        yield ts, metrics
        if known_by_heart(metrics, loss_below):
            return


def known_by_heart(metrics: Metrics, loss_below: float = 1e-3) -> bool:
    return metrics["accuracy"] == 1 and metrics["loss"] < loss_below


def steps_to_know(history: Sequence[Metrics]) -> float:
    """The first step, counted from 1, after which the examples were known by heart; infinity if none was."""
    return next((step for step, metrics in enumerate(history, start=1) if known_by_heart(metrics)), math.inf)


@torch.no_grad()
def evaluate(params: Params, state: Params, split: Split, *, apply: Callable, batch_size: int = 1000) -> Metrics:
    """Mean loss and accuracy over a split, each batch weighted by its size; changes nothing."""
    totals = {"loss": 0.0, "accuracy": 0.0}
    for x, y in batches(split, batch_size):
        logits, _ = apply(params, state, x, train=False)
        totals["loss"] += cross_entropy(logits, y, reduction="sum").item()
        totals["accuracy"] += accuracy(logits, y).item() * len(y)
    return {name: total / len(split.labels) for name, total in totals.items()}
