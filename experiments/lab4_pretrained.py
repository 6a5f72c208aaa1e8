"""Lab 4: a pretrained backbone under a new head: the head alone, then the rest, frozen and thawed on purpose.

By default a small network that knows clothes, experiments/pretrain.py's, learns digits from ten of each. Photographs of
your own: --dataset folder --data PATH --backbone resnet18 --weights imagenet
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

import torch
from torch import Tensor

from experiments.shared import cli, show
from experiments.shared.backbones import BACKBONES, Backbone, branches, load, prefixes, transfer
from experiments.shared.transferring import (
    Recipe,
    Task,
    Ways,
    extract,
    head_model,
    labelled,
    learn,
    misplaced,
    train,
    under,
)
from fn import draw, tree
from fn.data.datasets import Split
from fn.data.transforms import compose, random_horizontal_flip, random_resized_crop
from fn.gradcheck import relative_error
from fn.layers import softmax
from fn.rng import generator
from fn.train import TrainState
from fn.transfer import freeze, thaw
from fn.tree import Params

RECIPES = {
    "digits": Recipe(
        seeds=5,
        epochs=30,
        fine_epochs=30,
        both_epochs=30,
        batch_share=1 / 4,
        lr=3e-3,
        fine_lr=3e-3,
        fine_train="all",
        fine_augment=None,
        fine_rates={},
        scratch=True,
    ),
    "folder": Recipe(  # chosen by fifths, held out in turn, of 243 photographs of ants and bees: see LEARNING.md
        seeds=5,
        epochs=30,
        fine_epochs=10,
        both_epochs=5,
        batch_share=1 / 8,
        lr=3e-3,
        fine_lr=5e-5,
        fine_train="last",
        fine_augment=partial(compose, transforms=[random_horizontal_flip, random_resized_crop]),
        fine_rates={"head": 10.0},
        scratch=False,
    ),
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
    train: cli.MaybeNames = None
    """what is trained after the head: head, last, all, or dotted prefixes such as backbone.layer2; of digits all, of
    photographs the last stage unless given"""
    rates: dict[str, float] = field(default_factory=dict)
    """by dotted prefix, factors of the learning rate of that second stage: backbone 0.1, say; of photographs head 10
    unless this or --train is given"""
    dataset: Literal["digits", "folder"] = "digits"
    """what it learns"""
    data: cli.MaybePath = None
    """the directory of photographs, a sub-directory per class, of --dataset folder"""
    target_accuracy: float = 0.0
    """exit 1 if the head alone stays below"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    task = setup(config, device)
    few = len(task.dataset.train.labels) if config.dataset == "folder" else 10
    print_tree(config, task)
    checks = freeze_and_cache(config, task)
    runs = [learn(task, few, seed) for seed in cli.seeds(config, task.recipe.seeds)]
    first = runs[0]
    checks += [check_moved("fine-tuned", under(task, first.head[0]), first.fine[0][:2], task.trained)]
    checks += [*compare(config, task, runs, few)]
    if config.dataset == "digits":
        draw_growth(config, task, runs)
    draw_mistakes(config, task, runs[0].fine[0])
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
    recipe = RECIPES[config.dataset]
    train = (recipe.fine_train,) if config.train is None else config.train
    rates = config.rates or (recipe.fine_rates if config.train is None else {})
    require_names(config, row, train)
    options = {"root": config.data, "image_size": row.shape[1], "stats": row.stats} if config.data else {}
    params, state = (tree.to(part, device) for part in load(config.backbone, config.weights))
    dataset = cli.load(config.dataset, device, **options)
    features = [extract(row, params, state, split.images) for split in (dataset.train, dataset.test)]
    return Task(row, (params, state), dataset, (features[0], features[1]), train, rates, recipe)


def require_names(config: Config, row: Backbone, train: Sequence[str]) -> None:
    """UsageError for a --train or a --rates that names nothing, or a factor that is none."""
    if not all(name.strip() for name in train) or not train:
        raise cli.UsageError("--train names nothing: it takes head, last, all, or prefixes such as backbone.layer2")
    for prefix, factor in config.rates.items():
        if not 0 < factor < math.inf:
            raise cli.UsageError(f"--rates {prefix} {factor}: a factor of the learning rate is a number above 0")
    params, _ = transfer(row, 2, weights=None, dropout_p=0.0).init(generator(0))
    flag = "--train"
    try:
        trained, _ = tree.split(params, prefixes(row, train))
        flag = "--rates"
        tree.split(trained, list(config.rates))
    except ValueError as error:
        raise cli.UsageError(f"{flag}: {error}") from None


def print_tree(config: Config, task: Task) -> None:
    """What trains once the head has, and what is frozen."""
    params, _ = task.model().init(generator(config.seed))
    chosen, frozen = tree.split(params, task.trained)
    said = f"--train {' '.join(task.train)}"
    show.table(
        f"{config.backbone} and its new head, {said}",
        ("branch", "parameters", ""),
        [(name, f"{size:,}", "frozen" if still else "trains") for name, size, still in branches(params, frozen)],
    )
    show.console.print(
        f"Of {tree.size(params):,} parameters the head alone trains {tree.size(params['head']):,}, {said} "
        f"{tree.size(chosen):,}",
        soft_wrap=True,
    )


def freeze_and_cache(config: Config, task: Task) -> list[cli.Check]:
    """The head under the frozen backbone, and on features computed once: what moves, what does not, and how fast.

    On all training images. An epoch of each goes before the clock starts: the first steps of a process take seconds.
    """
    images, labels = task.dataset.train
    model, epochs = freeze(task.model(), ["head"]), task.recipe.both_epochs
    before = thaw(*model.init(generator(config.seed)))

    teach = partial(train, task, seed=config.seed, lr=task.recipe.lr)
    under_backbone = partial(teach, model, task.dataset.train)

    def on_features(*, epochs: int) -> TrainState:
        return teach(head_model(task), Split(extract(task.row, *task.weights, images), labels), epochs=epochs)

    ended = []
    for way in (under_backbone, on_features):
        way(epochs=1)
        began = time.perf_counter()
        ended.append((way(epochs=epochs), time.perf_counter() - began))
    (ts, whole), (cached, part) = ended
    show.console.print(
        f"The head, {epochs} epochs of {len(labels):,} images: {whole:.1f} s under the backbone, {part:.1f} s on its "
        "features, computed once",
        soft_wrap=True,
    )

    held = tree.size(ts.opt_state["mean"]) - tree.size(before[0]["head"])
    gap = relative_error(ts.params["head"], cached.params)
    return [
        check_moved("head only", before, thaw(*ts[:2]), ["head"]),
        cli.check("head only: numbers the optimizer holds for frozen leaves", held, "==", 0),
        cli.check("cached features: relative gap of the head", gap, "<=", 1e-3),
        cli.check("cached features: how many times faster", whole / part, ">=", 2),
    ]


def check_moved(
    way: str, before: tuple[Params, Params], after: tuple[Params, Params], trained: Sequence[str]
) -> cli.Check:
    """The claim that what trains has moved, and that nothing else has, to the bit; the leaves at fault are listed."""
    wrong = misplaced(before, after, trained)
    if wrong:
        show.log.print(f"{way}: should have stayed, or moved: {', '.join(wrong)}", soft_wrap=True)
    return cli.check(f"{way}: leaves that moved and should not, or the other way", len(wrong), "==", 0)


def compare(config: Config, task: Task, runs: Sequence[Ways], few: int) -> list[cli.Check]:
    """The means of the three ways, and whether each beats the one before on the same images, seed by seed."""
    ways = {name: [way[1] for run in runs if (way := run[i])] for i, name in enumerate(Ways._fields)}
    found = {name: accuracies for name, accuracies in ways.items() if accuracies}
    others = len(task.dataset.train.labels) + len(task.dataset.test.labels) - len(labelled(task, few, config.seed))
    show.table(
        f"{config.dataset}: accuracy on the {others:,} images that were not labelled, of which one is {1 / others:.2%}",
        ("", "mean", "spread", *(f"seed {seed}" for seed in cli.seeds(config, len(runs)))),
        [(name, f"{mean(a):.2%}", f"{stdev(a):.2%}", *(f"{x:.2%}" for x in a)) for name, a in found.items()],
    )
    checks = []
    for (worse, below), (better, above) in pairwise(found.items()):
        gains = [b - a for a, b in zip(below, above, strict=True)]
        checks += [
            cli.check_mean(f"{better} − {worse}: accuracy", gains, ">", 0),
            cli.check(f"{better} − {worse}: mean over spread", mean(gains) / max(stdev(gains), 1e-9), ">=", 2),
        ]
    if config.dataset == "folder":
        checks = [cli.check_mean("head: accuracy", found["head"], ">=", config.target_accuracy), checks[0]]
    return checks


def draw_growth(config: Config, task: Task, runs: Sequence[Ways]) -> None:
    """Accuracy against labelled images per class."""
    lines: dict[str, dict[int, float]] = {"from scratch": {}, "head only": {}, "fine-tuned": {}}
    for few, seeds in SHOTS.items():
        these = runs if few == 10 else [learn(task, few, seed) for seed in cli.seeds(config, seeds)]
        for line, i in zip(lines.values(), range(3), strict=True):
            line[few] = mean(way[1] for run in these if (way := run[i]))
    draw.save(
        draw.curves(
            {"mean accuracy on all other digits": lines},
            xlabel="labelled images per class",
            title="digits, with and without a backbone that knows clothes",
        ),
        config.out / "growth.png",
    )


def misread_first(p: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """(all images, those read as another class first, then by the probability of their own; how many mistakes)"""
    right = p.argmax(dim=1) == labels
    return (p[torch.arange(len(labels)), labels] + right).argsort(), int((~right).sum())


@torch.no_grad()
def draw_mistakes(config: Config, task: Task, ts: TrainState) -> None:
    """The test images that the first seed's fine-tuned network misreads: those least likely to be their class first."""
    images, labels = task.dataset.test
    model = task.model()
    logits = torch.cat([model.apply(ts.params, ts.state, x, train=False)[0] for x in images.split(100)])
    p, name = softmax(logits, dim=1), task.dataset.classes
    order, mistakes = misread_first(p, labels)
    worst = order[: max(1, min(16, mistakes))]
    read = [f"{name[int(labels[i])]}, read as {name[int(p[i].argmax())]}\np = {p[i].max():.2f}" for i in worst]
    title = (
        f"{mistakes} of {len(labels)} test images misread after fine-tuning: the worst, and how sure the network was"
    )
    shown = (
        draw.photo_grid(images[worst], read, title=title)
        if images.shape[1] == 3
        else draw.image_grid(images[worst, 0], read, title=title)
    )
    draw.save(shown, config.out / "mistakes.png")


if __name__ == "__main__":
    cli.run(Config, main)
