"""match_anchors with the second rule as a product of masks."""

import torch

from fn.detection.boxes import box_iou


def match_anchors(anchors, boxes, present, *, threshold=0.5):
    overlap = box_iou(boxes, anchors).masked_fill(~present[:, None], -1.0)
    best = overlap.argmax(dim=0)
    enough = overlap.amax(dim=0) >= threshold
    match = torch.where(enough, best, -1)
    number = torch.arange(len(boxes))
    wants = torch.arange(len(anchors))[None, :] == overlap.argmax(dim=1)[:, None]
    wants = wants & present[:, None] & (overlap > 0)
    last = torch.where(wants, number[:, None], -1).amax(dim=0)
    return torch.where(last >= 0, last, match)


WRONG = {
    "objects without an anchor": ("torch.where(last >= 0, last, match)", "match", "wrong"),
    "only the best of each object": ("torch.where(last >= 0, last, match)", "last", "wrong"),
    "above the threshold, not at it": (">= threshold", "> threshold + 0.05", "wrong"),
    "absent objects match": (
        ".masked_fill(~present[:, None], -1.0)",
        "",
        " & present[:, None] & (overlap > 0)",
        "",
        "wrong",
    ),
    "an object that overlaps none takes the first": (" & (overlap > 0)", "", "wrong"),
    "the earlier object has it": (
        "torch.where(wants, number[:, None], -1).amax(dim=0)",
        "torch.where(wants.any(0), wants.long().argmax(dim=0), -1)",
        "wrong",
    ),
    "the first rule first": ("torch.where(last >= 0, last, match)", "torch.where(match >= 0, match, last)", "wrong"),
}
