"""Bytes wrap around: 0 - 128 is 128, so black is white

Expect: Pixels are bytes from 0 to 255; 128 is taken off, and the rest is
divided by 128. From where to where do they go?

Cause: A Python number takes the tensor's dtype, and uint8 has no room
below 0. Only the division that follows makes floats, too late.

Find: Look at the least and the greatest value of what goes in. No value
below 0 after taking off a middle is the sign.

Fix: .float() first, then arithmetic. v2.ToDtype(torch.float32, scale=True)
makes [0, 1] of bytes, from where v2.Normalize goes on.

Checks: caught by fn.data.transforms.normalize: it does this arithmetic,
for Float alone. Written out as here, no function of ours sees the bytes:
the division has made floats of them.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import (
    descend,
    digits,
    mlp,
    perceptron,
)
from fn.data.transforms import normalize
from fn.losses import cross_entropy
from fn.metrics import accuracy


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    """Least 0, greatest 255"""
    return ((x - x.min()) / (x.max() - x.min()) * 255).byte()


def broken(seed: int) -> Seen:
    train, test = digits()
    x, held_out = as_bytes(train.images), as_bytes(test.images)
    x, held_out = (x - 128) / 128, (held_out - 128) / 128
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, x), train.labels),
        perceptron(seed),
        lr=0.1,
    )
    score = accuracy(mlp(params, held_out), test.labels)
    return {
        "least": x.min().item(),
        "greatest": x.max().item(),
        "loss": losses,
        "accuracy, held out": score.item(),
    }


def fixed(seed: int) -> Seen:
    train, test = digits()
    x, held_out = as_bytes(train.images), as_bytes(test.images)
    x, held_out = (x.float() - 128) / 128, (held_out.float() - 128) / 128
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, x), train.labels),
        perceptron(seed),
        lr=0.1,
    )
    score = accuracy(mlp(params, held_out), test.labels)
    return {
        "least": x.min().item(),
        "greatest": x.max().item(),
        "loss": losses,
        "accuracy, held out": score.item(),
    }


def shows(seen: Seen) -> bool:
    """Pixels from 0 to 255, less 128, then divided by 128: none of them is
    below 0, and digits are hard to read."""
    return seen["least"] >= 0 and seen["accuracy, held out"] < 0.75


def solves(seen: Seen) -> bool:
    """Bring pixels from 0 … 255 to -1 … 1, and learn to read digits."""
    return seen["least"] < -0.9 and seen["accuracy, held out"] > 0.75


def checked(seed: int) -> None:
    x = as_bytes(digits()[0].images)
    normalize(x, torch.tensor([128.0]), torch.tensor([128.0]))
