"""batched_nms class by class."""

import torch
import torchvision

from fn.detection.boxes import nms


def batched_nms(boxes, scores, idxs, iou_threshold):
    alive = torch.zeros(len(boxes), dtype=torch.bool)
    for c in idxs.unique():
        rows = (idxs == c).nonzero().flatten()
        alive[rows[nms(boxes[rows], scores[rows], iou_threshold)]] = True
    kept = alive.nonzero().flatten()
    return kept[scores[kept].sort(descending=True, stable=True).indices]


def torchs(boxes, scores, idxs, iou_threshold):
    return torchvision.ops.batched_nms(boxes, scores, idxs, iou_threshold)


WRONG = {
    "across classes": (
        "for c in idxs.unique():\n        rows = (idxs == c).nonzero().flatten()",
        "for _ in range(1):\n        rows = torch.arange(len(boxes))",
        "missing",
    ),
    "class after class": (
        "return kept[scores[kept].sort(descending=True, stable=True).indices]",
        "return kept[(-scores[kept]).argsort(stable=True)][idxs[kept[(-scores[kept]).argsort(stable=True)]].argsort(stable=True)]",
        "order",
    ),
    "in the order of the boxes": (
        "return kept[scores[kept].sort(descending=True, stable=True).indices]",
        "return kept",
        "order",
    ),
    "indices within the class": (
        "alive[rows[nms(boxes[rows], scores[rows], iou_threshold)]] = True",
        "alive[nms(boxes[rows], scores[rows], iou_threshold)] = True",
        "wrong",
    ),
    "the first class alone": ("idxs.unique()", "idxs.unique()[:1]", "missing"),
    "boxes moved too little": (
        "for c in idxs.unique():\n        rows = (idxs == c).nonzero().flatten()",
        "boxes = boxes + idxs[:, None].to(boxes)\n    for _ in range(1):\n        rows = torch.arange(len(boxes))",
        "wrong",
    ),
}
