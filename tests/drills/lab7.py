"""The whole of Lab 7: the same tree of sums by recursion, shares by counting, and the loop over steps."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.func import grad_and_value

from experiments.lab7_processes import BATCH, WAYS, Trained
from experiments.shared import cli
from fn import tree
from fn.data.loader import batches
from fn.distributed import from_vector, place, to_vector
from fn.metrics import count_targets
from fn.optim import Optimizer
from fn.train import TrainState, classification_loss, eval_one_epoch, init_train_state, run_key


def own_parts(parts: int, rank: int, processes: int) -> range:
    each = parts // processes
    if processes > 1 and (parts % processes or each not in {2**k for k in range(30)}):
        raise ValueError(
            f"{parts} parts cannot be shared by {processes} processes: each must get 1, 2, 4, 8, … of them"
        )
    return range(rank * each, rank * each + each)


def part_shares(y: Tensor, parts: int, dtype: torch.dtype = torch.float32) -> Tensor:
    pieces = y.tensor_split(parts)
    counted = torch.stack([count_targets(piece) for piece in pieces])
    if not counted.any():
        counted = torch.tensor([len(piece) for piece in pieces])
    return counted.to(dtype) / counted.sum().to(dtype)


def pairwise_sum(x: Tensor) -> Tensor:
    while len(x) > 1:
        pairs = [x[i] + x[i + 1] for i in range(0, len(x) - 1, 2)]
        x = torch.stack(pairs + [x[-1]] * (len(x) % 2))
    return x[0]


def all_reduce_mean(x: Tensor, count: int) -> Tensor:
    total, examples = x * count if count else torch.zeros_like(x), torch.tensor(float(count), dtype=x.dtype)
    if dist.is_initialized():
        dist.all_reduce(total)
        dist.all_reduce(examples)
    return total / examples


def usual_step(
    ts: TrainState, x: Tensor, y: Tensor, *, key: Tensor, objective: Callable, optimizer: Optimizer
) -> tuple[TrainState, dict]:
    rank, processes = place()
    mine, targets = x.tensor_split(processes)[rank], y.tensor_split(processes)[rank]
    grads, (_, (metrics, state)) = grad_and_value(objective, has_aux=True)(ts.params, ts.state, mine, targets, key=key)
    grads = from_vector(all_reduce_mean(to_vector(grads), len(targets)), grads)
    params, opt_state = optimizer.update(ts.params, grads, ts.opt_state)
    return TrainState(params, state, opt_state), metrics


def train(way: str, seed: int, epochs: int) -> Trained:
    digits = cli.load("digits")
    make_model, make_step, optimizer = WAYS[way]
    model = make_model(digits.shape, len(digits.classes))

    def objective(params, state, x, y, *, key):
        return classification_loss(params, state, x, y, key=key, apply=model.apply)

    step = make_step(objective=objective, optimizer=optimizer)
    ts, steps, began = init_train_state(model, optimizer, seed=seed), 0, time.perf_counter()
    for epoch in range(epochs):
        for x, y in batches(digits.train, BATCH, seed=seed, epoch=epoch):
            ts, _ = step(ts, x, y, key=run_key(seed))
            steps += 1
    seconds = (time.perf_counter() - began) / steps
    held_out = eval_one_epoch(ts.params, ts.state, batches(digits.test, 512), apply=model.apply)
    return Trained(to_vector(ts.params), tree.size(ts.opt_state), held_out["accuracy"], seconds)


WRONG = {
    "ours": (
        "    while len(x) > 1:",
        "    from fn.distributed import pairwise_sum as ready\n\n    return ready(x)\n    while len(x) > 1:",
        "",
        "takes our own `fn.distributed.pairwise_sum`",
    ),
    "from left to right": (
        "        x = torch.stack(pairs + [x[-1]] * (len(x) % 2))",
        "        x = torch.cat([(x[0] + x[1])[None], x[2:]])",
        "compare_results",
        "MLP, in order: results of 1, 2, 4: 2, not == 1",
    ),
}
