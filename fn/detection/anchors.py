"""Anchor boxes: where they lie, which object each stands for, how far it is from it. Liu et al. 2016, "SSD".

For one image each: `vmap` is for many. Objects come padded to one number per image, with a mask, so that every image
has the same shapes.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fn.detection.boxes import box_convert, box_iou

VARIANCES = (0.1, 0.2)
"""what an offset of 1 is: a tenth of the anchor's size, a change of that size by a factor of exp(0.2)"""


def anchor_grid(
    image_size: Sequence[int], map_size: Sequence[int], sizes: Sequence[float], ratios: Sequence[float]
) -> Float[Tensor, "anchors 4"]:
    """Boxes about the middle of every cell of a feature map, cells in reading order.

    A cell has one for each ratio, height / width, of each size, √(width · height) in pixels.
    """
    rows, columns = (
        (torch.arange(cells) + 0.5) * (pixels / cells) for pixels, cells in zip(image_size, map_size, strict=True)
    )
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    extents = torch.tensor([(s / math.sqrt(r), s * math.sqrt(r)) for s in sizes for r in ratios])
    centres = rearrange(centres, "height width xy -> (height width) 1 xy").expand(-1, len(extents), -1)
    boxes = torch.cat([centres, extents.expand_as(centres)], dim=-1)
    return box_convert(rearrange(boxes, "cells kinds box -> (cells kinds) box"), "cxcywh", "xyxy")


def match_anchors(
    anchors: Float[Tensor, "anchors 4"],
    boxes: Float[Tensor, "objects 4"],
    present: Bool[Tensor, " objects"],
    *,
    threshold: float = 0.5,
) -> Int64[Tensor, " anchors"]:
    """The object that each anchor stands for, or -1: the one it overlaps most, if its IoU is at least `threshold`.

    Every object that is present first takes the anchor that overlaps it most; where two want one anchor, the later
    object has it. Of equal overlaps the first counts. What is not present, or overlaps no anchor, matches nothing.
    Of many images it is asked under vmap.
    """
    overlap = torch.where(present.unsqueeze(1), box_iou(boxes, anchors), -1.0)
    best, match = overlap.max(dim=0)
    match = torch.where(best >= threshold, match, -1)
    theirs = torch.nn.functional.one_hot(overlap.argmax(dim=1), len(anchors)).bool() & (overlap > 0)
    number = torch.arange(len(boxes), device=boxes.device).unsqueeze(1)
    return torch.maximum(torch.where(theirs, number, -1).amax(dim=0), torch.where(theirs.any(dim=0), -1, match))


def encode(boxes: Float[Tensor, "*boxes 4"], anchors: Float[Tensor, "*boxes 4"]) -> Float[Tensor, "*boxes 4"]:
    """((cx - aₓ) / a_w, (cy - a_y) / a_h, log(w / a_w), log(h / a_h)) over the VARIANCES"""
    centre, size = box_convert(boxes, "xyxy", "cxcywh").split(2, dim=-1)
    anchor_centre, anchor_size = box_convert(anchors, "xyxy", "cxcywh").split(2, dim=-1)
    shift = (centre - anchor_centre) / anchor_size / VARIANCES[0]
    return torch.cat([shift, torch.log(size / anchor_size) / VARIANCES[1]], dim=-1)


def decode(offsets: Float[Tensor, "*boxes 4"], anchors: Float[Tensor, "*boxes 4"]) -> Float[Tensor, "*boxes 4"]:
    """The boxes whose `encode` gives these offsets"""
    shift, growth = offsets.split(2, dim=-1)
    anchor_centre, anchor_size = box_convert(anchors, "xyxy", "cxcywh").split(2, dim=-1)
    centre = anchor_centre + shift * VARIANCES[0] * anchor_size
    return box_convert(torch.cat([centre, anchor_size * torch.exp(growth * VARIANCES[1])], dim=-1), "cxcywh", "xyxy")


def hard_negatives(
    loss: Float[Tensor, " anchors"], positive: Bool[Tensor, " anchors"], *, ratio: int = 3
) -> Bool[Tensor, " anchors"]:
    """The anchors of background with the largest losses: `ratio` for every positive one, and for none as for one.

    Of equal losses the earlier anchors count.
    """
    hardness = torch.where(positive, -math.inf, loss)
    rank = hardness.argsort(descending=True, stable=True).argsort()
    return (rank < ratio * positive.sum().clamp(min=1)) & ~positive
