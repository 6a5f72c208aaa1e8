"""Boxes, in the names and order of torchvision.ops: formats, areas, overlaps, non-maximum suppression.

A box is (x1, y1, x2, y2), in pixels from the upper left corner of the image, unless its format says otherwise. Boxes
of no area are boxes; with reversed corners they have a negative extent, which is multiplied out as it is, so that
`remove_small_boxes` is what takes them away.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
BLOCK = 192  # boxes whose overlaps with all others are held at once


def box_convert(boxes: Float[Tensor, "*boxes 4"], in_fmt: BoxFormat, out_fmt: BoxFormat) -> Float[Tensor, "*boxes 4"]:
    """Between xyxy (corners), xywh (upper left corner, size) and cxcywh (centre, size)"""
    a, b, c, d = boxes.unbind(-1)
    if in_fmt == "xywh":
        a, b, c, d = a, b, a + c, b + d
    elif in_fmt == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    if out_fmt == "xywh":
        a, b, c, d = a, b, c - a, d - b
    elif out_fmt == "cxcywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return torch.stack([a, b, c, d], dim=-1)


def box_area(boxes: Float[Tensor, "*boxes 4"]) -> Float[Tensor, "*boxes"]:
    """(x2 - x1)(y2 - y1)"""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def box_intersection(
    boxes1: Float[Tensor, "boxes1 4"], boxes2: Float[Tensor, "boxes2 4"]
) -> Float[Tensor, "boxes1 boxes2"]:
    """The area that each of the one shares with each of the other"""
    left, top, right, bottom = boxes1.unsqueeze(1).unbind(-1)
    x1, y1, x2, y2 = boxes2.unbind(-1)
    width = torch.minimum(right, x2) - torch.maximum(left, x1)
    height = torch.minimum(bottom, y2) - torch.maximum(top, y1)
    return width.clamp(min=0) * height.clamp(min=0)


def box_iou(boxes1: Float[Tensor, "boxes1 4"], boxes2: Float[Tensor, "boxes2 4"]) -> Float[Tensor, "boxes1 boxes2"]:
    """|A ∩ B| / |A ∪ B|; NaN where neither has an area"""
    shared = box_intersection(boxes1, boxes2)
    return shared / (box_area(boxes1).unsqueeze(1) + box_area(boxes2) - shared)


def generalized_box_iou(
    boxes1: Float[Tensor, "boxes1 4"], boxes2: Float[Tensor, "boxes2 4"]
) -> Float[Tensor, "boxes1 boxes2"]:
    """|A ∩ B| / |A ∪ B| - |C \\ (A ∪ B)| / |C|, C the smallest box around both: it has a slope where IoU is flat at 0.

    Rezatofighi et al. 2019. NaN where C has no area.
    """
    shared = box_intersection(boxes1, boxes2)
    union = box_area(boxes1).unsqueeze(1) + box_area(boxes2) - shared
    left, top, right, bottom = boxes1.unsqueeze(1).unbind(-1)
    x1, y1, x2, y2 = boxes2.unbind(-1)
    width = torch.maximum(right, x2) - torch.minimum(left, x1)
    height = torch.maximum(bottom, y2) - torch.minimum(top, y1)
    hull = width.clamp(min=0) * height.clamp(min=0)
    return shared / union - (hull - union) / hull


def clip_boxes_to_image(boxes: Float[Tensor, "*boxes 4"], size: Sequence[int]) -> Float[Tensor, "*boxes 4"]:
    """What of each box lies in an image of `size` (height, width); one that lies outside has no area left"""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1)


def remove_small_boxes(boxes: Float[Tensor, "boxes 4"], min_size: float) -> Int64[Tensor, " kept"]:
    """The indices of the boxes no side of which is less than `min_size`; reversed corners and NaN never are"""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return ((x2 - x1 >= min_size) & (y2 - y1 >= min_size)).nonzero().squeeze(1)


def unpack_objects(
    objects: Float[Tensor, "*batch 5"],
) -> tuple[Float[Tensor, "*batch 4"], Int64[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Split rows (x1, y1, x2, y2, class) into (boxes, classes, present); rows of class -1 are padding."""
    return objects[..., :4], objects[..., 4].long(), objects[..., 4] >= 0


def object_table(
    objects: Float[Tensor, "batch objects 5"],
) -> tuple[Float[Tensor, "rows 4"], Int64[Tensor, " rows"], Int64[Tensor, " rows"]]:
    """Return (boxes, classes, image index), a row per object of all images, without the padding."""
    boxes, labels, present = unpack_objects(objects)
    return boxes[present], labels[present], present.nonzero()[:, 0]


def nms(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], iou_threshold: float
) -> Int64[Tensor, " kept"]:
    """The indices of the boxes to keep, best first: none overlaps a better one that is kept by more than the threshold.

    Of equal scores the earlier box is the better one. ValueError for a NaN, which is neither better nor worse.
    """
    return _nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


def batched_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    idxs: Int[Tensor, " boxes"],
    iou_threshold: float,
) -> Int64[Tensor, " kept"]:
    """`nms` among the boxes of one class at a time, `idxs` being their classes; all of them best first."""
    return _nms(boxes, scores, idxs, iou_threshold)


def _nms(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], classes: Int[Tensor, " boxes"], threshold: float
) -> Int64[Tensor, " kept"]:
    """By class, then from the best, in blocks.

    Each block settles its own, and what it keeps strikes out at once all that comes later in its classes.
    """
    if boxes.isnan().any() or scores.isnan().any():
        raise ValueError("nms: a box or a score is NaN")
    above = torch.tensor(threshold, dtype=boxes.dtype, device=boxes.device)
    if above.item() > threshold:  # as of rounding to float32: an IoU of that very float exceeds the threshold
        above = above.nextafter(torch.zeros_like(above))
    ranked = scores.sort(descending=True, stable=True).indices
    classes, by_class = classes[ranked].sort(stable=True)
    order = ranked[by_class]
    columns = boxes[order].T.contiguous()  # a coordinate after the other in memory
    areas = box_area(columns.T)
    left, kept = torch.arange(len(order), device=order.device), torch.zeros_like(order, dtype=torch.bool)
    while len(left):
        block = left[:BLOCK]
        others, next_classes = left.tensor_split([int((classes[left] <= classes[block[-1]]).sum())])
        shared = box_intersection(columns[:, block].T, columns[:, others].T)
        strikes = shared / (areas[block].unsqueeze(1) + areas[others] - shared) > above  # not where it is NaN
        strikes &= classes[block].unsqueeze(1) == classes[others]
        stays = _settle(strikes[:, : len(block)].triu(1))
        kept[order[block]] = stays
        struck = strikes[stays].any(dim=0)[len(block) :]
        left = torch.cat([others[len(block) :][~struck], next_classes])
    return ranked[kept[ranked]]


def _settle(strikes: Bool[Tensor, "boxes boxes"]) -> Bool[Tensor, " boxes"]:
    """Who stays where box i, if it stays, strikes out the later ones j of strikes[i, j].

    stays[j] = no i that stays strikes j, iterated to its fixed point: the first n are right after n rounds, and most
    blocks are settled in a few.
    """
    stays = torch.ones(len(strikes), dtype=torch.bool, device=strikes.device)
    for _ in range(len(strikes)):
        after = ~(strikes & stays.unsqueeze(1)).any(dim=0)
        if torch.equal(after, stays):
            break
        stays = after
    return stays
