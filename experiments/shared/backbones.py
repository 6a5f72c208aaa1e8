"""The backbones of Lab 4: which network, where it is cut, what it expects of images; and their weights."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from experiments.shared import cli
from fn import pretrained, tree
from fn.data.datasets import Stats, data_root
from fn.models import Model
from fn.models.resnet import resnet, resnet_features, resnet_network
from fn.models.squeezenet import squeezenet, squeezenet_features
from fn.pretrained import IMAGENET_STATS, PretrainedError
from fn.rng import generator
from fn.transfer import head_init, transfer_apply
from fn.tree import Params

SHIPPED = Path(__file__).parents[1] / "pretrain" / "resnet8_fashion_mnist.safetensors"
"""made by `python -m experiments.pretrain`"""


class Backbone(NamedTuple):
    model: Callable[..., Model]
    """f(shape, classes): the network that was pretrained, its own head included"""
    features: Callable
    dropped: Sequence[str]
    """what is cut off: its head, and of the small one the last stage, whose features are of clothes alone"""
    last: Sequence[str]
    """the last stage of what is kept: what comes after the image was last halved"""
    channels: int
    """of its features"""
    cells: int = 1
    """on a side, that the head pools them to"""
    shape: tuple[int, int, int] = (3, 224, 224)
    classes: int = 1000
    stats: Stats | None = IMAGENET_STATS


BACKBONES = {
    "resnet8": Backbone(
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
    "resnet18": Backbone(
        partial(resnet, depth=18), partial(resnet_features, **resnet_network(18)), ("fc",), ("layer4",), 512
    ),
    "resnet34": Backbone(
        partial(resnet, depth=34), partial(resnet_features, **resnet_network(34)), ("fc",), ("layer4",), 512
    ),
    "resnet50": Backbone(
        partial(resnet, depth=50), partial(resnet_features, **resnet_network(50)), ("fc",), ("layer4",), 2048
    ),
    "squeezenet1_1": Backbone(
        squeezenet, squeezenet_features, ("classifier",), tuple(f"features.{i}" for i in range(9, 13)), 512
    ),
}


def load(name: str, weights: str) -> tuple[Params, Params]:
    """(params, state) of the backbone that a file holds, or torchvision's; UsageError for what does not fit."""
    row = BACKBONES[name]
    try:
        if weights == "imagenet":
            if name == "resnet8":
                raise cli.UsageError("--weights imagenet: there are none of resnet8; its own come with the lab")
            path = pretrained.download(name, data_root() / "weights")
        elif weights:
            path = Path(weights)
        elif name == "resnet8":
            path = SHIPPED
        else:
            raise cli.UsageError(f"--backbone {name} needs --weights: imagenet, or a .pth or .safetensors file")
    except PretrainedError as error:
        raise cli.UsageError(str(error)) from None
    params, state = weights_of(path, row.model(row.shape, row.classes), f"of --backbone {name}")
    return cut(row, params), cut(row, state)


def weights_of(path: Path, model: Model, what: str) -> tuple[Params, Params]:
    """(params, state) of the model that a file holds; UsageError for one that cannot be read, or is not `what`."""
    try:
        state_dict = pretrained.read(path)
    except PretrainedError as error:
        raise cli.UsageError(str(error)) from None
    try:
        params, state, _ = pretrained.from_state_dict(state_dict, *model.init(generator(0)))
    except PretrainedError as error:
        raise cli.UsageError(f"--weights {path} are not {what}: {error}") from None
    return params, state


def cut(row: Backbone, part: Params) -> Params:
    """What is kept of the pretrained network's parameters, or of its state."""
    return {name: branch for name, branch in part.items() if name not in row.dropped}


def transfer(row: Backbone, classes: int, *, weights: tuple[Params, Params] | None, dropout_p: float) -> Model:
    """The backbone under a head of our own; without weights it starts from scratch."""
    init = partial(transfer_init, row=row, classes=classes, weights=weights)
    return Model(init, partial(transfer_apply, features=row.features, cells=row.cells, dropout_p=dropout_p))


def transfer_init(
    rng: torch.Generator, *, row: Backbone, classes: int, weights: tuple[Params, Params] | None
) -> tuple[Params, Params]:
    """The head is drawn first, so that it is the same on every backbone."""
    head, statistics = head_init(rng, row.channels, classes, cells=row.cells)
    params, state = weights or (cut(row, part) for part in row.model(row.shape, row.classes).init(rng))
    return {"backbone": params, "head": head}, {"backbone": state, "head": statistics}


def prefixes(row: Backbone, train: Sequence[str]) -> list[str]:
    """head, last and all in full; other names are dotted prefixes as they stand."""
    last = [f"backbone.{stage}" for stage in row.last]
    short = {"head": ["head"], "last": ["head", *last], "all": ["head", "backbone"]}
    return [prefix for name in train for prefix in short.get(name, [name])]


def branches(params: Params, frozen: Params, path: str = "") -> Iterator[tuple[str, int, bool]]:
    """(dotted name, numbers held, whether frozen), of the largest branches that are wholly one or the other."""
    for name, node in params.items():
        there, flat = f"{path}{name}", tree.flatten({name: node})
        still = [leaf in tree.flatten({name: frozen.get(name, {})}) for leaf in flat]
        if path and (all(still) or not any(still)):
            yield there, sum(leaf.numel() for leaf in flat.values()), all(still)
        else:
            yield from branches(node, frozen.get(name, {}), f"{there}.")
