"""Pretrained networks as backbones: where each is cut, what features it gives, which images it expects."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fn.conv import adaptive_avg_pool2d
from fn.data.datasets import Stats
from fn.domains import Count, ImageShape, Probability
from fn.models import Model
from fn.models.resnet import resnet, resnet_features, resnet_network
from fn.models.squeezenet import squeezenet, squeezenet_features
from fn.pretrained import IMAGENET_STATS
from fn.transfer import attach_head, head_apply, head_init, transfer_apply
from fn.tree import Params


class BackboneSpec(NamedTuple):
    """A pretrained network and the place where it is cut."""

    model: Callable[..., Model]
    """model(shape, classes): the network that was pretrained, its own head included"""
    features: Callable
    """features(params, state, x, *, train, modes) -> (feature maps, new state): the network up to the cut"""
    dropped: Sequence[str]
    """branches that are cut off: the head; of resnet8 the last stage too, whose features fit its own images alone"""
    last: Sequence[str]
    """the last stage before the cut: all branches after the last halving of the image"""
    channels: Count
    """of the feature maps"""
    cells: Count = 1
    """the new head pools the maps to cells × cells"""
    shape: ImageShape = (3, 224, 224)
    """(channels, height, width) of an image"""
    classes: Count = 1000
    """that the network was pretrained on"""
    stats: Stats | None = IMAGENET_STATS
    """(mean, standard deviation) to standardise images with; None: those of the new training images"""


def _imagenet_resnet(depth: int, channels: int) -> BackboneSpec:
    features = partial(resnet_features, **resnet_network(depth))
    return BackboneSpec(partial(resnet, depth=depth), features, ("fc",), ("layer4",), channels)


BACKBONES = {
    "resnet8": BackboneSpec(
        partial(resnet, depth=8, widths=(32, 64, 128)),
        partial(resnet_features, **resnet_network(8, stages=2)),
        dropped=("layer3", "fc"),
        last=("layer2",),
        channels=64,
        cells=3,
        shape=(1, 8, 8),
        classes=40,
        stats=None,
    ),
    "resnet18": _imagenet_resnet(18, 512),
    "resnet34": _imagenet_resnet(34, 512),
    "resnet50": _imagenet_resnet(50, 2048),
    "squeezenet1_1": BackboneSpec(
        squeezenet, squeezenet_features, ("classifier",), tuple(f"features.{i}" for i in range(9, 13)), 512
    ),
}


def cut(spec: BackboneSpec, branches: Params) -> Params:
    """Drop the branches after the cut from the parameters, or the state, of the pretrained network.

    >>> list(cut(BACKBONES["resnet18"], {"conv1": {}, "bn1": {}, "fc": {}}))
    ['conv1', 'bn1']
    """
    return {name: branch for name, branch in branches.items() if name not in spec.dropped}


def transfer_model(
    spec: BackboneSpec, classes: Count, *, weights: tuple[Params, Params] | None, dropout_p: Probability = 0.0
) -> Model:
    """Build the model `transfer_apply`: the backbone under a new head. Without weights both start from scratch.

    >>> from fn.rng import generator
    >>> model = transfer_model(BACKBONES["resnet8"], 10, weights=None)
    >>> logits, _ = model.apply(*model.init(generator(0)), torch.zeros(2, 1, 8, 8), train=False)
    >>> tuple(logits.shape)
    (2, 10)
    """
    init = partial(_transfer_init, spec=spec, classes=classes, weights=weights)
    return Model(init, partial(transfer_apply, features=spec.features, cells=spec.cells, dropout_p=dropout_p))


def _transfer_init(
    rng: torch.Generator, *, spec: BackboneSpec, classes: int, weights: tuple[Params, Params] | None
) -> tuple[Params, Params]:
    """Draw the head first, so that it is the same on every backbone."""
    head = head_init(rng, spec.channels, classes, cells=spec.cells)
    if weights is None:
        params, state = spec.model(spec.shape, spec.classes).init(rng)
        weights = cut(spec, params), cut(spec, state)
    return attach_head(weights, head)


def head_model(spec: BackboneSpec, classes: Count, *, dropout_p: Probability = 0.0) -> Model:
    """Build the model `head_apply` on its own, which learns from the features of the backbone.

    >>> from fn.rng import generator
    >>> model = head_model(BACKBONES["resnet18"], 10)
    >>> logits, _ = model.apply(*model.init(generator(0)), torch.zeros(2, 512, 7, 7), train=False)
    >>> tuple(logits.shape)
    (2, 10)
    """
    init = partial(head_init, features=spec.channels, classes=classes, cells=spec.cells)
    return Model(init, partial(head_apply, cells=spec.cells, dropout_p=dropout_p))


@torch.no_grad()
def extract_features(
    spec: BackboneSpec, params: Params, state: Params, images: Float[Tensor, "examples channels height width"]
) -> Float[Tensor, "examples features {spec.cells} {spec.cells}"]:
    """Compute the features of the frozen backbone, pooled as the head pools them.

    >>> from fn.rng import generator
    >>> params, state = BACKBONES["resnet8"].model((1, 8, 8), 40).init(generator(0))
    >>> tree = cut(BACKBONES["resnet8"], params), cut(BACKBONES["resnet8"], state)
    >>> tuple(extract_features(BACKBONES["resnet8"], *tree, torch.zeros(5, 1, 8, 8)).shape)
    (5, 64, 3, 3)
    """
    maps = [spec.features(params, state, x, train=False)[0] for x in images.split(100)]
    return torch.cat([adaptive_avg_pool2d(part, spec.cells) for part in maps])


def expand_prefixes(spec: BackboneSpec, names: Sequence[str]) -> list[str]:
    """Write the short names `head`, `last` and `all` as dotted prefixes; keep other names as they are.

    >>> expand_prefixes(BACKBONES["resnet18"], ["last"])
    ['head', 'backbone.layer4']
    """
    last = [f"backbone.{stage}" for stage in spec.last]
    short = {"head": ["head"], "last": ["head", *last], "all": ["head", "backbone"]}
    return [prefix for name in names for prefix in short.get(name, [name])]
