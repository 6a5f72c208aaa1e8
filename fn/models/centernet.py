"""Objects as points: a heat map of centres per class, and at each centre a size and an offset. Zhou et al. 2019.

The map is the finest level of the pyramid, and its cells are the unit of sizes and offsets.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import vmap

from fn.conv import conv2d, conv2d_init
from fn.detection.boxes import box_convert, clip_boxes_to_image, unpack_objects
from fn.detection.heatmaps import center_cells, center_heatmap, peaks
from fn.layers import relu
from fn.losses import penalty_reduced_focal_loss
from fn.models import Detector, Model
from fn.models.pyramid import WIDTHS, Trunk, pyramid_apply, pyramid_init, small_trunk
from fn.tree import Params

PRIOR = 0.1
"""the heat of every cell before training"""
SIZE_WEIGHT = 0.1
"""of the size's loss, beside 1 for the others, as in the paper"""


def centernet_init(rng: torch.Generator, trunk: Trunk, classes: int, width: int) -> tuple[Params, Params]:
    pyramid, state = pyramid_init(rng, trunk, width, levels=1)
    params: Params = {"pyramid": pyramid}
    for head, channels in (("heat", classes), ("size", 2), ("offset", 2)):
        params[head] = {"conv": conv2d_init(rng, width, width, 3), "out": conv2d_init(rng, width, channels, 1)}
    params["heat"]["out"]["bias"] = torch.full((classes,), math.log(PRIOR / (1 - PRIOR)))
    return params, {"pyramid": state}


def centernet_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    trunk_apply: Callable,
) -> tuple[dict[str, Tensor], Params]:
    """{"heat": logits (batch, classes, rows, columns), "size" and "offset": (batch, 2, rows, columns), x before y}"""
    levels = {"train": train, "trunk_apply": trunk_apply, "levels": 1}
    [features], pyramid_state = pyramid_apply(params["pyramid"], state["pyramid"], x, **levels)
    output = {}
    for head in ("heat", "size", "offset"):
        hidden = relu(conv2d(features, **params[head]["conv"], padding="same"))
        output[head] = conv2d(hidden, **params[head]["out"])
    return output, {"pyramid": pyramid_state}


def centernet_loss(
    heat: Float[Tensor, "batch classes rows columns"],
    size: Float[Tensor, "batch 2 rows columns"],
    offset: Float[Tensor, "batch 2 rows columns"],
    objects: Float[Tensor, "batch objects 5"],
    *,
    image_size: Sequence[int],
) -> dict[str, Tensor]:
    """{"center": penalty-reduced focal loss, "size": SIZE_WEIGHT · L1, "offset": L1}, over the number of objects"""
    cell = torch.tensor([image_size[1] / heat.shape[3], image_size[0] / heat.shape[2]]).to(heat)
    per_image = vmap(_image_loss, in_dims=(0, 0, 0, 0, None))(heat, size, offset, objects, cell)
    in_center, in_size, in_offset, count = (part.sum() for part in per_image)
    parts = {"center": in_center, "size": SIZE_WEIGHT * in_size, "offset": in_offset}
    return {name: part / count.clamp(min=1) for name, part in parts.items()}


def _image_loss(
    heat: Float[Tensor, "classes rows columns"],
    size: Float[Tensor, "2 rows columns"],
    offset: Float[Tensor, "2 rows columns"],
    objects: Float[Tensor, "objects 5"],
    cell: Float[Tensor, "2"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""], Int64[Tensor, ""]]:
    """(focal loss, L1 of sizes, L1 of offsets, objects), all of them sums; `cell` is (width, height) in pixels"""
    classes, rows, columns = heat.shape
    boxes, labels, present = unpack_objects(objects)
    centres, sizes = (box_convert(boxes, "xyxy", "cxcywh") / cell.repeat(2)).split(2, dim=1)
    target = center_heatmap(centres, sizes, labels, present, classes=classes, height=rows, width=columns)
    cells = center_cells(centres, rows, columns)
    there = cells[:, 1] * columns + cells[:, 0]
    in_size = (size.flatten(1)[:, there].T - sizes).abs().sum(dim=1)
    in_offset = (offset.flatten(1)[:, there].T - (centres - cells)).abs().sum(dim=1)
    in_center = penalty_reduced_focal_loss(heat, target, reduction="sum")
    return (
        in_center,
        torch.where(present, in_size, 0.0).sum(),
        torch.where(present, in_offset, 0.0).sum(),
        present.sum(),
    )


def centernet_detect(
    heat: Float[Tensor, "batch classes rows columns"],
    size: Float[Tensor, "batch 2 rows columns"],
    offset: Float[Tensor, "batch 2 rows columns"],
    *,
    image_size: Sequence[int],
    least: float = 0.01,
    most: int = 100,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(boxes, scores, labels) of each image, best first: a box at every peak, and no suppression but that of peaks"""
    *_, rows, columns = heat.shape
    cell = torch.tensor([image_size[1] / columns, image_size[0] / rows]).to(heat).repeat(2)
    found = []
    for hot, extent, shift in zip(peaks(heat.sigmoid()), size, offset, strict=True):
        value, place = hot.flatten().topk(min(most, hot.numel()))
        value, place = value[value >= least], place[value >= least]
        label, there = place // (rows * columns), place % (rows * columns)
        centre = torch.stack([there % columns, there // columns], dim=1) + shift.flatten(1)[:, there].T
        boxes = torch.cat([centre, extent.flatten(1)[:, there].T.clamp(min=0)], dim=1)
        boxes = clip_boxes_to_image(box_convert(boxes, "cxcywh", "xyxy") * cell, image_size)
        found.append((boxes, value, label))
    return found


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
