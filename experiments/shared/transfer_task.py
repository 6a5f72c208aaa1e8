"""What Lab 4 learns, and with what: a recipe, and the images and models that its flags ask for."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.shared import cli
from experiments.shared.backbones import load
from fn import tree
from fn.backbones import BACKBONES, BackboneSpec, expand_prefixes, extract_features, head_model, transfer_model
from fn.data.datasets import Dataset, Split
from fn.models import Model
from fn.rng import generator
from fn.tree import Params


class Recipe(NamedTuple):
    ways: dict[str, tuple[int, float]]
    """(epochs, learning rate) of each way, in the order of training: scratch, head, fine"""
    shots: dict[int | None, int]
    """labelled images per class, None for all, and the number of seeds; the checks are about the first entry"""
    train: tuple[str, ...]
    """what fine-tuning trains: head, last, all, or dotted prefixes"""
    batch_share: float
    """the size of a batch, as a part of the labelled images"""
    timed_epochs: int
    """of the head, with and without cached features"""
    rates: Mapping[str, float] = {}
    """of fine-tuning, factors of the learning rate by dotted prefix"""
    augment: Callable | None = None
    """of fine-tuning"""
    dropout_p: float = 0.5


class Task(NamedTuple):
    """The images of Lab 4, and the models that learn them."""

    dataset: Dataset
    images: Tensor
    """all images, those of train first"""
    labels: Tensor
    features: Tensor
    """of all images under the pretrained backbone, pooled"""
    weights: tuple[Params, Params]
    """(params, state) of the pretrained backbone"""
    spec: BackboneSpec
    scratch: Model
    """the backbone and the new head, both drawn at random"""
    whole: Model
    """the pretrained backbone under the new head"""
    head: Model
    """the new head alone, which takes features"""


def load_task(
    backbone: str, weights: str, dataset: str, data: Path | None, recipe: Recipe, device: torch.device
) -> Task:
    """Load the weights and the images, and build the models; UsageError for flags that do not go together."""
    spec = BACKBONES[backbone]
    if (dataset == "digits") != (backbone == "resnet8"):
        raise cli.UsageError(
            f"--backbone {backbone} does not suit --dataset {dataset}: resnet8 reads grey images of 8×8, the others "
            "photographs"
        )
    if (dataset == "folder") != (data is not None):
        raise cli.UsageError("--dataset folder and --root PATH, its directory of photographs, go together")
    require_prefixes(spec, recipe.train, recipe.rates)
    params, state = (tree.to(part, device) for part in load(backbone, weights))
    options = {"root": data, "image_size": spec.shape[1], "stats": spec.stats} if data else {}
    loaded = cli.load(dataset, device, **options)
    features = [extract_features(spec, params, state, split.images) for split in (loaded.train, loaded.test)]
    images, labels = (torch.cat(parts) for parts in zip(loaded.train, loaded.test, strict=True))
    n, classes = len(loaded.train.labels), len(loaded.classes)
    train, test = Split(images[:n], labels[:n]), Split(images[n:], labels[n:])  # views: the images are held once
    return Task(
        loaded._replace(train=train, test=test),
        images,
        labels,
        torch.cat(features),
        (params, state),
        spec,
        scratch=transfer_model(spec, classes, weights=None, dropout_p=recipe.dropout_p),
        whole=transfer_model(spec, classes, weights=(params, state), dropout_p=recipe.dropout_p),
        head=head_model(spec, classes, dropout_p=recipe.dropout_p),
    )


def require_prefixes(spec: BackboneSpec, train: Sequence[str], rates: Mapping[str, float]) -> None:
    """Raise UsageError for a --train or --rates that names no parameter, or a factor that is not above 0."""
    if not all(name.strip() for name in train) or not train:
        raise cli.UsageError("--train names nothing: it takes head, last, all, or prefixes such as backbone.layer2")
    for prefix, factor in rates.items():
        if not 0 < factor < math.inf:
            raise cli.UsageError(f"--rates {prefix} {factor}: a factor of the learning rate is a number above 0")
    params, _ = transfer_model(spec, 2, weights=None).init(generator(0))
    flag = "--train"
    try:
        trained, _ = tree.split(params, expand_prefixes(spec, train))
        flag = "--rates"
        tree.split(trained, list(rates))
    except ValueError as error:
        raise cli.UsageError(f"{flag}: {error}") from None
