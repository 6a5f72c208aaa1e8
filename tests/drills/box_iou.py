"""box_iou on corners two by two."""

import torch
import torchvision

from fn.detection.boxes import box_area


def box_iou(boxes1, boxes2):
    low = torch.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    high = torch.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = box_area(boxes1)[:, None] + box_area(boxes2)[None, :] - shared
    return shared / union


def torchs(boxes1, boxes2):
    return torchvision.ops.box_iou(boxes1, boxes2)


WRONG = {
    "a negative overlap of both axes": (".clamp(min=0)", "", "wrong"),
    "what is shared counts twice": (" - shared", "", "wrong in"),
    "pair by pair": (
        "boxes1[:, None, :2], boxes2[None, :, :2]",
        "boxes1[:1, None, :2], boxes2[None, :, :2]",
        "wrong in",
    ),
    "the smaller area for the union": (
        "shared / union",
        "shared / torch.minimum(box_area(boxes1)[:, None], box_area(boxes2)[None, :])",
        "NaN where a number",
    ),
    "a pixel more": ("(high - low).clamp(min=0)", "(high - low + 1).clamp(min=0)", "wrong in"),
    "the other way round": ("shared / union", "(shared / union).T", "Type-check error"),
}
