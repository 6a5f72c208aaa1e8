"""Five classic mistakes of many processes, each made live beside the same thing done right."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.func import grad, grad_and_value

from experiments.shared import cli
from experiments.shared.local_processes import in_processes
from fn import tree
from fn.data.datasets import Split, take
from fn.data.loader import batches, epoch_order
from fn.distributed import data_parallel_step, from_vector, gather, own_parts, pairwise_sum, part_shares, place
from fn.distributed import to_vector as vector
from fn.gradcheck import relative_error
from fn.layers import dropout
from fn.models import Model
from fn.models.cnn import cnn
from fn.optim import sgd
from fn.rng import fold_in
from fn.rng import key as rng_key
from fn.train import TrainState, classification_loss, init_train_state, run_key

PROCESSES = 4
EXAMPLES = 1000


class Symptom(NamedTuple):
    mistake: str
    symptom: str
    wrong: float
    right: float
    expected_wrong: tuple[str, float]
    """a relation and a bound"""
    expected_right: tuple[str, float] = ("==", 0)


def symptoms(seed: int) -> list[Symptom]:
    """Make all five mistakes, in four processes; return what shows each."""
    found = in_processes(in_each, PROCESSES, seed)
    mean_of_means, weighed, whole = ({"gradient": g} for g in found[0].gradients)
    means = relative_error(mean_of_means, whole), relative_error(weighed, whole)
    masks = {by: [in_processes(mask_of_batch, n, by, seed)[0] for n in (1, 2, 4)] for by in ("step", "rank", "part")}
    alike = {by: float((mask[0] == mask[1]).float().mean()) for by, (_, mask, _) in masks.items()}
    results = {by: len({tuple(mask.flatten().tolist()) for mask in masks[by]}) for by in masks}
    inside, own, right = ([one.trained[i] for one in found] for i in range(3))
    unseen = [1 - len(torch.cat([one.seen[i] for one in found]).unique()) / EXAMPLES for i in (0, 1)]
    part, luck = "mask of half the batch", "masks by rank"
    return [
        Symptom("mean of means, 5 examples", "error of the gradient", means[0], means[1], (">=", 0.01), ("<=", 1e-12)),
        Symptom(
            "one key for all processes", f"{part} that repeats", alike["step"], alike["part"], ("==", 1), ("<=", 0.6)
        ),
        Symptom(luck, "masks of 1, 2, 4 processes", results["rank"], results["part"], ("==", 3), ("==", 1)),
        Symptom("reduced inside grad", "parameters apart", apart(inside, 0), apart(right, 0), (">=", 1e-4)),
        Symptom("batch norm for oneself", "running statistics apart", apart(own, 1), apart(right, 1), (">=", 1e-3)),
        Symptom("each shuffles its way", "examples that nobody sees", unseen[0], unseen[1], (">=", 0.2)),
    ]


def apart(trained: list[tuple[Tensor, Tensor]], i: int) -> float:
    """Return how far the parameters (0) or the state (1) of any process are from those of the first."""
    return max(float((one[i] - trained[0][i]).abs().max()) for one in trained)


class Found(NamedTuple):
    gradients: tuple[Tensor, Tensor, Tensor]
    """mean of means, weighed, of the whole batch at once"""
    trained: list[tuple[Tensor, Tensor]]
    """(parameters, state) by each of STEPS"""
    seen: tuple[Tensor, Tensor]
    """indices of the examples of an epoch: shuffled unalike, and alike"""


def in_each(seed: int) -> Found:
    """Make the mistakes that one number of processes shows; every process calls this."""
    digits = cli.load("digits")
    model = cnn(digits.shape, len(digits.classes), widths=(4, 6))
    trained = [train(model, digits.train, step, seed) for step in STEPS]
    return Found(gradients_of_unequal_parts(model, digits.train, seed), trained, examples_seen(seed))


def gradients_of_unequal_parts(model: Model, split: Split, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the gradient of five examples, two of them in the first of four processes; batch norm is in evaluation."""
    rank, processes = place()
    ts = init_train_state(model, sgd(lr=0.1), seed=seed)
    params, state = tree.to(ts.params, torch.float64), tree.to(ts.state, torch.float64)
    x, y = take(split, 5)
    loss = lambda params, x, y: torch.nn.functional.cross_entropy(model.apply(params, state, x, train=False)[0], y)  # noqa: E731
    gradient = lambda x, y: vector(grad(loss)(params, x.double(), y))  # noqa: E731
    own = gradient(x.tensor_split(processes)[rank], y.tensor_split(processes)[rank])
    share = part_shares(y, processes, torch.float64)[rank]
    return gather(own).mean(0), pairwise_sum(gather(share * own)), gradient(x, y)


def mask_of_batch(by: str, seed: int) -> Tensor:
    """Return the dropout mask of a batch of 8, of both halves, with a key of the step, the rank, or the part."""
    rank, processes = place()
    key, parts = rng_key(seed, 1), own_parts(8, rank, processes)
    draw = lambda key, rows: dropout(torch.ones(rows, 64), 0.5, True, key=key)  # noqa: E731
    own = {
        "step": lambda: draw(key, len(parts)),
        "rank": lambda: draw(fold_in(key, rank), len(parts)),
        "part": lambda: torch.cat([draw(fold_in(key, i), 1) for i in parts]),
    }
    return gather(own[by]()).reshape(2, 4, 64)


def reduced_inside(params: tree.Params, state: tree.Params, x: Tensor, y: Tensor, **options: Any) -> tuple:
    """Return the loss, with the mean over processes taken where `grad` should see it, and does not."""
    loss, aux = classification_loss(params, state, x, y, **options)
    total = loss.clone()
    dist.all_reduce(total)
    return total / place()[1], aux


def wrong_step(ts: TrainState, x: Tensor, y: Tensor, *, key: Tensor, objective: Callable, gathers: bool) -> tuple:
    """Do a step of SGD on this process's share; with `gathers` the gradients are averaged, the state never is."""
    rank, processes = place()
    x, y = x.tensor_split(processes)[rank], y.tensor_split(processes)[rank]
    grads, (_, (metrics, state)) = grad_and_value(objective, has_aux=True)(ts.params, ts.state, x, y, key=key)
    if gathers:
        grads = from_vector(gather(vector(grads)).mean(0), grads)
    params, opt_state = sgd(lr=0.1).update(ts.params, grads, ts.opt_state)
    return TrainState(params, state, opt_state), metrics


STEPS = (
    lambda apply: partial(wrong_step, objective=partial(reduced_inside, apply=apply), gathers=False),
    lambda apply: partial(wrong_step, objective=partial(classification_loss, apply=apply), gathers=True),
    lambda apply: data_parallel_step(partial(classification_loss, apply=apply), sgd(lr=0.1), parts=PROCESSES),
)
"""reduced inside grad; batch norm's statistics for oneself; right"""


def train(model: Model, split: Split, make_step: Callable, seed: int) -> tuple[Tensor, Tensor]:
    """Return (parameters, state) of this process after ten steps."""
    step, ts, key = make_step(model.apply), init_train_state(model, sgd(lr=0.1), seed=seed), run_key(seed)
    for x, y in batches(take(split, 320), 32, seed=seed):
        ts, _ = step(ts, x, y, key=key)
    return vector(ts.params), vector(ts.state)


def examples_seen(seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of this process in an epoch, its quarter of each batch: shuffled by rank, and alike."""
    rank, processes = place()
    orders = [epoch_order(EXAMPLES, seed=s, epoch=0) for s in (seed + rank, seed)]
    unalike, alike = (torch.cat([b.tensor_split(processes)[rank] for b in order.split(40)]) for order in orders)
    return unalike, alike
