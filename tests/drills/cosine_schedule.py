"""cosine_schedule with the progress clipped first."""

import math

import torch


def cosine_schedule(step, *, lr, total_steps, min_lr=0.0):
    progress = (torch.as_tensor(step) / total_steps).clip(0, 1)
    share = 0.5 * (1 + torch.cos(progress * math.pi))
    return share * lr + (1 - share) * min_lr


WRONG = {
    "a whole wave": ("progress * math.pi", "progress * 2 * math.pi", "differ"),
    "up again after the end": (".clip(0, 1)", "", "wrong in 2 of 3 calls"),
    "upwards": ("1 + torch.cos", "1 - torch.cos", "differ"),
    "the floor ignored": ("+ (1 - share) * min_lr", "", "`min_lr=0.0`"),
    "a number of Python's": (
        "(torch.as_tensor(step) / total_steps)",
        "torch.as_tensor(float(step) / total_steps)",
        "run under vmap too",
    ),
    "one step ahead": ("torch.as_tensor(step)", "(1 + torch.as_tensor(step))", "differ"),
}
