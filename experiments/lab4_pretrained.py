"""Lab 4: a pretrained backbone under a new head: the head alone, then the rest, frozen and thawed on purpose.

By default a small network that knows clothes, experiments/pretrain.py's, learns digits from ten of each. Photographs of
your own: --dataset folder --data PATH --backbone resnet18 --weights imagenet
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from experiments import cli, show
from experiments.backbones import BACKBONES, Backbone, branches, load, prefixes, transfer
from fn import plots, tree
from fn.conv import adaptive_avg_pool2d
from fn.data.datasets import Dataset, Split
from fn.data.loader import batches, epoch_order
from fn.freezing import freeze, thaw
from fn.gradcheck import relative_error
from fn.layers import softmax
from fn.models import Model
from fn.models.transfer import head_apply, head_init
from fn.optim import adam_init, adamw, by_prefix, one_cycle_schedule, scheduled
from fn.train import TrainState, classifier_step, count_steps, eval_one_epoch, fit, init
from fn.tree import Params


class Recipe(NamedTuple):
    seeds: int
    epochs: int
    """of scratch and of the head"""
    fine_epochs: int
    batch_share: float
    """of the training images, in a batch"""
    lr: float
    fine_lr: float
    dropout_p: float = 0.5


RECIPES = {
    "digits": Recipe(seeds=5, epochs=30, fine_epochs=30, batch_share=1 / 4, lr=3e-3, fine_lr=3e-3),
    "folder": Recipe(seeds=5, epochs=30, fine_epochs=4, batch_share=1 / 8, lr=3e-3, fine_lr=2e-4),
}
SHOTS = {3: 3, 10: 5, 30: 3}  # labelled images per class, and how many seeds learn from them
BackboneName = Literal["resnet8", "resnet18", "resnet34", "resnet50", "squeezenet1_1"]


@dataclass(frozen=True)
class Config(cli.Config):
    out: Path = Path("runs/lab4")
    """the folder for pictures and summary.json"""
    backbone: BackboneName = "resnet8"
    """the network that was pretrained"""
    weights: str = ""
    """imagenet, for torchvision's, or a .pth or .safetensors file; resnet8 has its own"""
    train: tuple[str, ...] = ("all",)
    """what is trained after the head: head, last, all, or dotted prefixes such as backbone.layer2"""
    rates: dict[str, float] = field(default_factory=dict)
    """factors of the learning rate by dotted prefix, then: backbone 0.1"""
    dataset: Literal["digits", "folder"] = "digits"
    """what it learns"""
    data: cli.MaybePath = None
    """the directory of photographs, a sub-directory per class, of --dataset folder"""
    target_accuracy: float = 0.0
    """exit 1 if the head alone stays below"""


class Task(NamedTuple):
    config: Config
    row: Backbone
    weights: tuple[Params, Params]
    dataset: Dataset
    recipe: Recipe
    features: tuple[Tensor, Tensor]
    """of the frozen backbone, for the images of train and of test, pooled"""


class Ways(NamedTuple):
    """What became of one set of labelled images: (trained, accuracy on the held-out ones)."""

    scratch: tuple[TrainState, float] | None
    head: tuple[TrainState, float]
    fine: tuple[TrainState, float]


def main(config: Config, device: torch.device) -> list[cli.Check]:
    task = setup(config, device)
    few = len(task.dataset.train.labels) if config.dataset == "folder" else 10
    print_tree(task)
    checks = [*freeze_and_cache(task, few)]
    runs = [learn(task, few, seed) for seed in cli.seeds(config, task.recipe.seeds)]
    checks += [*compare(task, runs)]
    if config.dataset == "digits":
        draw_growth(task, runs)
    draw_mistakes(task, runs[0].fine[0])
    return checks


def setup(config: Config, device: torch.device) -> Task:
    """UsageError for parts that do not go together."""
    row = BACKBONES[config.backbone]
    if (config.dataset == "digits") != (config.backbone == "resnet8"):
        raise cli.UsageError(
            f"--backbone {config.backbone} does not suit --dataset {config.dataset}: resnet8 reads grey images of 8×8, "
            "the others photographs"
        )
    if (config.dataset == "folder") != (config.data is not None):
        raise cli.UsageError("--dataset folder and --data PATH, its directory of photographs, go together")
    options = {"root": config.data, "image_size": row.shape[1], "stats": row.stats} if config.data else {}
    params, state = (tree.to(part, device) for part in load(config.backbone, config.weights))
    dataset = cli.load(config.dataset, device, **options)
    try:
        params_of_all, _ = transfer(row, 2, weights=(params, state), dropout_p=0.0).init(torch.Generator())
        chosen, _ = tree.split(params_of_all, prefixes(row, config.train))
        tree.split(chosen, list(config.rates))
    except ValueError as error:
        raise cli.UsageError(f"--train or --rates: {error}") from None
    features = [extract(row, params, state, split.images) for split in (dataset.train, dataset.test)]
    return Task(config, row, (params, state), dataset, RECIPES[config.dataset], (features[0], features[1]))


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


def train(task: Task, model: Model, split: Split, seed: int, *, fine: bool = False) -> TrainState:
    recipe, rates = task.recipe, task.config.rates if fine else {}
    epochs, lr = (recipe.fine_epochs, recipe.fine_lr) if fine else (recipe.epochs, recipe.lr)
    batch_size = round(len(split.labels) * recipe.batch_share)
    rate = partial(
        one_cycle_schedule, lr=lr, total_steps=count_steps(len(split.labels), epochs=epochs, batch_size=batch_size)
    )
    update: Any = partial(by_prefix, update=adamw, scales=rates) if rates else adamw
    step = classifier_step(model, partial(scheduled, update=update, rate=rate))
    return fit(model, split, step=step, epochs=epochs, batch_size=batch_size, seed=seed)


def head_model(task: Task) -> Model:
    """The head on its own, which learns from features."""
    options = {"classes": len(task.dataset.classes), "cells": task.row.cells}
    apply = partial(head_apply, cells=task.row.cells, dropout_p=task.recipe.dropout_p)
    return Model(partial(head_init, features=task.row.channels, **options), apply)


def given(params: Params, state: Params, model: Model) -> Model:
    """The model, setting out from these instead of from what it would draw."""
    return model._replace(init=lambda rng: (params, state))


def learn(task: Task, few: int, seed: int) -> Ways:
    """The same labelled images three ways: from scratch, the head alone, and from there the rest as --train says."""
    index, (images, labels) = labelled(task, few, seed), task.dataset.train
    split, seen = Split(images[index], labels[index]), Split(task.features[0][index], labels[index])
    build = partial(transfer, task.row, len(task.dataset.classes), dropout_p=task.recipe.dropout_p)
    scratch = None
    if task.config.dataset == "digits":
        model = build(weights=None)
        ts = train(task, model, split, seed)
        scratch = ts, accuracy_of(task, model, ts)
    head, small = train(task, head_model(task), seen, seed), head_model(task)
    held_out = Split(task.features[1], task.dataset.test.labels)
    head_accuracy = eval_one_epoch(head.params, head.state, batches(held_out, 1000), apply=small.apply)["accuracy"]

    params, state = ({"backbone": b, "head": h} for b, h in zip(task.weights, head[:2], strict=True))
    model = freeze(given(params, state, build(weights=task.weights)), prefixes(task.row, task.config.train))
    ts = train(task, model, split, seed, fine=True)
    fine = accuracy_of(task, model, ts)
    said = f"{scratch[1]:.2%}, " if scratch else ""
    show.log.print(f"{few} a class, seed {seed}: {said}{head_accuracy:.2%}, {fine:.2%}")
    return Ways(scratch, (head, head_accuracy), (TrainState(*thaw(*ts[:2]), {}), fine))


def accuracy_of(task: Task, model: Model, ts: TrainState) -> float:
    return eval_one_epoch(ts.params, ts.state, batches(task.dataset.test, 100), apply=model.apply)["accuracy"]


def print_tree(task: Task) -> None:
    """What is frozen after the head has been trained, and what trains."""
    params, _ = transfer(task.row, len(task.dataset.classes), weights=task.weights, dropout_p=0.0).init(
        torch.Generator()
    )
    chosen, frozen = tree.split(params, prefixes(task.row, task.config.train))
    show.table(
        f"{task.config.backbone} with --train {' '.join(task.config.train)}",
        ("branch", "parameters", ""),
        [(name, f"{size:,}", "frozen" if still else "trained") for name, size, still in branches(params, frozen)],
    )
    show.console.print(
        f"head only trains {tree.size(params['head']):,} of {tree.size(params):,} parameters, --train "
        f"{' '.join(task.config.train)} {tree.size(chosen):,}"
    )


def freeze_and_cache(task: Task, few: int) -> list[cli.Check]:
    """The head under the frozen backbone, and on features computed once: what moves, what does not, and how fast."""
    index, (images, labels) = labelled(task, few, task.config.seed), task.dataset.train
    build = partial(transfer, task.row, len(task.dataset.classes), dropout_p=task.recipe.dropout_p)
    model = freeze(build(weights=task.weights), ["head"])
    before = thaw(*init(model, adam_init, seed=task.config.seed, device=images.device)[:2])

    began = time.perf_counter()
    ts = train(task, model, Split(images[index], labels[index]), task.config.seed)
    whole = time.perf_counter() - began
    began = time.perf_counter()
    seen = extract(task.row, *task.weights, images[index])
    cached = train(task, head_model(task), Split(seen, labels[index]), task.config.seed)
    ratio = whole / (time.perf_counter() - began)

    moved, still = apart(before, thaw(*ts[:2]))
    wrong = [*(name for name in moved if not name.startswith("head")), *(n for n in still if n.startswith("head"))]
    if wrong:
        show.log.print(f"should have stayed, or moved: {', '.join(wrong)}", soft_wrap=True)
    held = tree.size(ts.opt_state["mean"]) - tree.size(ts.params)
    gap = relative_error(ts.params["head"], cached.params)
    return [
        cli.check("head only: leaves that moved and should not, or the other way", len(wrong), "==", 0),
        cli.check("head only: numbers the optimizer holds for frozen leaves", held, "==", 0),
        cli.check("cached features: relative gap of the head", gap, "<=", 1e-3),
        cli.check("cached features: how many times faster", ratio, ">=", 2),
    ]


def apart(before: tuple[Params, Params], after: tuple[Params, Params]) -> tuple[list[str], list[str]]:
    """(leaves of parameters and state that moved, those that are the same to the bit)"""
    pairs = [(tree.flatten(a), tree.flatten(b)) for a, b in zip(before, after, strict=True)]
    names: dict[bool, list[str]] = {True: [], False: []}
    for old, new in pairs:
        for name, x in old.items():
            names[torch.equal(x, new[name])].append(name)
    return names[False], names[True]


def compare(task: Task, runs: Sequence[Ways]) -> list[cli.Check]:
    """The means of the three ways, and whether each beats the one before on the same images, seed by seed."""
    ways = {name: [way[1] for run in runs if (way := run[i])] for i, name in enumerate(Ways._fields)}
    found = {name: accuracies for name, accuracies in ways.items() if accuracies}
    show.table(
        f"{task.config.dataset}, {len(task.dataset.test.labels)} held-out images, accuracy",
        ("", "mean", "spread", *(f"seed {seed}" for seed in cli.seeds(task.config, len(runs)))),
        [(name, f"{mean(a):.2%}", f"{stdev(a):.2%}", *(f"{x:.2%}" for x in a)) for name, a in found.items()],
    )
    checks = []
    for (worse, below), (better, above) in pairwise(found.items()):
        gains = [b - a for a, b in zip(below, above, strict=True)]
        checks += [
            cli.check_mean(f"{better} − {worse}: accuracy", gains, ">", 0),
            cli.check(f"{better} − {worse}: mean over spread", mean(gains) / max(stdev(gains), 1e-9), ">=", 2),
        ]
    if task.config.dataset == "folder":
        checks = [cli.check_mean("head: accuracy", found["head"], ">=", task.config.target_accuracy), checks[0]]
    return checks


def draw_growth(task: Task, runs: Sequence[Ways]) -> None:
    """Accuracy against labelled images per class."""
    lines: dict[str, dict[int, float]] = {"from scratch": {}, "head only": {}, "fine-tuned": {}}
    for few, seeds in SHOTS.items():
        these = runs if few == 10 else [learn(task, few, seed) for seed in cli.seeds(task.config, seeds)]
        for line, i in zip(lines.values(), range(3), strict=True):
            line[few] = mean(way[1] for run in these if (way := run[i]))
    plots.save(
        plots.curves({"accuracy on held-out digits": lines}, xlabel="labelled images per class"),
        task.config.out / "growth.png",
    )


@torch.no_grad()
def draw_mistakes(task: Task, ts: TrainState) -> None:
    """The held-out images whose target was given the least probability by the first seed's fine-tuned network."""
    images, labels = task.dataset.test
    model = transfer(task.row, len(task.dataset.classes), weights=task.weights, dropout_p=0.0)
    logits = torch.cat([model.apply(ts.params, ts.state, x, train=False)[0] for x in images.split(100)])
    p, name = softmax(logits, dim=1), task.dataset.classes
    worst = p[torch.arange(len(labels)), labels].argsort()[:16]
    read = [f"{name[int(labels[i])]}, taken for {name[int(p[i].argmax())]}\np = {p[i].max():.2f}" for i in worst]
    title = "the held-out images with the least probability for their class"
    shown = (
        plots.photo_grid(images[worst], read, title=title)
        if images.shape[1] == 3
        else plots.image_grid(images[worst, 0], read, title=title)
    )
    plots.save(shown, task.config.out / "mistakes.png")


if __name__ == "__main__":
    cli.run(Config, main)
