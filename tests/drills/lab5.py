"""The whole of Lab 5: each function as in its drill."""

import torch

from fn.detection.anchors import VARIANCES
from fn.detection.average_precision import RECALLS
from fn.detection.boxes import box_area, nms


def box_iou(boxes1, boxes2):
    low = torch.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    high = torch.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = box_area(boxes1)[:, None] + box_area(boxes2)[None, :] - shared
    return shared / union


def batched_nms(boxes, scores, idxs, iou_threshold):
    alive = torch.zeros(len(boxes), dtype=torch.bool)
    for c in idxs.unique():
        rows = (idxs == c).nonzero().flatten()
        alive[rows[nms(boxes[rows], scores[rows], iou_threshold)]] = True
    kept = alive.nonzero().flatten()
    return kept[scores[kept].sort(descending=True, stable=True).indices]


def encode(boxes, anchors):
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    moved = (boxes[..., 2:] + boxes[..., :2] - anchors[..., 2:] - anchors[..., :2]) / 2
    return torch.cat([moved / anchor_size / VARIANCES[0], (size / anchor_size).log() / VARIANCES[1]], -1)


def decode(offsets, anchors):
    low, high = anchors[..., :2], anchors[..., 2:]
    size = (high - low) * torch.exp(offsets[..., 2:] * VARIANCES[1])
    centre = (low + high) / 2 + offsets[..., :2] * VARIANCES[0] * (high - low)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def match_anchors(anchors, boxes, present, *, threshold=0.5):
    overlap = box_iou(boxes, anchors).masked_fill(~present[:, None], -1.0)
    best, number = overlap.argmax(dim=0), torch.arange(len(boxes))
    match = torch.where(overlap.amax(dim=0) >= threshold, best, -1)
    wants = torch.arange(len(anchors))[None, :] == overlap.argmax(dim=1)[:, None]
    wants = wants & present[:, None] & (overlap > 0)
    last = torch.where(wants, number[:, None], -1).amax(dim=0)
    return torch.where(last >= 0, last, match)


def area_under_curve(right, left_out, wanted):
    hits = right.double().cumsum(-1)
    misses = (~(right | left_out)).double().cumsum(-1)
    precision = torch.where(hits + misses > 0, hits / (hits + misses).clamp(min=1), 0.0)
    recall, total = hits / wanted.clamp(min=1)[:, None], 0
    nothing = torch.zeros(*precision.shape[:2], 1)
    for r in RECALLS:
        total = total + torch.cat([torch.where(recall >= r, precision, 0.0), nothing], -1).amax(-1)
    return total / len(RECALLS)


WRONG = {
    "torchvision's own": (
        "    low = torch.maximum(",
        "    from torchvision.ops import box_iou as ready\n\n    return ready(boxes1, boxes2)\n    low = torch.maximum(",
        "",
        "this calls torchvision's own `box_iou`",
    ),
    "precision 1 where a recall is not reached": (
        "torch.zeros(*precision.shape[:2], 1)",
        "torch.ones(*precision.shape[:2], 1)",
        "check_baselines",
        "all background: AP50: 1, not <= 0.05",
    ),
}
