"""Lab 4: transfer learning. A pretrained backbone gets a new head: train the head alone, then fine-tune the whole.

By default a small ResNet that was trained on clothes, by experiments/pretrain, learns digits from ten images of each.
Photographs of your own: --dataset folder --root PATH --backbone resnet18 --weights imagenet
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.lab_helpers.lab4 import transfer_report
from experiments.lab_helpers.lab4.flags import Flags
from experiments.lab_helpers.lab4.transfer_task import Recipe, apply_flags, load_images
from experiments.shared import cli
from experiments.shared.backbones import load
from fn import tree
from fn.backbones import BACKBONES, BackboneSpec, expand_prefixes, extract_features, head_model, transfer_model
from fn.data.datasets import Dataset, Split
from fn.data.loader import batches
from fn.data.transforms import compose, random_horizontal_flip, random_resized_crop
from fn.models import Model
from fn.optim import adamw, lr_by_prefix, one_cycle_schedule
from fn.rng import generator
from fn.train import check_finite, classifier_step, count_steps, eval_one_epoch, init_train_state, run_key
from fn.transfer import attach_head, batch_size_of, few_per_class, freeze, start_from, unfreeze
from fn.tree import Params


class Way(NamedTuple):
    """How one way of the comparison trains."""

    epochs: int
    lr: float
    lr_scales: Mapping[str, float] = {}  # factors of the learning rate, by dotted prefix
    augment: Callable | None = None


VARIED = partial(compose, transforms=[random_horizontal_flip, random_resized_crop])
RECIPES = {
    "digits": Recipe(
        ways={"scratch": Way(30, 3e-3), "head": Way(30, 3e-3), "fine": Way(30, 3e-3)},
        shots={10: 5, 3: 3, 30: 3},
        train=("all",),
        batch_share=1 / 4,
        timed_epochs=10,
    ),
    "folder": Recipe(  # chosen by fifths, held out in turn, of 243 photographs of ants and bees: see LEARNING.md
        ways={"head": Way(30, 3e-3), "fine": Way(10, 5e-5, lr_scales={"head": 10.0}, augment=VARIED)},
        shots={None: 5},
        train=("last",),
        batch_share=1 / 8,
        timed_epochs=5,
    ),
}


class Task(NamedTuple):
    """The images, and the models that learn them."""

    dataset: Dataset
    images: Tensor  # all of them, those of train first
    labels: Tensor
    features: Tensor  # of all images under the pretrained backbone, pooled
    weights: tuple[Params, Params]  # (params, state) of the pretrained backbone
    spec: BackboneSpec
    scratch: Model  # the backbone and the new head, both drawn at random
    whole: Model  # the pretrained backbone under the new head
    head: Model  # the new head alone, which takes features


class Trained(NamedTuple):
    params: Params
    state: Params
    accuracy: float  # on all images that were not labelled


@dataclass(frozen=True)
class Config(Flags):
    out: Path = Path("runs/lab4")
    """the folder for pictures and summary.json"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    """Train in each way on the same labelled images, for several numbers of them and several seeds."""
    recipe = apply_flags(RECIPES[config.dataset], config)
    task = load_task(config, recipe, device)
    prefixes = expand_prefixes(task.spec, recipe.train)
    transfer_report.show_branches(config.backbone, task.whole.init(generator(config.seed))[0], prefixes, recipe.train)
    labels, ways = task.labels, recipe.ways

    # The head on all images of train: under the frozen backbone, then on features that are computed once.
    clock = process_time if device.type == "cpu" else perf_counter  # on CPUs, what else runs does not count
    frozen, pairs, seconds = freeze(task.whole, ["head"]), [], []
    everything = torch.arange(len(task.dataset.train.labels), device=device)
    batch_size = batch_size_of(len(everything), recipe.batch_share)
    for epochs in (1, *[recipe.timed_epochs] * 3):  # in turns; the first pair loads what torch needs: it is not timed
        way, began = ways["head"]._replace(epochs=epochs), clock()
        under = train_way(frozen, task.images, labels, everything, way, batch_size, config.seed)
        halfway = clock()
        features = extract_features(task.spec, *task.weights, task.images)
        alone = train_way(task.head, features, labels, everything, way, batch_size, config.seed)
        seconds.append((halfway - began, clock() - halfway))
        pairs.append((under, alone))
    under, alone = pairs[-1]
    faster = transfer_report.show_speed(recipe.timed_epochs, len(everything), seconds[1:])
    before = [tree.to(part, device) for part in task.whole.init(generator(config.seed))]
    checks = transfer_report.check_cached(before, (under.params, under.state), alone.params, faster)

    # Each way, on a few images of each class.
    runs: dict[int | None, list[dict[str, Trained]]] = {shots: [] for shots in recipe.shots}
    for shots, seeds in recipe.shots.items():
        for seed in cli.seeds(config, seeds):
            few = few_per_class(task.dataset.train.labels, len(task.dataset.classes), shots, seed=seed)
            batch_size, run = batch_size_of(len(few), recipe.batch_share), dict[str, Trained]()
            if "scratch" in ways:  # nothing is transferred: the backbone and the head are drawn at random
                run["scratch"] = train_way(task.scratch, task.images, labels, few, ways["scratch"], batch_size, seed)
            # the head alone: the features of a frozen backbone never change, so they were computed once
            run["head"] = train_way(task.head, task.features, labels, few, ways["head"], batch_size, seed)
            # fine-tuning: the backbone under that trained head, frozen but for `prefixes`
            joined = attach_head(task.weights, (run["head"].params, run["head"].state))
            whole = freeze(start_from(task.whole, *joined), prefixes)
            fine = train_way(whole, task.images, labels, few, ways["fine"], batch_size, seed)
            run["fine"] = Trained(*unfreeze(fine.params, fine.state), fine.accuracy)
            runs[shots].append(run)
            transfer_report.show_run(len(few), seed, {way: trained.accuracy for way, trained in run.items()})
    return checks + report(config, task, prefixes, runs)


def load_task(config: Config, recipe: Recipe, device: torch.device) -> Task:
    """Load the pretrained backbone and the images; compute their features; put a new head on the backbone."""
    spec = BACKBONES[config.backbone]
    weights = load(config.backbone, config.weights, cut_off=spec.dropped)  # all but the old head
    weights = tree.to(weights[0], device), tree.to(weights[1], device)
    dataset, images, labels = load_images(spec, config, device)
    features = torch.cat([extract_features(spec, *weights, split.images) for split in (dataset.train, dataset.test)])
    classes, dropout_p = len(dataset.classes), recipe.dropout_p
    scratch = transfer_model(spec, classes, weights=None, dropout_p=dropout_p)
    whole = transfer_model(spec, classes, weights=weights, dropout_p=dropout_p)
    head = head_model(spec, classes, dropout_p=dropout_p)
    return Task(dataset, images, labels, features, weights, spec, scratch, whole, head)


def train_way(
    model: Model, inputs: Tensor, labels: Tensor, chosen: Tensor, way: Way, batch_size: int, seed: int
) -> Trained:
    """Train a model on the inputs that `chosen` indexes, and measure it on all others."""
    total = count_steps(len(chosen), epochs=way.epochs, batch_size=batch_size)
    optimizer = lr_by_prefix(adamw, lr=partial(one_cycle_schedule, lr=way.lr, total_steps=total), scales=way.lr_scales)
    step = check_finite(classifier_step(model, optimizer))
    ts, key = init_train_state(model, optimizer, seed=seed, device=inputs.device), run_key(seed)
    labelled = Split(inputs[chosen], labels[chosen])
    for epoch in range(way.epochs):
        for x, y in batches(labelled, batch_size, seed=seed, epoch=epoch, augment=way.augment):
            ts, _ = step(ts, x, y, key=key)
    others = torch.ones_like(labels, dtype=torch.bool).index_fill(0, chosen, False)
    held_out = batches(Split(inputs[others], labels[others]), 100)
    accuracy = eval_one_epoch(ts.params, ts.state, held_out, apply=model.apply)["accuracy"]
    return Trained(ts.params, ts.state, accuracy)


def report(
    config: Config, task: Task, prefixes: list[str], runs: dict[int | None, list[dict[str, Trained]]]
) -> list[cli.Check]:
    """Check what fine-tuning moved and that each way beats the one before; draw the pictures."""
    head, fine = (next(iter(runs.values()))[0][way] for way in ("head", "fine"))
    before, after = attach_head(task.weights, (head.params, head.state)), (fine.params, fine.state)
    moved = transfer_report.check_moved("fine-tuned", before, after, prefixes)
    accuracies = {n: {way: [run[way].accuracy for run in of_n] for way in of_n[0]} for n, of_n in runs.items()}
    return [moved, *transfer_report.report(config, task.whole, task.dataset, after, accuracies)]


if __name__ == "__main__":
    cli.run(Config, main)
