"""decode to corners, without box_convert."""

import torch

from fn.detection.anchors import VARIANCES


def decode(offsets, anchors):
    low, high = anchors[..., :2], anchors[..., 2:]
    size = (high - low) * torch.exp(offsets[..., 2:] * VARIANCES[1])
    centre = (low + high) / 2 + offsets[..., :2] * VARIANCES[0] * (high - low)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


WRONG = {
    "variances forgotten": (" * VARIANCES[0]", "", "wrong"),
    "moved by the new size": ("* (high - low)\n    return", "* size\n    return", "wrong"),
    "centres for corners": ("[centre - size / 2, centre + size / 2]", "[centre, size]", "values differ"),
    "no exponential": (
        "torch.exp(offsets[..., 2:] * VARIANCES[1])",
        "(offsets[..., 2:] * VARIANCES[1])",
        "values differ",
    ),
    "the whole size to each side": (
        "centre - size / 2, centre + size / 2",
        "centre - size, centre + size",
        "values differ",
    ),
}
