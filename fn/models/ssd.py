"""The single-shot detector: a class and an offset for every anchor of every level. Liu et al. 2016, "SSD".

Class 0 is background, class c + 1 what the objects call c.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import vmap

from fn.conv import conv2d, conv2d_init
from fn.detection.anchors import anchor_grid, decode, encode, hard_negatives, match_anchors
from fn.detection.boxes import batched_nms, clip_boxes_to_image, unpack_objects
from fn.layers import softmax
from fn.losses import cross_entropy, smooth_l1_loss
from fn.models import Detector, Model
from fn.models.pyramid import WIDTHS, Trunk, pyramid_apply, pyramid_init, small_trunk
from fn.tree import Params


def ssd_init(
    rng: torch.Generator,
    trunk: Trunk,
    classes: int,
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    width: int,
) -> tuple[Params, Params]:
    """Anchors have `sizes` in pixels, a list per level, and `ratios` at every level: see fn.detection.anchors."""
    pyramid, state = pyramid_init(rng, trunk, width, levels=len(sizes))
    params: Params = {"pyramid": pyramid}
    for i, some in enumerate(sizes):
        kinds = len(some) * len(ratios)
        params[f"class{i}"] = conv2d_init(rng, width, kinds * (classes + 1), 3)
        params[f"offset{i}"] = conv2d_init(rng, width, kinds * 4, 3)
    return params, {"pyramid": state}


def ssd_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    trunk_apply: Callable,
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
) -> tuple[dict[str, Tensor], Params]:
    """{"logits": (batch, anchors, classes + 1), "offsets": (batch, anchors, 4), "anchors": (anchors, 4)}"""
    levels = {"train": train, "trunk_apply": trunk_apply, "levels": len(sizes)}
    maps, pyramid_state = pyramid_apply(params["pyramid"], state["pyramid"], x, **levels)
    logits, offsets, anchors = [], [], []
    per_anchor = "batch (kinds values) height width -> batch (height width kinds) values"
    for i, (features, some) in enumerate(zip(maps, sizes, strict=True)):
        kinds = len(some) * len(ratios)
        logits.append(rearrange(conv2d(features, **params[f"class{i}"], padding="same"), per_anchor, kinds=kinds))
        offsets.append(rearrange(conv2d(features, **params[f"offset{i}"], padding="same"), per_anchor, kinds=kinds))
        anchors.append(anchor_grid(x.shape[2:], features.shape[2:], some, ratios))
    output = {"logits": torch.cat(logits, dim=1), "offsets": torch.cat(offsets, dim=1)}
    return output | {"anchors": torch.cat(anchors).to(x)}, {"pyramid": pyramid_state}


def ssd_loss(
    logits: Float[Tensor, "batch anchors labels"],
    offsets: Float[Tensor, "batch anchors 4"],
    anchors: Float[Tensor, "anchors 4"],
    objects: Float[Tensor, "batch objects 5"],
) -> dict[str, Tensor]:
    """{"class": cross-entropy, "box": smooth L1 of the offsets}, each over the number of anchors that match an object.

    Cross-entropy counts for those, and for the three times as many of the background that it is worst for.
    """
    per_image = vmap(_image_loss, in_dims=(0, 0, None, 0))(logits, offsets, anchors, objects)
    in_class, in_box, matched = (part.sum() for part in per_image)
    return {"class": in_class / matched.clamp(min=1), "box": in_box / matched.clamp(min=1)}


def _image_loss(
    logits: Float[Tensor, "anchors labels"],
    offsets: Float[Tensor, "anchors 4"],
    anchors: Float[Tensor, "anchors 4"],
    objects: Float[Tensor, "objects 5"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Int64[Tensor, ""]]:
    """(sum of cross-entropies, sum of smooth L1, anchors matched)"""
    boxes, labels, present = unpack_objects(objects)
    match = match_anchors(anchors, boxes, present)
    positive, index = match >= 0, match.clamp(min=0)
    target = torch.where(positive, labels[index] + 1, 0)
    losses = cross_entropy(logits, target, reduction="none")
    counted = positive | hard_negatives(losses.detach(), positive)
    # an anchor without an object is its own target: padding has no logarithm
    wanted = encode(torch.where(positive.unsqueeze(1), boxes[index], anchors), anchors)
    in_box = torch.where(positive, smooth_l1_loss(offsets, wanted, reduction="none").sum(dim=1), 0.0)
    return torch.where(counted, losses, 0.0).sum(), in_box.sum(), positive.sum()


def ssd_detect(
    logits: Float[Tensor, "batch anchors labels"],
    offsets: Float[Tensor, "batch anchors 4"],
    anchors: Float[Tensor, "anchors 4"],
    *,
    image_size: Sequence[int],
    least: float = 0.01,
    candidates: int = 300,
    iou_threshold: float = 0.45,
    most: int = 100,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(boxes, scores, labels) of each image, best first: what is left of the `candidates` best by `batched_nms`"""
    found = []
    for scores, moves in zip(softmax(logits, dim=2)[..., 1:], offsets, strict=True):
        value, place = scores.flatten().topk(min(candidates, scores.numel()))
        value, place = value[value >= least], place[value >= least]
        anchor, label = place // scores.shape[1], place % scores.shape[1]
        boxes = clip_boxes_to_image(decode(moves[anchor], anchors[anchor]), image_size)
        kept = batched_nms(boxes, value, label, iou_threshold)[:most]
        found.append((boxes[kept], value[kept], label[kept]))
    return found


ANCHOR_SIZES, RATIOS = ((9, 13), (18, 25)), (1, 2)
"""for the digits of fn.data.scenes: of each level, and heights over widths of them all"""


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
