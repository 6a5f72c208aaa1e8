"""Detectors by name: a model, what its output costs, and what is read from it, behind one contract."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from fn.models import Model
from fn.models.centernet import centernet_apply, centernet_detect, centernet_init, centernet_loss
from fn.models.pyramid import Trunk, squeezenet_maps, trunk_apply, trunk_init
from fn.models.squeezenet import squeezenet_init
from fn.models.ssd import ssd_apply, ssd_detect, ssd_init, ssd_loss
from fn.tree import Params

WIDTHS = (16, 32, 64, 64, 96, 96)
"""channels of the small trunk's convolutions"""
ANCHOR_SIZES, RATIOS = ((9, 13), (18, 25)), (1, 2)
"""for the digits of fn.data.scenes: of each level, and heights over widths of them all"""


class Detector(NamedTuple):
    """A model whose output is a dict of tensors, splatted into both functions."""

    model: Model
    loss: Callable
    """loss(**output, objects) -> a dict of parts, whose sum is the loss"""
    detect: Callable
    """detect(**output) -> (boxes, scores, labels) of each image"""
    classes: int


def small_trunk(channels: int, *, widths: Sequence[int] = WIDTHS) -> Trunk:
    init = partial(trunk_init, channels=channels, widths=widths)
    return Trunk(init, trunk_apply, (widths[2], widths[4], widths[5]))


def squeezenet_trunk(channels: int, *, weights: Params | None = None) -> Trunk:
    """Maps of an eighth and a sixteenth of the image's side, if 16 divides it; from published `weights`, or else from
    scratch."""
    fresh = partial(squeezenet_init, channels=channels, classes=1)
    return Trunk(partial(_from_weights, weights=weights, fresh=fresh), squeezenet_maps, (256, 512))


def _from_weights(rng: torch.Generator, weights: Params | None, fresh: Callable) -> tuple[Params, Params]:
    return (fresh(rng)[0] if weights is None else weights)["features"], {}


def ssd(
    shape: Sequence[int],
    classes: int,
    *,
    trunk: Trunk | None = None,
    widths: Sequence[int] = WIDTHS,
    width: int = 64,
    sizes: Sequence[Sequence[float]] = ANCHOR_SIZES,
    ratios: Sequence[float] = RATIOS,
) -> Detector:
    trunk = small_trunk(shape[0], widths=widths) if trunk is None else trunk
    init = partial(ssd_init, trunk=trunk, classes=classes, sizes=sizes, ratios=ratios, width=width)
    apply = partial(ssd_apply, trunk_apply=trunk.apply, sizes=sizes, ratios=ratios)
    return Detector(Model(init, apply), ssd_loss, partial(ssd_detect, image_size=shape[1:]), classes)


def centernet(
    shape: Sequence[int],
    classes: int,
    *,
    trunk: Trunk | None = None,
    widths: Sequence[int] = WIDTHS,
    width: int = 64,
) -> Detector:
    trunk = small_trunk(shape[0], widths=widths) if trunk is None else trunk
    model = Model(
        partial(centernet_init, trunk=trunk, classes=classes, width=width),
        partial(centernet_apply, trunk_apply=trunk.apply),
    )
    loss, detect = (partial(f, image_size=shape[1:]) for f in (centernet_loss, centernet_detect))
    return Detector(model, loss, detect, classes)
