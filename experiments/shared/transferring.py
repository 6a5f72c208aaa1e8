"""Few labelled images and a pretrained backbone: from scratch, under a frozen backbone, and thawed."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.shared import show
from experiments.shared.backbones import Backbone, prefixes, transfer
from fn import tree
from fn.conv import adaptive_avg_pool2d
from fn.data.datasets import Dataset, Split
from fn.data.loader import batches, epoch_order
from fn.models import Model
from fn.optim import adamw, by_prefix, one_cycle_schedule, scheduled
from fn.train import TrainState, classifier_step, count_steps, eval_one_epoch, fit
from fn.transfer import freeze, head_apply, head_init, thaw
from fn.tree import Params


class Recipe(NamedTuple):
    seeds: int
    epochs: int
    """of scratch and of the head"""
    fine_epochs: int
    both_epochs: int
    """of the head, with and without cached features"""
    batch_share: float
    """of the labelled images, in a batch"""
    lr: float
    fine_lr: float
    fine_train: str
    """what is trained after the head: last or all"""
    fine_augment: Callable | None
    fine_rates: Mapping[str, float]
    """factors of fine_lr, by dotted prefix"""
    scratch: bool
    """whether to learn from scratch too"""
    dropout_p: float = 0.5


class Task(NamedTuple):
    """What is learnt, and with what."""

    row: Backbone
    weights: tuple[Params, Params]
    dataset: Dataset
    features: tuple[Tensor, Tensor]
    """of the frozen backbone, for the images of train and of test, pooled"""
    train: Sequence[str]
    """what is trained once the head has learnt: head, last, all, or prefixes"""
    rates: Mapping[str, float]
    """factors of the learning rate of that second stage"""
    recipe: Recipe

    @property
    def trained(self) -> list[str]:
        return prefixes(self.row, self.train)

    def model(self, *, scratch: bool = False) -> Model:
        classes, weights = len(self.dataset.classes), None if scratch else self.weights
        return transfer(self.row, classes, weights=weights, dropout_p=self.recipe.dropout_p)


class Ways(NamedTuple):
    """What became of one set of labelled images: (trained, accuracy on all others)."""

    scratch: tuple[TrainState, float] | None
    head: tuple[TrainState, float]
    fine: tuple[TrainState, float]


@torch.no_grad()
def extract(row: Backbone, params: Params, state: Params, images: Tensor) -> Tensor:
    """What the head of a frozen backbone gets to see."""
    parts = [row.features(params, state, x, train=False)[0] for x in images.split(100)]
    return torch.cat([adaptive_avg_pool2d(part, row.cells) for part in parts])


def labelled(task: Task, few: int, seed: int) -> Tensor:
    """Which images are labelled: `few` of each class, drawn by the seed; all where there are no more."""
    labels = task.dataset.train.labels
    order = epoch_order(len(labels), seed=seed, epoch=2**61).to(labels.device)
    return torch.cat([order[labels[order] == label][:few] for label in range(len(task.dataset.classes))])


def unlabelled(task: Task, index: Tensor) -> Tensor:
    """Which of the training images are held out too."""
    free = torch.ones(len(task.dataset.train.labels), dtype=torch.bool, device=index.device)
    free[index] = False
    return free


def share_of(examples: int, share: float) -> int:
    """The size of a batch, of two or more examples, the last one too: batch norm cannot learn from one."""
    size = max(2, round(examples * share))
    while examples % size == 1:
        size += 1
    return size


def train(
    task: Task,
    model: Model,
    split: Split,
    seed: int,
    *,
    epochs: int,
    lr: float,
    rates: Mapping[str, float] | None = None,
    augment: Callable | None = None,
) -> TrainState:
    batch_size = share_of(len(split.labels), task.recipe.batch_share)
    total = count_steps(len(split.labels), epochs=epochs, batch_size=batch_size)
    update: Any = partial(by_prefix, update=adamw, scales=rates) if rates else adamw
    optimizer = partial(scheduled, update=update, rate=partial(one_cycle_schedule, lr=lr, total_steps=total))
    step = classifier_step(model, optimizer)
    return fit(model, split, step=step, epochs=epochs, batch_size=batch_size, seed=seed, augment=augment)


def head_model(task: Task) -> Model:
    """The head on its own, which learns from features."""
    options = {"classes": len(task.dataset.classes), "cells": task.row.cells}
    apply = partial(head_apply, cells=task.row.cells, dropout_p=task.recipe.dropout_p)
    return Model(partial(head_init, features=task.row.channels, **options), apply)


def given(params: Params, state: Params, model: Model) -> Model:
    """The model, setting out from these instead of from what it would draw."""
    return model._replace(init=lambda rng: (params, state))


def under(task: Task, head: TrainState) -> tuple[Params, Params]:
    """(params, state) of the pretrained backbone and a head that has learnt."""
    params, state = ({"backbone": b, "head": h} for b, h in zip(task.weights, head[:2], strict=True))
    return params, state


def learn(task: Task, few: int, seed: int) -> Ways:
    """The same labelled images three ways: from scratch, the head alone, and from there what `task.trained` says."""
    index, (images, labels), recipe = labelled(task, few, seed), task.dataset.train, task.recipe
    split, seen = Split(images[index], labels[index]), Split(task.features[0][index], labels[index])
    free, test = unlabelled(task, index), task.dataset.test
    targets = torch.cat([labels[free], test.labels])
    held_out = Split(torch.cat([images[free], test.images]), targets)
    held_out_features = Split(torch.cat([task.features[0][free], task.features[1]]), targets)
    scratch = None
    if recipe.scratch:
        model = task.model(scratch=True)
        ts = train(task, model, split, seed, epochs=recipe.epochs, lr=recipe.lr)
        scratch = ts, accuracy(model, ts, held_out)
    small = head_model(task)
    head = train(task, small, seen, seed, epochs=recipe.epochs, lr=recipe.lr)
    head_accuracy = accuracy(small, head, held_out_features)

    model = freeze(given(*under(task, head), task.model()), task.trained)
    options = {"rates": task.rates, "augment": recipe.fine_augment}
    ts = train(task, model, split, seed, epochs=recipe.fine_epochs, lr=recipe.fine_lr, **options)
    fine = accuracy(model, ts, held_out)
    said = f"scratch {scratch[1]:.2%}, " if scratch else ""
    show.log.print(f"{len(index)} images, seed {seed}: {said}head {head_accuracy:.2%}, fine {fine:.2%}")
    return Ways(scratch, (head, head_accuracy), (TrainState(*thaw(*ts[:2]), {}), fine))


def accuracy(model: Model, ts: TrainState, split: Split) -> float:
    return eval_one_epoch(ts.params, ts.state, batches(split, 100), apply=model.apply)["accuracy"]


def apart(before: tuple[Params, Params], after: tuple[Params, Params]) -> tuple[list[str], list[str]]:
    """(leaves of parameters and state that moved, those that are the same to the bit)"""
    pairs = [(tree.flatten(a), tree.flatten(b)) for a, b in zip(before, after, strict=True)]
    names: dict[bool, list[str]] = {True: [], False: []}
    for old, new in pairs:
        for name, x in old.items():
            names[torch.equal(x, new[name])].append(name)
    return names[False], names[True]


def misplaced(before: tuple[Params, Params], after: tuple[Params, Params], trained: Sequence[str]) -> list[str]:
    """Leaves that moved though no prefix has them, or are the same to the bit though one has.

    Statistics go with the parameters of their batch norm, of which one that trains is enough.
    """
    moved, still = apart(before, after)
    return [*(x for x in moved if not _trains(x, trained)), *(x for x in still if _trains(x, trained))]


def _trains(name: str, trained: Sequence[str]) -> bool:
    branch, _, leaf = name.rpartition(".")
    if leaf.startswith("running_"):
        return any(tree.below(branch, prefix) or tree.below(prefix, branch) for prefix in trained)
    return any(tree.below(name, prefix) for prefix in trained)
