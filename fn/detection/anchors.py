"""Anchor boxes: the grid of them, their match with objects, and the offsets between the two. Liu et al. 2016, "SSD".

Each function takes one image; use `vmap` for a batch. Objects are padded to one number per image, with a mask, so that
every image has the same shapes.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fn.detection.boxes import box_convert, box_iou
from fn.domains import ImageSize, Natural, Positives, Probability, Rectangles
from fn.precision import half_in_float32

VARIANCES = (0.1, 0.2)
"""an offset of 1 moves the centre by a tenth of the anchor's size, or multiplies the size by exp(0.2)"""


def sizes_by_ratio(sides: Positives, ratios: Positives) -> list[tuple[float, float]]:
    """Return a size (width, height) for each of `sides`, √(width · height), and each of `ratios`, height / width.

    >>> sizes_by_ratio([10, 20], ratios=[1, 4])
    [(10.0, 10.0), (5.0, 20.0), (20.0, 20.0), (10.0, 40.0)]
    """
    return [(side / math.sqrt(ratio), side * math.sqrt(ratio)) for side in sides for ratio in ratios]


def anchor_grid(image_size: ImageSize, map_size: ImageSize, sizes: Rectangles) -> Float[Tensor, "anchors 4"]:
    """Return the anchors of a feature map: boxes centred on its cells, in reading order.

    A cell has an anchor of each of `sizes`, (width, height) in pixels.

    >>> anchor_grid((100, 200), (1, 2), sizes=[(20, 20)])
    tensor([[ 40.,  40.,  60.,  60.],
            [140.,  40., 160.,  60.]])
    """
    rows, columns = (
        (torch.arange(cells) + 0.5) * (pixels / cells) for pixels, cells in zip(image_size, map_size, strict=True)
    )
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    centres = rearrange(centres, "height width xy -> (height width) 1 xy").expand(-1, len(sizes), -1)
    boxes = torch.cat([centres, torch.tensor(sizes).to(centres).expand_as(centres)], dim=-1)
    return box_convert(rearrange(boxes, "cells kinds box -> (cells kinds) box"), "cxcywh", "xyxy")


def match_anchors(
    anchors: Float[Tensor, "anchors 4"],
    boxes: Float[Tensor, "objects 4"],
    present: Bool[Tensor, " objects"],
    *,
    threshold: Probability = 0.5,
) -> Int64[Tensor, " anchors"]:
    """Return the index of the object that each anchor is matched with, or -1.

    An anchor is matched with the object that it overlaps most, if their IoU is at least `threshold`. Before that, every
    object that is present takes the anchor that overlaps it most; if two want one anchor, the later object gets it. Of
    equal overlaps the first counts. An object that is not present, or overlaps no anchor, matches nothing.

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]])
    >>> boxes, present = torch.tensor([[21.0, 20, 31, 30], [0, 0, 0, 0]]), torch.tensor([True, False])
    >>> match_anchors(anchors, boxes, present)
    tensor([-1,  0, -1])
    """
    overlap = torch.where(present.unsqueeze(1), box_iou(boxes, anchors), -1.0)
    best, match = overlap.max(dim=0)
    match = torch.where(best >= threshold, match, -1)
    taken = torch.nn.functional.one_hot(overlap.argmax(dim=1), len(anchors)).bool() & (overlap > 0)
    number = torch.arange(len(boxes), device=boxes.device).unsqueeze(1)
    return torch.maximum(torch.where(taken, number, -1).amax(dim=0), torch.where(taken.any(dim=0), -1, match))


@half_in_float32("boxes", "anchors")
def encode(boxes: Float[Tensor, "*boxes 4"], anchors: Float[Tensor, "*boxes 4"]) -> Float[Tensor, "*boxes 4"]:
    """Return the offsets of boxes from their anchors, in units of VARIANCES.

    ((cx - aₓ) / a_w / v₀, (cy - a_y) / a_h / v₀, log(w / a_w) / v₁, log(h / a_h) / v₁)

    >>> anchors = torch.tensor([[10.0, 20, 30, 60]])
    >>> encode(torch.tensor([[12.0, 20, 32, 60]]), anchors)  # 2 of 20 pixels to the right
    tensor([[1., 0., 0., 0.]])
    """
    centre, size = box_convert(boxes, "xyxy", "cxcywh").split(2, dim=-1)
    anchor_centre, anchor_size = box_convert(anchors, "xyxy", "cxcywh").split(2, dim=-1)
    shift = (centre - anchor_centre) / anchor_size / VARIANCES[0]
    return torch.cat([shift, torch.log(size / anchor_size) / VARIANCES[1]], dim=-1)


@half_in_float32("offsets", "anchors")
def decode(offsets: Float[Tensor, "*boxes 4"], anchors: Float[Tensor, "*boxes 4"]) -> Float[Tensor, "*boxes 4"]:
    """Return the boxes at these offsets from the anchors: the inverse of `encode`.

    >>> anchors = torch.tensor([[10.0, 20, 30, 60]])
    >>> decode(torch.tensor([[1.0, 0, 0, 0]]), anchors)
    tensor([[12., 20., 32., 60.]])
    """
    shift, growth = offsets.split(2, dim=-1)
    anchor_centre, anchor_size = box_convert(anchors, "xyxy", "cxcywh").split(2, dim=-1)
    centre = anchor_centre + shift * VARIANCES[0] * anchor_size
    return box_convert(torch.cat([centre, anchor_size * torch.exp(growth * VARIANCES[1])], dim=-1), "cxcywh", "xyxy")


def hard_negatives(
    loss: Float[Tensor, " anchors"], positive: Bool[Tensor, " anchors"], *, ratio: Natural = 3
) -> Bool[Tensor, " anchors"]:
    """Return which negative anchors have the largest losses: `ratio` per positive anchor, `ratio` also without one.

    Of equal losses the earlier anchors count.

    >>> loss, positive = torch.tensor([9.0, 1, 3, 2, 4]), torch.tensor([True, False, False, False, False])
    >>> hard_negatives(loss, positive, ratio=2)
    tensor([False, False,  True, False,  True])
    """
    hardness = torch.where(positive, -math.inf, loss)
    rank = hardness.argsort(descending=True, stable=True).argsort()
    return (rank < ratio * positive.sum().clamp(min=1)) & ~positive
