"""The single-shot detector: a class and an offset for every anchor of every level. Liu et al. 2016, "SSD".

Class 0 is the background; class c of the objects is c + 1 here.
"""

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor
from torch.func import vmap

from fn.conv import conv2d, conv2d_init
from fn.detection.anchors import anchor_grid, decode, encode, hard_negatives, match_anchors, sizes_by_ratio
from fn.detection.boxes import batched_nms, clip_boxes_to_image, unpack_objects
from fn.domains import Count, Counts, ImageShape, ImageSize, Levels, Probability
from fn.layers import softmax
from fn.losses import cross_entropy, smooth_l1_loss
from fn.models import Detector, Model
from fn.models.pyramid import WIDTHS, Backbone, pyramid_apply, pyramid_init, small_backbone
from fn.precision import half_in_float32
from fn.tree import Params

ANCHOR_SIZES = [sizes_by_ratio(sides, ratios=(1, 2)) for sides in ((9, 13), (18, 25))]
"""for digits of 12 to 28 pixels; `fn.detection.anchor_clusters` finds those of other objects"""


def ssd_init(
    rng: torch.Generator,
    backbone: Backbone,
    classes: Count,
    anchor_sizes: Levels,
    width: Count,
) -> tuple[Params, Params]:
    """Draw the parameters and the state: a pyramid of `width` channels, and two 3×3 convolutions on each level.

    Each level gives a class and an offset to each of its `anchor_sizes`, the finest level first.

    >>> rng = torch.Generator().manual_seed(0)
    >>> params, state = ssd_init(rng, small_backbone(1), 3, ANCHOR_SIZES, 16)
    >>> params["class0"]["weight"].shape  # 4 sizes · (3 classes + 1)
    torch.Size([16, 16, 3, 3])
    """
    pyramid, state = pyramid_init(rng, backbone, width, levels=len(anchor_sizes))
    params: Params = {"pyramid": pyramid}
    for i, level_sizes in enumerate(anchor_sizes):
        kinds = len(level_sizes)
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
    backbone_apply: Callable,
    anchor_sizes: Levels,
) -> tuple[dict[str, Tensor], Params]:
    """Return (output, new state), with the anchors of all levels in one row, the finest level first.

    {"logits": (batch, anchors, classes + 1), "offsets": (batch, anchors, 4), "anchors": (anchors, 4)}

    >>> model = ssd((1, 32, 32), 3).model
    >>> output, _ = model.apply(*model.init(torch.Generator().manual_seed(0)), torch.ones(2, 1, 32, 32), train=False)
    >>> output["logits"].shape, output["anchors"].shape  # 4 kinds on 8 · 8 + 4 · 4 cells
    (torch.Size([2, 320, 4]), torch.Size([320, 4]))
    """
    options = {"train": train, "backbone_apply": backbone_apply, "levels": len(anchor_sizes)}
    maps, pyramid_state = pyramid_apply(params["pyramid"], state["pyramid"], x, **options)
    logits, offsets, anchors = [], [], []
    per_anchor = "batch (kinds values) height width -> batch (height width kinds) values"
    for i, (features, level_sizes) in enumerate(zip(maps, anchor_sizes, strict=True)):
        kinds = len(level_sizes)
        class_map = conv2d(features, **params[f"class{i}"], padding="same")
        logits.append(rearrange(class_map, per_anchor, kinds=kinds))
        offset_map = conv2d(features, **params[f"offset{i}"], padding="same")
        offsets.append(rearrange(offset_map, per_anchor, kinds=kinds))
        anchors.append(anchor_grid(x.shape[2:], features.shape[2:], level_sizes))
    output = {"logits": torch.cat(logits, dim=1), "offsets": torch.cat(offsets, dim=1)}
    return output | {"anchors": torch.cat(anchors).to(x)}, {"pyramid": pyramid_state}


@half_in_float32("logits")
def ssd_loss(
    logits: Float[Tensor, "batch anchors labels"],
    offsets: Float[Tensor, "batch anchors 4"],
    anchors: Float[Tensor, "anchors 4"],
    objects: Float[Tensor, "batch objects 5"],
) -> dict[str, Tensor]:
    """Return {"class": cross-entropy, "box": smooth L1 of the offsets} over the number of anchors that match an object.

    Cross-entropy is summed over those anchors, and over the three times as many of the background where it is largest.

    >>> anchors, objects = torch.tensor([[0.0, 0, 8, 8], [9, 9, 17, 17]]), torch.tensor([[[0.0, 0, 8, 8, 1]]])
    >>> logits = torch.tensor([[[0.0, 0, 9], [9, 0, 0]]])  # the first anchor is of class 1, the second background
    >>> {name: float(part) < 1e-3 for name, part in ssd_loss(logits, torch.zeros(1, 2, 4), anchors, objects).items()}
    {'class': True, 'box': True}
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
    """Return (sum of cross-entropies, sum of smooth L1, number of matched anchors)."""
    boxes, labels, present = unpack_objects(objects)
    match = match_anchors(anchors, boxes, present)
    positive, index = match >= 0, match.clamp(min=0)
    target = torch.where(positive, labels[index] + 1, 0)
    losses = cross_entropy(logits, target, reduction="none")
    counted = positive | hard_negatives(losses.detach(), positive)
    # an anchor without an object is its own target: the logarithm of padding is not finite
    target_offsets = encode(torch.where(positive.unsqueeze(1), boxes[index], anchors), anchors)
    in_box = torch.where(positive, smooth_l1_loss(offsets, target_offsets, reduction="none").sum(dim=1), 0.0)
    return torch.where(counted, losses, 0.0).sum(), in_box.sum(), positive.sum()


def ssd_detect(
    logits: Float[Tensor, "batch anchors labels"],
    offsets: Float[Tensor, "batch anchors 4"],
    anchors: Float[Tensor, "anchors 4"],
    *,
    image_size: ImageSize,
    score_threshold: Probability = 0.01,
    candidates: Count = 300,
    iou_threshold: Probability = 0.45,
    max_detections: Count = 100,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (boxes, scores, labels) of each image, best first: what `batched_nms` keeps of the best `candidates`.

    >>> anchors = torch.tensor([[0.0, 0, 8, 8], [1, 0, 9, 8], [9, 9, 17, 17]])
    >>> logits = torch.tensor([[[0.0, 0, 9], [0, 0, 8], [9, 0, 0]]])  # the first two see one object of class 1
    >>> ssd_detect(logits, torch.zeros(1, 3, 4), anchors, image_size=(32, 32), score_threshold=0.5)
    [(tensor([[0., 0., 8., 8.]]), tensor([0.9998]), tensor([1]))]
    """
    found = []
    for scores, image_offsets in zip(softmax(logits, dim=2)[..., 1:], offsets, strict=True):
        best, place = scores.flatten().topk(min(candidates, scores.numel()))
        best, place = best[best >= score_threshold], place[best >= score_threshold]
        anchor, label = place // scores.shape[1], place % scores.shape[1]
        boxes = clip_boxes_to_image(decode(image_offsets[anchor], anchors[anchor]), image_size)
        kept = batched_nms(boxes, best, label, iou_threshold)[:max_detections]
        found.append((boxes[kept], best[kept], label[kept]))
    return found


def ssd(
    shape: ImageShape,
    classes: Count,
    *,
    backbone: Backbone | None = None,
    widths: Counts = WIDTHS,
    width: Count = 64,
    anchor_sizes: Levels = ANCHOR_SIZES,
) -> Detector:
    """Return the detector of images (channels, height, width), on the small backbone of `widths` unless one is given.

    `anchor_sizes` are (width, height) in pixels, a list per level, the finest first. ValueError for none, and for more
    levels than the backbone has maps.

    >>> detector = ssd((1, 32, 32), 3)
    >>> params, state = detector.model.init(torch.Generator().manual_seed(0))
    >>> params.keys()
    dict_keys(['pyramid', 'class0', 'offset0', 'class1', 'offset1'])
    """
    backbone = small_backbone(shape[0], widths=widths) if backbone is None else backbone
    if not 1 <= len(anchor_sizes) <= len(backbone.channels):
        raise ValueError(f"ssd: anchor_sizes has {len(anchor_sizes)} levels; the backbone has {len(backbone.channels)}")
    init = partial(ssd_init, backbone=backbone, classes=classes, width=width, anchor_sizes=anchor_sizes)
    apply = partial(ssd_apply, backbone_apply=backbone.apply, anchor_sizes=anchor_sizes)
    return Detector(Model(init, apply), ssd_loss, partial(ssd_detect, image_size=shape[1:]), classes)
