"""encode from corners, without box_convert."""

import torch

from fn.detection.anchors import VARIANCES


def encode(boxes, anchors):
    size, anchor_size = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    moved = (boxes[..., 2:] + boxes[..., :2] - anchors[..., 2:] - anchors[..., :2]) / 2
    return torch.cat([moved / anchor_size / VARIANCES[0], (size / anchor_size).log() / VARIANCES[1]], -1)


WRONG = {
    "variances forgotten": ("/ VARIANCES[0]", "", "/ VARIANCES[1]", "", "wrong"),
    "in pixels": ("moved / anchor_size /", "moved /", "wrong"),
    "corners for centres": (
        "(boxes[..., 2:] + boxes[..., :2] - anchors[..., 2:] - anchors[..., :2]) / 2",
        "boxes[..., :2] - anchors[..., :2]",
        "wrong",
    ),
    "no logarithm": (".log()", "", "wrong"),
    "the ratio upside down": ("(size / anchor_size).log()", "(anchor_size / size).log()", "sign"),
    "variances swapped": (
        "VARIANCES[0]",
        "VARIANCES[1]",
        "anchor_size).log() / VARIANCES[1]",
        "anchor_size).log() / VARIANCES[0]",
        "wrong",
    ),
}
