"""The whole of Lab 4: the three ways in another order of their lines."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from experiments.lab4_pretrained import WAYS, Trained
from experiments.shared import show
from experiments.shared.transfer_task import Recipe, Task
from fn.backbones import expand_prefixes
from fn.data.datasets import Split
from fn.data.loader import batches
from fn.models import Model
from fn.optim import adamw, lr_by_prefix, one_cycle_schedule
from fn.train import classifier_step, count_steps, eval_one_epoch, init_train_state, run_key
from fn.transfer import attach_head, batch_size_of, few_per_class, freeze, start_from, unfreeze


def from_scratch(task: Task, recipe: Recipe, trained: Mapping[str, Trained]) -> tuple[Model, Tensor]:
    return task.scratch, task.images


def head_alone(task: Task, recipe: Recipe, trained: Mapping[str, Trained]) -> tuple[Model, Tensor]:
    return task.head, task.features


def fine_tuning(task: Task, recipe: Recipe, trained: Mapping[str, Trained]) -> tuple[Model, Tensor]:
    head, trains = trained["head"], expand_prefixes(task.spec, recipe.train)
    start = attach_head(task.weights, (head.params, head.state))
    return freeze(start_from(task.whole, *start), trains), task.images


def three_ways(task: Task, recipe: Recipe, shots: int | None, seed: int) -> dict[str, Trained]:
    few = few_per_class(task.dataset.train.labels, len(task.dataset.classes), shots, seed=seed)
    others = torch.tensor(sorted(set(range(len(task.labels))) - set(few.tolist())))
    size, trained = batch_size_of(len(few), recipe.batch_share), {}
    for way, (epochs, lr) in recipe.ways.items():
        model, inputs = WAYS[way](task, recipe, trained)
        fine = way == "fine"
        total = count_steps(len(few), epochs=epochs, batch_size=size)
        schedule = partial(one_cycle_schedule, lr=lr, total_steps=total)
        optimizer = lr_by_prefix(adamw, lr=schedule, scales=recipe.rates if fine else {})
        step = classifier_step(model, optimizer)
        ts, data = init_train_state(model, optimizer, seed=seed), Split(inputs[few], task.labels[few])
        for epoch in range(epochs):
            for x, y in batches(data, size, seed=seed, epoch=epoch, augment=recipe.augment if fine else None):
                ts, _ = step(ts, x, y, key=run_key(seed))
        held_out = batches(Split(inputs[others], task.labels[others]), 100)
        found = eval_one_epoch(ts.params, ts.state, held_out, apply=model.apply)
        trained[way] = Trained(*(unfreeze(ts.params, ts.state) if fine else (ts.params, ts.state)), found["accuracy"])
    show.log.print(f"seed {seed}: " + ", ".join(f"{way} {one.accuracy:.2%}" for way, one in trained.items()))
    return trained


WRONG = {
    "the head alone from scratch": (
        "    return task.head, task.features",
        "    return task.head, torch.zeros_like(task.features)",
        "main",
        "head − scratch: accuracy: ",
    ),
}
