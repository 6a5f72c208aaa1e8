"""K models trained at once: an ensemble is `vmap(train_step)` and nothing more.

Its TrainState is that of one model, each leaf with a leading axis of `models`. Every member has its own weights, order
of the examples, key and learning rate, and ends where it would have ended alone.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.func import vmap

from fn import tree
from fn.data.datasets import Split
from fn.data.loader import epoch_order
from fn.losses import cross_entropy
from fn.models import Model
from fn.optim import Optimizer, Rate
from fn.train import ACCURACY, MetricFunctions, Metrics, TrainState, init_train_state, run_key, train_step
from fn.tree import Params


def ensemble_init(
    model: Model, optimizer: Optimizer, *, seeds: Sequence[int], device: torch.device | str = "cpu"
) -> TrainState:
    """Member k starts as `init_train_state` starts for seeds[k]."""
    return stack([init_train_state(model, optimizer, seed=seed, device=device) for seed in seeds])


def stack(members: Sequence[TrainState]) -> TrainState:
    return TrainState(*(tree.stack(*parts) for parts in zip(*members, strict=True)))


def ensemble_step(
    ts: TrainState,
    images: Float[Tensor, " examples *shape"],
    labels: Int[Tensor, " examples"],
    index: Int64[Tensor, "models batch"],
    lr: Float[Tensor, " models"],
    key: Int64[Tensor, " models"],
    *,
    objective: Callable,
    optimizer: Callable,
) -> tuple[TrainState, Metrics]:
    """`train_step` of every member on its own batch, row k of `index`, at its own rate, under the key of its own run.

    `optimizer` is a function such as `adamw`, called with the member's `lr`. A member that diverges does not affect
    the others. The metrics have an axis of `models`.
    """
    step = partial(_member_step, objective=objective, optimizer=optimizer)
    return vmap(step)(ts, images[index], labels[index], lr, key)


def _member_step(
    ts: TrainState,
    x: Float[Tensor, " batch *shape"],
    y: Int[Tensor, " batch"],
    lr: Rate,
    key: Int64[Tensor, ""],
    *,
    objective: Callable,
    optimizer: Callable,
) -> tuple[TrainState, Metrics]:
    return train_step(ts, x, y, objective=objective, optimizer=optimizer(lr=lr), key=key)


def ensemble_fit(
    ts: TrainState,
    split: Split,
    *,
    step: Callable,
    rates: Sequence[float],
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    on_step: Callable | None = None,
) -> TrainState:
    """Train member k as it would be trained alone, from seeds[k] at rates[k].

    on_step(ts, metrics) is called after every step.
    """
    device = split.images.device
    lr = torch.tensor(rates, dtype=split.images.dtype, device=device)
    key = torch.stack([run_key(seed) for seed in seeds]).to(device)
    for epoch in range(epochs):
        orders = [epoch_order(len(split.labels), seed=seed, epoch=epoch) for seed in seeds]
        for index in torch.stack(orders).to(device).split(batch_size, dim=1):
            ts, metrics = step(ts, *split, index, lr, key)
            if on_step:
                on_step(ts, metrics)
    return ts


@torch.no_grad()
def ensemble_eval(
    params: Params,
    state: Params,
    x: Float[Tensor, " examples *shape"],
    y: Int[Tensor, " examples"],
    *,
    apply: Callable,
    metrics: MetricFunctions = ACCURACY,
) -> Metrics:
    """The mean loss and each of `metrics` over the examples, of every member: tensors with an axis of `models`."""
    logits, _ = vmap(partial(apply, train=False), in_dims=(0, 0, None))(params, state, x)
    functions = {"loss": cross_entropy} | metrics
    return {name: vmap(f, in_dims=(0, None))(logits, y) for name, f in functions.items()}


def member(ts: TrainState, k: int) -> TrainState:
    """Member k on its own, the inverse of `stack`."""
    return TrainState(*(tree.map(lambda x: x[k], part) for part in ts))
