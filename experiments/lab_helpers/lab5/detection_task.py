"""The recipe of Lab 5, and the scenes and the detector that its flags ask for."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from experiments.shared import cli, show
from experiments.shared.backbones import weights_of
from experiments.shared.detection_report import FLAVORS
from experiments.shared.registry import DETECTORS, resolve
from fn.data.datasets import DatasetUnavailable
from fn.data.scenes import Scenes, SceneSet, digits
from fn.data.voc import voc
from fn.detection.anchor_clusters import anchor_recall, cluster_sizes, split_by_level
from fn.detection.anchors import anchor_grid
from fn.detection.boxes import box_area, object_table
from fn.models import Detector
from fn.models.pyramid import squeezenet_backbone
from fn.models.squeezenet import squeezenet
from fn.pretrained import IMAGENET_STATS
from fn.rng import generator

WEIGHTS = "squeezenet1_1_onnxzoo.pt"
STRIDES, ANCHORS = (8, 16), 15
"""pixels between the cells of SqueezeNet's maps; how many sizes of anchors are fitted to the boxes of photographs"""


class Recipe(NamedTuple):
    """How a detector of a data set is trained, and how well."""

    epochs: Mapping[str, int]
    """of each flavor"""
    batch_size: int
    lr: float
    augment: Callable
    targets: Mapping[str, float]
    """the average precision to reach on the held-out images"""
    sizes: dict[str, tuple[float, float]] | None
    """ranges of areas in square pixels, with about a third of the objects each; None: those of the training boxes"""


def load_scenes(
    dataset: str, root: Path | None, classes: Sequence[str] | None, weights: Path | None, device: torch.device
) -> SceneSet:
    """Load digits, or the photographs in `root`, onto the device; UsageError for flags that do not go together."""
    if dataset == "digits":
        for name, flag in (("root", root), ("classes", classes), ("weights", weights)):
            if flag is not None:
                raise cli.UsageError(f"--dataset digits takes no --{name}")
        scenes = digits()
    elif root is None:
        raise cli.UsageError("--dataset voc needs --root, a folder of photographs with VOC XML")
    else:
        try:
            scenes = voc(root, classes=classes, stats=IMAGENET_STATS)
        except DatasetUnavailable as error:
            raise cli.UsageError(str(error)) from None
        if scenes.dropped:
            show.console.print(f"{scenes.dropped} boxes dropped, as none of their area is in the image")
    train, test = (Scenes(*(x.to(device) for x in part)) for part in (scenes.train, scenes.test))
    return scenes._replace(train=train, test=test)


def build_detector(flavor: str, scenes: SceneSet, root: Path | None, weights: Path | None) -> Detector:
    """Build a detector; for photographs on a SqueezeNet, from its weights beside `root` if there are any."""
    factory = partial(resolve(DETECTORS[FLAVORS[flavor]]), scenes.shape, len(scenes.classes))
    if root is None:
        return factory()
    path, params = weights or root.parent / "weights" / WEIGHTS, None
    if weights or path.exists():
        params, _ = weights_of(path, squeezenet(scenes.shape, 1000), "a SqueezeNet 1.1", cut_off=("classifier",))
    show.console.print(f"{flavor}: starts from {path if params else 'scratch'}", soft_wrap=True)
    options = {"anchor_sizes": fit_anchors(scenes)} if flavor == "anchor" else {}
    return factory(backbone=squeezenet_backbone(scenes.shape[0], weights=params), **options)


def fit_anchors(scenes: SceneSet) -> list[list[tuple[float, float]]]:
    """Return the sizes of each level's anchors, from the training boxes; print them and the share of boxes reached."""
    boxes, _, _ = object_table(scenes.train.objects.cpu())
    sizes = cluster_sizes(boxes[:, 2:] - boxes[:, :2], ANCHORS, rng=generator(0))
    levels, image = split_by_level(sizes, STRIDES), scenes.shape[1:]
    maps = [[side // stride for side in image] for stride in STRIDES]
    grid = torch.cat([anchor_grid(image, cells, level) for cells, level in zip(maps, levels, strict=False)])
    written = "; ".join(", ".join(f"{w:.0f}×{h:.0f}" for w, h in level) for level in levels)
    show.console.print(
        f"anchor: width × height of {len(sizes)} anchors, from {len(boxes)} training boxes: {written}. "
        f"{anchor_recall(boxes, grid):.1%} of the boxes reach IoU 0.5 with one",
        soft_wrap=True,
    )
    return levels


def thirds(scenes: SceneSet) -> dict[str, tuple[float, float]]:
    """Return ranges of areas in square pixels: all, and a third of the training boxes each; no empty one."""
    area = box_area(object_table(scenes.train.objects.cpu())[0]).double()
    low, high = (round(float(area.quantile(q))) for q in (1 / 3, 2 / 3))
    bands = {"all": (0, 1e10), "small": (0, low), "medium": (low, high), "large": (high, 1e10)}
    return {name: (least, most) for name, (least, most) in bands.items() if least < most}
