"""Objects as points: a heat map of centres per class, and at each centre a size and an offset. Zhou et al. 2019.

The map is the finest level of the pyramid, and its cells are the unit of sizes and offsets.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import vmap

from fn.conv import conv2d, conv2d_init
from fn.detection.boxes import box_convert, clip_boxes_to_image, unpack_objects
from fn.detection.heatmaps import center_cells, center_heatmap, peaks
from fn.domains import Count, Counts, ImageShape, ImageSize, Probability
from fn.layers import relu
from fn.losses import penalty_reduced_focal_loss
from fn.models import Detector, Model
from fn.models.pyramid import WIDTHS, Backbone, pyramid_apply, pyramid_init, small_backbone
from fn.precision import half_in_float32
from fn.tree import Params

PRIOR = 0.1
"""the heat of every cell before training"""
SIZE_WEIGHT = 0.1
"""of the size's loss, where the others have 1, as in the paper"""


def centernet_init(rng: torch.Generator, backbone: Backbone, classes: Count, width: Count) -> tuple[Params, Params]:
    """Draw the parameters and the state: a pyramid of `width` channels, and three heads of two convolutions.

    >>> params, state = centernet_init(torch.Generator().manual_seed(0), small_backbone(1), 3, 16)
    >>> params["heat"]["out"]["weight"].shape
    torch.Size([3, 16, 1, 1])
    """
    pyramid, state = pyramid_init(rng, backbone, width, levels=1)
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
    backbone_apply: Callable,
) -> tuple[dict[str, Tensor], Params]:
    """Return ({"heat": logits (batch, classes, rows, columns), "size" and "offset": (batch, 2, rows, columns)}, state).

    Sizes and offsets are (x, y).

    >>> model = centernet((1, 32, 32), 3).model
    >>> output, _ = model.apply(*model.init(torch.Generator().manual_seed(0)), torch.ones(2, 1, 32, 32), train=False)
    >>> output["heat"].shape, output["size"].shape
    (torch.Size([2, 3, 8, 8]), torch.Size([2, 2, 8, 8]))
    """
    options = {"train": train, "backbone_apply": backbone_apply, "levels": 1}
    [features], pyramid_state = pyramid_apply(params["pyramid"], state["pyramid"], x, **options)
    output = {}
    for head in ("heat", "size", "offset"):
        hidden = relu(conv2d(features, **params[head]["conv"], padding="same"))
        output[head] = conv2d(hidden, **params[head]["out"])
    return output, {"pyramid": pyramid_state}


@half_in_float32("heat")
def centernet_loss(
    heat: Float[Tensor, "batch classes rows columns"],
    size: Float[Tensor, "batch 2 rows columns"],
    offset: Float[Tensor, "batch 2 rows columns"],
    objects: Float[Tensor, "batch objects 5"],
    *,
    image_size: ImageSize,
) -> dict[str, Tensor]:
    """Return {"center": penalty-reduced focal loss, "size": SIZE_WEIGHT · L1, "offset": L1} over the number of objects.

    >>> heat, size, offset = torch.zeros(2, 3, 8, 8), torch.ones(2, 2, 8, 8), torch.zeros(2, 2, 8, 8)
    >>> objects = torch.tensor([[[4.0, 4, 16, 20, 1]], [[0.0, 0, 0, 0, -1]]])
    >>> centernet_loss(heat, size, offset, objects, image_size=(32, 32))["size"]  # |1 - 12 / 4| + |1 - 16 / 4|
    tensor(0.5000)
    """
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
    """Return the sums (focal loss, L1 of sizes, L1 of offsets, objects); `cell` is (width, height) in pixels."""
    classes, rows, columns = heat.shape
    boxes, labels, present = unpack_objects(objects)
    centres, sizes = (box_convert(boxes, "xyxy", "cxcywh") / cell.repeat(2)).split(2, dim=1)
    target = center_heatmap(centres, sizes, labels, present, classes=classes, height=rows, width=columns)
    cells = center_cells(centres, rows, columns)
    index = cells[:, 1] * columns + cells[:, 0]
    in_size = (size.flatten(1)[:, index].T - sizes).abs().sum(dim=1)
    in_offset = (offset.flatten(1)[:, index].T - (centres - cells)).abs().sum(dim=1)
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
    image_size: ImageSize,
    score_threshold: Probability = 0.01,
    max_detections: Count = 100,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (boxes, scores, labels) of each image, best first: a box at every peak of the heat, without NMS.

    >>> heat = torch.full((1, 3, 8, 8), -9.0)
    >>> heat[0, 1, 3, 2] = 9.0  # class 1, row 3, column 2
    >>> options = {"image_size": (32, 32), "score_threshold": 0.5}
    >>> centernet_detect(heat, torch.full((1, 2, 8, 8), 2.0), torch.zeros(1, 2, 8, 8), **options)
    [(tensor([[ 4.,  8., 12., 16.]]), tensor([0.9999]), tensor([1]))]
    """
    *_, rows, columns = heat.shape
    cell = torch.tensor([image_size[1] / columns, image_size[0] / rows]).to(heat).repeat(2)
    found = []
    for heat_map, size_map, offset_map in zip(peaks(heat.sigmoid()), size, offset, strict=True):
        scores, index = heat_map.flatten().topk(min(max_detections, heat_map.numel()))
        scores, index = scores[scores >= score_threshold], index[scores >= score_threshold]
        label, place = index // (rows * columns), index % (rows * columns)
        centre = torch.stack([place % columns, place // columns], dim=1) + offset_map.flatten(1)[:, place].T
        boxes = torch.cat([centre, size_map.flatten(1)[:, place].T.clamp(min=0)], dim=1)
        boxes = clip_boxes_to_image(box_convert(boxes, "cxcywh", "xyxy") * cell, image_size)
        found.append((boxes, scores, label))
    return found


def centernet(
    shape: ImageShape,
    classes: Count,
    *,
    backbone: Backbone | None = None,
    widths: Counts = WIDTHS,
    width: Count = 64,
) -> Detector:
    """Return the detector of images (channels, height, width), on the small backbone of `widths` unless one is given.

    >>> detector = centernet((1, 32, 32), 3)
    >>> params, state = detector.model.init(torch.Generator().manual_seed(0))
    >>> params.keys()
    dict_keys(['pyramid', 'heat', 'size', 'offset'])
    """
    backbone = small_backbone(shape[0], widths=widths) if backbone is None else backbone
    init = partial(centernet_init, backbone=backbone, classes=classes, width=width)
    apply = partial(centernet_apply, backbone_apply=backbone.apply)
    loss = partial(centernet_loss, image_size=shape[1:])
    detect = partial(centernet_detect, image_size=shape[1:])
    return Detector(Model(init, apply), loss, detect, classes)
