"""Apply the flags of Lab 4 to a recipe, and load the images that they ask for."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.lab_helpers.lab4.flags import Flags
from experiments.shared import cli
from fn import tree
from fn.backbones import BACKBONES, BackboneSpec, expand_prefixes, transfer_model
from fn.data.datasets import Dataset, Split
from fn.rng import generator


class Recipe(NamedTuple):
    ways: dict[str, Any]
    """scratch, head and fine, in the order of training: a `Way` of the lab each"""
    shots: dict[int | None, int]
    """labelled images per class, None for all, and the number of seeds; the checks are about the first entry"""
    train: tuple[str, ...]
    """what fine-tuning trains: head, last, all, or dotted prefixes"""
    batch_share: float
    """the size of a batch, as a part of the labelled images"""
    timed_epochs: int
    """of the head, with and without cached features"""
    dropout_p: float = 0.5


def apply_flags(recipe: Recipe, flags: Flags) -> Recipe:
    """Return the recipe with the values that flags give; UsageError for flags that do not go together."""
    if (flags.dataset == "digits") != (flags.backbone == "resnet8"):
        raise cli.UsageError(
            f"--backbone {flags.backbone} does not suit --dataset {flags.dataset}: resnet8 reads grey images of 8×8, "
            "the others photographs"
        )
    if (flags.dataset == "folder") != (flags.root is not None):
        raise cli.UsageError("--dataset folder and --root PATH, its directory of photographs, go together")
    train, fine = recipe.train, recipe.ways["fine"]
    if flags.train is not None:
        train, fine = flags.train, fine._replace(lr_scales={})
    if flags.lr_scales:
        fine = fine._replace(lr_scales=flags.lr_scales)
    require_prefixes(BACKBONES[flags.backbone], train, fine.lr_scales)
    return recipe._replace(train=train, ways=recipe.ways | {"fine": fine})


def require_prefixes(spec: BackboneSpec, train: Sequence[str], lr_scales: Mapping[str, float]) -> None:
    """Raise UsageError for a --train or --lr-scales that names no parameter, or a factor that is not above 0."""
    if not all(name.strip() for name in train) or not train:
        raise cli.UsageError("--train names nothing: it takes head, last, all, or prefixes such as backbone.layer2")
    for prefix, factor in lr_scales.items():
        if not 0 < factor < math.inf:
            raise cli.UsageError(f"--lr-scales {prefix} {factor}: a factor of the learning rate is a number above 0")
    params, _ = transfer_model(spec, 2, weights=None).init(generator(0))
    flag = "--train"
    try:
        trained, _ = tree.split(params, expand_prefixes(spec, train))
        flag = "--lr-scales"
        tree.split(trained, list(lr_scales))
    except ValueError as error:
        raise cli.UsageError(f"{flag}: {error}") from None


def load_images(spec: BackboneSpec, flags: Flags, device: torch.device) -> tuple[Dataset, Tensor, Tensor]:
    """Return the data set that the flags ask for, and all its images and labels, those of train first."""
    options = {"root": flags.root, "image_size": spec.shape[1], "stats": spec.stats} if flags.root else {}
    loaded = cli.load(flags.dataset, device, **options)
    images, labels = (torch.cat(parts) for parts in zip(loaded.train, loaded.test, strict=True))
    n = len(loaded.train.labels)
    train, test = Split(images[:n], labels[:n]), Split(images[n:], labels[n:])  # views: the images are held once
    return loaded._replace(train=train, test=test), images, labels
