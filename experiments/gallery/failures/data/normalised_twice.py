"""What is already standardised is standardised again

Expect: Training is done on standardised images. At evaluation the mean is
taken off and the deviation divided by, again. How well are digits read?

Cause: Two places feel responsible: the data set and the script. Taking
5 off what is already centred and dividing by 6 moves every pixel to the
same dull value.

Find: Mean and standard deviation of a batch, at the door of the model:
(0, 1) in training, and in evaluation too.

Fix: One place. Here only fn.data.datasets standardises.

Checks: blind: normalize takes any pixels, and cannot tell raw ones.
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

RAW_STATS = (
    torch.tensor([4.9]),
    torch.tensor([6.0]),
)  # of pixels from 0 to 16


def broken(seed: int) -> Seen:
    train, test = digits()
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, train.images), train.labels),
        perceptron(seed),
        lr=0.3,
    )
    images = normalize(test.images, *RAW_STATS)
    return {
        "loss": losses,
        "mean, evaluation": images.mean().item(),
        "accuracy, held out": accuracy(
            mlp(params, images), test.labels
        ).item(),
    }


def fixed(seed: int) -> Seen:
    train, test = digits()
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, train.images), train.labels),
        perceptron(seed),
        lr=0.3,
    )
    images = test.images
    return {
        "loss": losses,
        "mean, evaluation": images.mean().item(),
        "accuracy, held out": accuracy(
            mlp(params, images), test.labels
        ).item(),
    }


def shows(seen: Seen) -> bool:
    """Training goes well, held-out digits are read badly; and the pixels
    of training and evaluation do not have the same mean."""
    far = abs(seen["mean, evaluation"]) > 0.5
    return (
        far and seen["loss"][-1] < 0.3 and seen["accuracy, held out"] < 0.6
    )


def solves(seen: Seen) -> bool:
    """Learn to read digits, and read the held-out ones as well as those."""
    return seen["loss"][-1] < 0.3 and seen["accuracy, held out"] > 0.75
