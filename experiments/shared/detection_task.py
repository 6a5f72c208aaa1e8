"""What Lab 5 learns, and with what: the scenes and the detector that its flags ask for."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from experiments.shared import cli, show
from experiments.shared.backbones import weights_of
from experiments.shared.detection_report import FLAVORS
from experiments.shared.registry import DETECTORS, resolve
from fn.data.datasets import DatasetUnavailable
from fn.data.scenes import Scenes, SceneSet, digits
from fn.data.voc import voc
from fn.models import Detector
from fn.models.pyramid import squeezenet_backbone
from fn.models.squeezenet import squeezenet
from fn.pretrained import IMAGENET_STATS

WEIGHTS = "squeezenet1_1_onnxzoo.pt"
PHOTO_OPTIONS = {"anchor": {"anchor_sizes": ((40, 60), (80, 105, 135)), "ratios": (0.8, 1.2, 1.8)}, "center": {}}
"""for photographs, whose objects are larger"""


def load_scenes(
    dataset: str, data: Path | None, classes: Sequence[str] | None, weights: Path | None, device: torch.device
) -> SceneSet:
    """Load digits, or the photographs in `data`, onto the device; UsageError for flags that do not go together."""
    if dataset == "digits":
        for name, flag in (("data", data), ("classes", classes), ("weights", weights)):
            if flag is not None:
                raise cli.UsageError(f"--dataset digits takes no --{name}")
        scenes = digits()
    elif data is None:
        raise cli.UsageError("--dataset voc needs --data, a folder of photographs with VOC XML")
    else:
        try:
            scenes = voc(data, classes=classes, stats=IMAGENET_STATS)
        except DatasetUnavailable as error:
            raise cli.UsageError(str(error)) from None
        if scenes.dropped:
            show.console.print(f"{scenes.dropped} boxes dropped, as none of their area is in the image")
    train, test = (Scenes(*(x.to(device) for x in part)) for part in (scenes.train, scenes.test))
    return scenes._replace(train=train, test=test)


def build_detector(flavor: str, scenes: SceneSet, data: Path | None, weights: Path | None) -> Detector:
    """Build a detector; for photographs on a SqueezeNet, from its weights beside `data` if there are any."""
    factory = partial(resolve(DETECTORS[FLAVORS[flavor]]), scenes.shape, len(scenes.classes))
    if data is None:
        return factory()
    path, params = weights or data.parent / "weights" / WEIGHTS, None
    if weights or path.exists():
        params, _ = weights_of(path, squeezenet(scenes.shape, 1000), "a SqueezeNet 1.1", cut_off=("classifier",))
    show.console.print(f"{flavor}: starts from {path if params else 'scratch'}", soft_wrap=True)
    return factory(backbone=squeezenet_backbone(scenes.shape[0], weights=params), **PHOTO_OPTIONS[flavor])
