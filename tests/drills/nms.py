"""nms as a loop over what is left."""

import torch
import torchvision

from fn.detection.boxes import box_iou


def nms(boxes, scores, iou_threshold):
    if boxes.isnan().any() or scores.isnan().any():
        raise ValueError("a NaN is neither better nor worse")
    order = scores.sort(descending=True, stable=True).indices
    overlap = box_iou(boxes, boxes).double() > iou_threshold
    kept = []
    while len(order):
        best = order[0]
        kept.append(int(best))
        rest = order[1:]
        order = rest[~overlap[best, rest]]
    return torch.tensor(kept, dtype=torch.int64)


def torchs(boxes, scores, iou_threshold):
    if boxes.isnan().any() or scores.isnan().any():  # torchvision's takes them
        raise ValueError
    return torchvision.ops.nms(boxes, scores.to(boxes.dtype), iou_threshold)


WRONG = {
    "by our nms_naive": (
        "    order = scores",
        "    from fn.detection.boxes import nms_naive\n\n    return nms_naive(boxes, scores, iou_threshold)\n    order = scores",
        "this calls `fn.detection.boxes.nms_naive`",
    ),
    "a score that is NaN": (
        "boxes.isnan().any() or scores.isnan().any():\n        raise ValueError(",
        "boxes.isnan().any():\n        raise ValueError(",
        "this is to be refused",
    ),
    "what is struck out strikes too": (
        "        order = rest[~overlap[best, rest]]\n    return torch.tensor(kept, dtype=torch.int64)",
        "        order = rest\n    kept = [k for i, k in enumerate(kept) if not overlap[k, kept[:i]].any()]\n    return torch.tensor(kept, dtype=torch.int64)",
        "missing",
    ),
    "worst first": ("descending=True, ", "", "indices"),
    "at the threshold too": (
        "box_iou(boxes, boxes).double() > iou_threshold",
        "box_iou(boxes, boxes).double() >= iou_threshold",
        "missing",
    ),
    "in the order of the boxes": (
        "torch.tensor(kept, dtype=torch.int64)",
        "torch.tensor(sorted(kept), dtype=torch.int64)",
        "order",
    ),
    "ranks, not indices": ("kept.append(int(best))", "kept.append(len(kept))", "indices"),
    "the others are kept": ("rest[~overlap[best, rest]]", "rest[overlap[best, rest]]", "indices"),
}
