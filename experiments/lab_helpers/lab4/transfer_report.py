"""The tables, checks and pictures of Lab 4."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor

from experiments.lab_helpers.lab4.flags import Flags
from experiments.shared import cli, show
from fn import draw, tree
from fn.data.datasets import Dataset
from fn.gradcheck import largest, relative_error
from fn.layers import softmax
from fn.models import Model
from fn.optim import adamw
from fn.transfer import branches, few_per_class, unfreeze, wrongly_moved
from fn.tree import Params

LABELS = {"scratch": "from scratch", "head": "head only", "fine": "fine-tuned"}


def show_branches(backbone: str, params: Params, prefixes: Sequence[str], names: Sequence[str]) -> None:
    """Print which branches train and which are frozen once the head has learned, and how many parameters they hold.

    `names` are those of the flag --train, and `prefixes` what they stand for.
    """
    flag = f"--train {' '.join(names)}"
    chosen, frozen = tree.split(params, prefixes)
    show.table(
        f"{backbone} and its new head, {flag}",
        ("branch", "parameters", ""),
        [(name, f"{size:,}", "frozen" if held else "trains") for name, size, held in branches(params, frozen)],
    )
    show.console.print(
        f"Of {tree.size(params):,} parameters the head alone trains {tree.size(params['head']):,}, {flag} "
        f"{tree.size(chosen):,}",
        soft_wrap=True,
    )


def show_speed(epochs: int, images: int, seconds: Sequence[tuple[float, float]]) -> float:
    """Print the median seconds of the head under the backbone and on features; return their ratio.

    On CPUs they are processor time, of all cores. Both of a pair were measured one after the other.
    """
    under, alone = (median(of_way) for of_way in zip(*seconds, strict=True))
    show.console.print(
        f"The head, {epochs} epochs of {images:,} images: {under:.1f} s of work under the backbone, "
        f"{alone:.1f} s on its features, computed once",
        soft_wrap=True,
    )
    return under / alone


def show_run(images: int, seed: int, accuracies: Mapping[str, float]) -> None:
    """Print how accurate each way is after training on so many images with that seed."""
    said = ", ".join(f"{way} {accuracy:.2%}" for way, accuracy in accuracies.items())
    show.log.print(f"{images} images, seed {seed}: {said}")


def report(
    config: Flags,
    model: Model,
    dataset: Dataset,
    trained: tuple[Params, Params],
    accuracies: Mapping[int | None, Mapping[str, Sequence[float]]],
) -> list[cli.Check]:
    """Show what was fine-tuned, and draw what it misreads; check the accuracies, by the images per class and by way.

    The checks are about the first number of images.
    """
    show.parameters(trained[0], f"{config.backbone} and its new head, fine-tuned")
    shots = next(iter(accuracies))
    checks = compare_ways(config, dataset, shots, accuracies[shots])
    if config.dataset == "digits":
        draw_growth({n: of_ways for n, of_ways in accuracies.items() if n}, config.out / "growth.png")
    draw_mistakes(model, *trained, dataset, config.out / "mistakes.png")
    return checks


def compare_ways(
    config: Flags, dataset: Dataset, shots: int | None, accuracies: Mapping[str, Sequence[float]]
) -> list[cli.Check]:
    """Check that each way beats the one before on the same images, seed by seed, and of digits by how much."""
    labels = dataset.train.labels
    few = few_per_class(labels, len(dataset.classes), shots, seed=config.seed)
    held_out = len(labels) + len(dataset.test.labels) - len(few)
    show_accuracies(config.dataset, held_out, accuracies, cli.seeds(config, len(accuracies["head"])))
    checks = []
    if config.target_accuracy:
        checks.append(cli.check_mean("head: accuracy", accuracies["head"], ">=", config.target_accuracy))
    for (worse, below), (better, above) in pairwise(accuracies.items()):
        gains = [b - a for a, b in zip(below, above, strict=True)]
        checks.append(cli.check_mean(f"{better} − {worse}: accuracy", gains, ">", 0))
        if config.dataset == "digits":
            spread = largest([cli.deviation(gains), 1e-9])
            checks.append(cli.check(f"{better} − {worse}: mean over spread", mean(gains) / spread, ">=", 2))
    return checks


def show_accuracies(
    dataset: str, held_out: int, accuracies: Mapping[str, Sequence[float]], seeds: Iterable[int]
) -> None:
    """Print the mean, the standard deviation and each seed's accuracy of each way."""
    cli.order("mean accuracy", {way: mean(a) for way, a in accuracies.items()})
    show.table(
        f"{dataset}: accuracy on the {held_out:,} images that were not labelled, of which one is {1 / held_out:.2%}",
        ("", "mean", "spread", *(f"seed {seed}" for seed in seeds)),
        [(way, f"{mean(a):.2%}", f"{cli.deviation(a):.2%}", *(f"{x:.2%}" for x in a)) for way, a in accuracies.items()],
    )


def check_moved(way: str, before: Sequence[Params], after: Sequence[Params], trained: Sequence[str]) -> cli.Check:
    """Check that what trains has moved, to the bit, and nothing else, from (params, state) to (params, state).

    The leaves at fault are listed on stderr.
    """
    wrong = wrongly_moved(tree.merge(*before), tree.merge(*after), trained)
    if wrong:
        show.log.print(f"{way}: should have stayed, or moved: {', '.join(wrong)}", soft_wrap=True)
    return cli.check(f"{way}: leaves that moved and should not, or the other way", len(wrong), "==", 0)


def check_cached(
    before: Sequence[Params], under: tuple[Params, Params], head: Params, faster: float
) -> list[cli.Check]:
    """Check that only the head was trained `under` the frozen backbone, and that it is the `head` trained on features.

    `before` and `under` are (params, state); the frozen ones are in the state of `under`.
    """
    held, of_head = (tree.size(adamw(lr=1.0).init(params)) for params in (under[0], head))
    gap = relative_error(under[0]["head"], head)
    return [
        check_moved("head only", before, unfreeze(*under), ["head"]),
        cli.check("head only: numbers the optimizer holds for frozen leaves", held - of_head, "==", 0),
        cli.check("cached features: relative gap of the head", gap, "<=", 1e-3),
        cli.check("cached features: how many times faster", faster, ">=", 2),
    ]


@show.picture
def draw_growth(accuracies: Mapping[int, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw the mean accuracy of each way against the labelled images per class, from {images: {way: accuracies}}."""
    seeds = range(max(len(ways["head"]) for ways in accuracies.values()))
    lines = {
        label: draw.Seeds(
            [{n: accuracies[n][way][k] for n in sorted(accuracies) if k < len(accuracies[n][way])} for k in seeds]
        )
        for way, label in LABELS.items()
    }
    best = {way: mean(accuracies[min(accuracies)][way]) for way in LABELS}
    gain = f"fine-tuned {best['fine']:.0%}, from scratch {best['scratch']:.0%}"
    figure = draw.curves(
        {"mean accuracy on all other digits": lines},
        xlabel="labelled images per class",
        title=f"Digits, with a backbone that knows clothes: with {min(accuracies)} per class {gain}",
    )
    show.save(figure, path)


def misread_first(p: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return (the order of all images, the number of mistakes): misread ones first, the least likely label first."""
    right = p.argmax(dim=1) == labels
    return (p[torch.arange(len(labels)), labels] + right).argsort(), int((~right).sum())


@show.picture
@torch.no_grad()
def draw_mistakes(model: Model, params: Params, state: Params, dataset: Dataset, path: Path) -> None:
    """Draw up to 16 test images that the model misreads, those with the least probability of their own class first."""
    images, labels = dataset.test
    logits = torch.cat([model.apply(params, state, x, train=False)[0] for x in images.split(100)])
    p, names = softmax(logits, dim=1), dataset.classes
    order, mistakes = misread_first(p, labels)
    worst = order[: max(1, min(16, mistakes))]
    titles = [f"{names[int(labels[i])]}, read as {names[int(p[i].argmax())]}\np = {p[i].max():.2f}" for i in worst]
    title = (
        f"{mistakes} of {len(labels)} test images misread after fine-tuning: the worst, and how sure the network was"
    )
    grey = images.shape[1] == 1
    figure = (
        draw.image_grid(images[worst, 0], titles, title=title)
        if grey
        else draw.photo_grid(images[worst], titles, title=title)
    )
    show.save(figure, path)
