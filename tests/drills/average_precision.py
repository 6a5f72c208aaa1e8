"""area_under_curve recall by recall."""

import torch

from fn.detection.average_precision import RECALLS


def area_under_curve(right, left_out, wanted):
    hits = right.double().cumsum(-1)
    misses = (~(right | left_out)).double().cumsum(-1)
    precision = torch.where(hits + misses > 0, hits / (hits + misses).clamp(min=1), 0.0)
    recall = hits / wanted.clamp(min=1)[:, None]
    total = 0
    for r in RECALLS:
        beyond = recall >= r
        total = total + torch.cat(
            [
                torch.where(beyond, precision, 0.0),
                torch.zeros_like(precision[..., :1]),
                torch.zeros(*precision.shape[:2], 1),
            ],
            -1,
        ).amax(-1)
    return total / len(RECALLS)


WRONG = {
    "not the best from there on": (
        "torch.where(beyond, precision, 0.0)",
        "torch.where(beyond & (beyond.cumsum(-1) == 1), precision, 0.0)",
        "wrong",
    ),
    "11 recalls": (
        "for r in RECALLS:",
        "for r in RECALLS[::10]:",
        "total / len(RECALLS)",
        "total / 11",
        "off by a constant factor",
    ),
    "what is left out is a miss": ("(~(right | left_out))", "(~right)", "wrong"),
    "beyond, not at, a recall": ("recall >= r", "recall > r", "off by a constant factor"),
    "recall of what was found": (
        "hits / wanted.clamp(min=1)[:, None]",
        "hits / hits[..., -1:].clamp(min=1)",
        "wrong in 6 of 30 calls",
    ),
    "the sum": ("total / len(RECALLS)", "total", "factor"),
}
