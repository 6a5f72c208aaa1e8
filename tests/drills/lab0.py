"""The whole of Lab 0: the module's loop over a generator, the step written out where the lab takes a ready one."""

from functools import partial

import torch
from torch import Tensor
from torch.func import grad_and_value

from experiments.lab0_mlp import BATCH, EPOCHS, LR, STEPS, Config, Snapshot
from experiments.shared import cli, show
from fn.data.datasets import Dataset, Split
from fn.data.loader import batches
from fn.losses import cross_entropy
from fn.metrics import accuracy
from fn.models import Model
from fn.models.mlp import mlp_apply
from fn.optim import adam, adamw, one_cycle_schedule, sgd_init, sgd_update
from fn.rng import generator
from fn.train import classifier_step, count_steps, eval_one_epoch, init_train_state, run_key
from fn.tree import Params


def mlp_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(mlp_apply(params, {}, x, train=True, layers=2)[0], y)


def objective(params, state, x, y, apply):
    logits, state = apply(params, state, x, train=True)
    return cross_entropy(logits, y), state


def overfit_few(config: Config, model: Model, few: Split, *, lr: float, title: str) -> list[Snapshot]:
    optimizer = adam(lr=lr)
    params, state = model.init(generator(config.seed))
    opt_state = optimizer.init(params)
    run = []
    with show.progress(STEPS, title) as advance:
        while len(run) < STEPS:
            slope = grad_and_value(
                partial(objective, state=state, x=few.images, y=few.labels, apply=model.apply), has_aux=True
            )
            grads, (_, state) = slope(params)
            params, opt_state = optimizer.update(params, grads, opt_state)
            with torch.no_grad():
                logits, _ = model.apply(params, state, few.images, train=False)
                metrics = {
                    "loss": cross_entropy(logits, few.labels).item(),
                    "accuracy": accuracy(logits, few.labels).item(),
                }
            run.append(Snapshot(params, metrics))
            advance(metrics["loss"])
            if metrics["accuracy"] == 1 and metrics["loss"] < 1e-3:
                break
    return run


def classic_loop(module: torch.nn.Module, x: Tensor, y: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def functional_loop(params: Params, x: Tensor, y: Tensor, steps: int) -> list[float]:
    state, losses = sgd_init(params), []
    for _ in range(steps):
        grads, loss = grad_and_value(mlp_loss)(params, x, y)
        params, state = sgd_update(params, grads, state, lr=0.1, momentum=0.9)
        losses.append(loss.item())
    return losses


def train_and_test(config: Config, model: Model, dataset: Dataset) -> list[float]:
    total = count_steps(len(dataset.train.labels), epochs=EPOCHS, batch_size=BATCH)
    optimizer = adamw(lr=partial(one_cycle_schedule, lr=LR, total_steps=total))
    step = classifier_step(model, optimizer)
    found = []
    for seed in cli.seeds(config, 5):
        ts = init_train_state(model, optimizer, seed=seed)
        for epoch in range(EPOCHS):
            for x, y in batches(dataset.train, BATCH, seed=seed, epoch=epoch):
                ts, _ = step(ts, x, y, key=run_key(seed))
        found.append(eval_one_epoch(ts.params, ts.state, [dataset.test], apply=model.apply)["accuracy"])
    return found


WRONG = {
    "no momentum": (
        "        params, state = sgd_update(params, grads, state, lr=0.1, momentum=0.9)",
        "        params, state = sgd_update(params, grads, state, lr=0.1)",
        "compare_loops",
        "functional and classic loop: largest gap in 100 losses: ",
    ),
    "the gradients pile up": (
        "        optimizer.zero_grad()\n",
        "",
        "compare_loops",
        "functional and classic loop: largest gap in 100 losses: ",
    ),
}
