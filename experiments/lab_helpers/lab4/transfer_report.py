"""The tables, checks and pictures of Lab 4."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from experiments.shared import cli, show
from fn import draw, tree
from fn.data.datasets import Dataset
from fn.layers import softmax
from fn.models import Model
from fn.transfer import branches, wrongly_moved
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


def show_run(images: int, seed: int, accuracies: Mapping[str, Sequence[float]]) -> None:
    """Print how accurate each way is after training on so many images with that seed."""
    said = ", ".join(f"{way} {mean(a):.2%}" for way, a in accuracies.items())
    show.log.print(f"{images} images, seed {seed}: {said}")


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
