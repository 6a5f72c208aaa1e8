"""Train K models at once: an ensemble is `vmap(train_step)` and nothing more.

    ts, key = ensemble_init(model, adamw, seeds=seeds), ensemble_key(seeds)
    for epoch in range(epochs):
        for index in ensemble_batches(len(labels), batch_size, seeds=seeds, epoch=epoch):
            ts, metrics = step(ts, images, labels, index, lr, key)

The TrainState of an ensemble is that of one model, each leaf with a leading axis of `models`. Every member has its own
weights, order of the examples, key and learning rate, and ends where it would have ended alone.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.func import vmap

from fn import tree
from fn.data.loader import epoch_order
from fn.domains import Count, Integers, Natural, Ordinal
from fn.losses import cross_entropy
from fn.models import Model
from fn.optim import Rate
from fn.train import ACCURACY, Metrics, NamedMetrics, TrainState, init_train_state, run_key, train_step
from fn.tree import Params


def ensemble_init(
    model: Model, optimizer: Callable, *, seeds: Integers, device: torch.device | str = "cpu"
) -> TrainState:
    """Return the first TrainState of the ensemble: member k is what `init_train_state` gives for seeds[k].

    `optimizer` is a function such as `adamw`. The state depends on no learning rate; the step takes it.
    """
    return stack([init_train_state(model, optimizer(lr=0.0), seed=seed, device=device) for seed in seeds])


def stack(members: Sequence[TrainState]) -> TrainState:
    """Stack several TrainStates into one, with a leading axis of `models` in every leaf. ValueError for none."""
    if not members:
        raise ValueError("stack: members hold no TrainState")
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
    """Take a `train_step` of every member on its own batch, row k of `index`, with its own learning rate and key.

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


def ensemble_key(seeds: Integers, device: torch.device | str = "cpu") -> Int64[Tensor, " models"]:
    """Return the `run_key` of every member. ValueError for none.

    >>> ensemble_key([0, 1, 7]).shape
    torch.Size([3])
    """
    _require_some(seeds)
    return torch.stack([run_key(seed) for seed in seeds]).to(device)


def _require_some(seeds: Integers) -> None:
    if not seeds:
        raise ValueError("ensemble: seeds hold no seed")


def ensemble_batches(
    examples: Natural,
    batch_size: Count,
    *,
    seeds: Integers,
    epoch: Ordinal,
    device: torch.device | str = "cpu",
) -> Sequence[Int64[Tensor, "models batch"]]:
    """Return the indices of every batch of an epoch; see `batches`. Row k is what a run from seeds[k] alone visits.

    >>> [index.shape for index in ensemble_batches(10, 4, seeds=[0, 1, 7], epoch=0)]
    [torch.Size([3, 4]), torch.Size([3, 4]), torch.Size([3, 2])]
    """
    _require_some(seeds)
    orders = [epoch_order(examples, seed=seed, epoch=epoch) for seed in seeds]
    return torch.stack(orders).to(device).split(batch_size, dim=1)


@torch.no_grad()
def ensemble_eval(
    params: Params,
    state: Params,
    x: Float[Tensor, " examples *shape"],
    y: Int[Tensor, " examples"],
    *,
    apply: Callable,
    metrics: NamedMetrics = ACCURACY,
) -> Metrics:
    """Return the mean loss and metrics over the examples, of every member: tensors with an axis of `models`."""
    logits, _ = vmap(partial(apply, train=False), in_dims=(0, 0, None))(params, state, x)
    functions = {"loss": cross_entropy} | {name: metric.mean for name, metric in metrics.items()}
    return {name: vmap(f, in_dims=(0, None))(logits, y) for name, f in functions.items()}


def member(ts: TrainState, k: Natural) -> TrainState:
    """Return the TrainState of member k, the inverse of `stack`. ValueError for a k that is no member."""
    members = len(tree.leaves(ts.params)[0])
    if k >= members:
        raise ValueError(f"member: k {k} is none of {members} models")
    return TrainState(*(tree.map(lambda x: x[k], part) for part in ts))
