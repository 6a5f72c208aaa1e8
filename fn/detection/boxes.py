"""Boxes, in the names and order of torchvision.ops: formats, areas, overlaps, non-maximum suppression.

A box is (x1, y1, x2, y2), in pixels from the upper left corner of the image, unless its format says otherwise. A box
without an area is valid. One with reversed corners has a negative width or height, which is multiplied as it is;
`remove_small_boxes` drops it. Areas and overlaps of fp16 and bf16 are float32, as in torchvision.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from fn.domains import ImageSize, Real
from fn.precision import upcast

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
BLOCK = 192
"""boxes of a block, whose overlaps with all remaining ones are held at once"""


def box_convert(boxes: Float[Tensor, "*boxes 4"], in_fmt: BoxFormat, out_fmt: BoxFormat) -> Float[Tensor, "*boxes 4"]:
    """Convert boxes between xyxy (corners), xywh (upper left corner, size) and cxcywh (centre, size).

    >>> box_convert(torch.tensor([10.0, 20, 30, 60]), "xyxy", "cxcywh")
    tensor([20., 40., 20., 40.])
    """
    if in_fmt == out_fmt:
        return boxes.clone()
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
    """Return (x2 - x1)(y2 - y1), of half precision in float32, as are all overlaps here.

    >>> box_area(torch.tensor([[10.0, 20, 30, 60], [0, 0, 5, 5]]))
    tensor([800.,  25.])
    """
    x1, y1, x2, y2 = upcast(boxes).unbind(-1)
    return (x2 - x1) * (y2 - y1)


def box_intersection(
    boxes1: Float[Tensor, "boxes1 4"], boxes2: Float[Tensor, "boxes2 4"]
) -> Float[Tensor, "boxes1 boxes2"]:
    """Return the area that each box of `boxes1` shares with each box of `boxes2`.

    >>> boxes1, boxes2 = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10], [20, 20, 30, 30]])
    >>> box_intersection(boxes1, boxes2)
    tensor([[50.,  0.]])
    """
    left, top, right, bottom = upcast(boxes1).unsqueeze(1).unbind(-1)
    x1, y1, x2, y2 = upcast(boxes2).unbind(-1)
    width = torch.minimum(right, x2) - torch.maximum(left, x1)
    height = torch.minimum(bottom, y2) - torch.maximum(top, y1)
    return width.clamp(min=0) * height.clamp(min=0)


def box_iou(boxes1: Float[Tensor, "boxes1 4"], boxes2: Float[Tensor, "boxes2 4"]) -> Float[Tensor, "boxes1 boxes2"]:
    """Return the intersection over union |A ∩ B| / |A ∪ B| of each pair of boxes; NaN where neither has an area.

    >>> boxes1, boxes2 = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10], [20, 20, 30, 30]])
    >>> box_iou(boxes1, boxes2)
    tensor([[0.3333, 0.0000]])
    """
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    shared = box_intersection(boxes1, boxes2)
    return shared / (box_area(boxes1).unsqueeze(1) + box_area(boxes2) - shared)


def generalized_box_iou(
    boxes1: Float[Tensor, "boxes1 4"], boxes2: Float[Tensor, "boxes2 4"]
) -> Float[Tensor, "boxes1 boxes2"]:
    """Return |A ∩ B| / |A ∪ B| - |C \\ (A ∪ B)| / |C| of each pair of boxes, C the smallest box around both.

    Unlike IoU it has a gradient where the boxes do not overlap. Rezatofighi et al. 2019. NaN where C has no area.

    >>> boxes1, boxes2 = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10], [20, 20, 30, 30]])
    >>> generalized_box_iou(boxes1, boxes2)
    tensor([[ 0.3333, -0.7778]])
    """
    boxes1, boxes2 = upcast(boxes1), upcast(boxes2)
    shared = box_intersection(boxes1, boxes2)
    union = box_area(boxes1).unsqueeze(1) + box_area(boxes2) - shared
    left, top, right, bottom = upcast(boxes1).unsqueeze(1).unbind(-1)
    x1, y1, x2, y2 = upcast(boxes2).unbind(-1)
    width = torch.maximum(right, x2) - torch.minimum(left, x1)
    height = torch.maximum(bottom, y2) - torch.minimum(top, y1)
    hull = width.clamp(min=0) * height.clamp(min=0)
    return shared / union - (hull - union) / hull


def clip_boxes_to_image(boxes: Float[Tensor, "*boxes 4"], size: ImageSize) -> Float[Tensor, "*boxes 4"]:
    """Clip boxes to an image of `size` (height, width); a box that lies outside is left without an area.

    >>> clip_boxes_to_image(torch.tensor([[-5.0, 10, 70, 90], [80, 0, 90, 10]]), size=(40, 60))
    tensor([[ 0., 10., 60., 40.],
            [60.,  0., 60., 10.]])
    """
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1)


def remove_small_boxes(boxes: Float[Tensor, "boxes 4"], min_size: Real) -> Int64[Tensor, " kept"]:
    """Return the indices of the boxes with both sides at least `min_size`; reversed corners and NaN never pass.

    >>> remove_small_boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 1], [5, 5, 8, 8]]), min_size=2)
    tensor([0, 2])
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    return ((x2 - x1 >= min_size) & (y2 - y1 >= min_size)).nonzero().squeeze(1)


def unpack_objects(
    objects: Float[Tensor, "*batch 5"],
) -> tuple[Float[Tensor, "*batch 4"], Int64[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """Split rows (x1, y1, x2, y2, class) into (boxes, classes, present); rows of class -1 are padding.

    >>> unpack_objects(torch.tensor([[0.0, 0, 10, 10, 3], [0, 0, 0, 0, -1]]))[1:]
    (tensor([ 3, -1]), tensor([ True, False]))
    """
    return objects[..., :4], objects[..., 4].long(), objects[..., 4] >= 0


def object_table(
    objects: Float[Tensor, "batch objects 5"],
) -> tuple[Float[Tensor, "rows 4"], Int64[Tensor, " rows"], Int64[Tensor, " rows"]]:
    """Return (boxes, classes, image index), a row per object of all images, without the padding.

    >>> objects = torch.tensor([[[0.0, 0, 10, 10, 3], [0, 0, 0, 0, -1]], [[0, 0, 5, 5, 1], [5, 5, 9, 9, 2]]])
    >>> object_table(objects)[1:]
    (tensor([3, 1, 2]), tensor([0, 1, 1]))
    """
    boxes, labels, present = unpack_objects(objects)
    return boxes[present], labels[present], present.nonzero()[:, 0]


def nms_naive(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], iou_threshold: Real
) -> Int64[Tensor, " kept"]:
    """Return the indices of the boxes that greedy non-maximum suppression keeps, best first.

    Keep the best box, suppress all that overlap it by more than the threshold, repeat with the remaining ones. Of equal
    scores the earlier box is the better one. ValueError for a NaN, which is neither better nor worse.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    >>> nms_naive(boxes, torch.tensor([0.8, 0.9, 0.7]), iou_threshold=0.5)
    tensor([1, 2])
    """
    _require_numbers(boxes, scores)
    overlaps = box_iou(boxes, boxes).double() > iou_threshold  # float32 would round the threshold; NaN is False
    remaining = scores.sort(descending=True, stable=True).indices
    kept = []
    while len(remaining):
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        remaining = remaining[~overlaps[best, remaining]]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def nms(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], iou_threshold: Real
) -> Int64[Tensor, " kept"]:
    """Return the indices of the boxes that non-maximum suppression keeps, best first, as `nms_naive` does.

    No kept box overlaps a better kept one by more than the threshold. Of equal scores the earlier box is the better
    one. ValueError for a NaN, which is neither better nor worse. It runs in blocks of BLOCK boxes, in place of one
    box at a time.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    >>> nms(boxes, torch.tensor([0.8, 0.9, 0.7]), iou_threshold=0.5)
    tensor([1, 2])
    """
    return _nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


def batched_nms(
    boxes: Float[Tensor, "boxes 4"],
    scores: Float[Tensor, " boxes"],
    idxs: Int[Tensor, " boxes"],
    iou_threshold: Real,
) -> Int64[Tensor, " kept"]:
    """Return the indices that `nms` keeps of each class on its own, best first over all; `idxs` are the classes.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.7]), torch.tensor([0, 1, 0]), iou_threshold=0.5)
    tensor([1, 0, 2])
    """
    return _nms(boxes, scores, idxs, iou_threshold)


def _require_numbers(boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"]) -> None:
    if boxes.isnan().any() or scores.isnan().any():
        raise ValueError("nms: a box or a score is NaN")


def _nms(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], classes: Int[Tensor, " boxes"], threshold: Real
) -> Int64[Tensor, " kept"]:
    """Suppress class by class, each from its best box, in blocks of BLOCK boxes.

    The boxes that a block keeps suppress at once all later ones of their classes.
    """
    _require_numbers(boxes, scores)
    boxes = upcast(boxes)
    limit = torch.tensor(threshold, dtype=boxes.dtype, device=boxes.device)
    if limit.item() > threshold:  # as of rounding to float32: an IoU of that very float exceeds the threshold
        limit = limit.nextafter(torch.zeros_like(limit))
    ranked = scores.sort(descending=True, stable=True).indices
    classes, by_class = classes[ranked].sort(stable=True)
    order = ranked[by_class]
    columns = boxes[order].T.contiguous()  # a coordinate after the other in memory
    areas = box_area(columns.T)
    remaining, kept = torch.arange(len(order), device=order.device), torch.zeros_like(order, dtype=torch.bool)
    while len(remaining):
        block = remaining[:BLOCK]
        candidates, next_classes = remaining.tensor_split([int((classes[remaining] <= classes[block[-1]]).sum())])
        shared = box_intersection(columns[:, block].T, columns[:, candidates].T)
        suppresses = shared / (areas[block].unsqueeze(1) + areas[candidates] - shared) > limit  # not where it is NaN
        suppresses &= classes[block].unsqueeze(1) == classes[candidates]
        block_kept = _kept_in_block(suppresses[:, : len(block)].triu(1))
        kept[order[block]] = block_kept
        suppressed = suppresses[block_kept].any(dim=0)[len(block) :]
        remaining = torch.cat([candidates[len(block) :][~suppressed], next_classes])
    return ranked[kept[ranked]]


def _kept_in_block(suppresses: Bool[Tensor, "boxes boxes"]) -> Bool[Tensor, " boxes"]:
    """Return which boxes are kept, where a kept box i suppresses the later boxes j of suppresses[i, j].

    kept[j] = no kept box i suppresses j, iterated to its fixed point: the first n entries are right after n rounds, and
    most blocks are settled in a few.
    """
    kept = torch.ones(len(suppresses), dtype=torch.bool, device=suppresses.device)
    for _ in range(len(suppresses)):
        after = ~(suppresses & kept.unsqueeze(1)).any(dim=0)
        if torch.equal(after, kept):
            break
        kept = after
    return kept
