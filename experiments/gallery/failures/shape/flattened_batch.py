"""view(-1, n) with a wrong n cuts the examples up

Expect: The images are now 12×12, not 8×8, and the head still flattens to
16·4·4. What goes wrong, and in which line?

Cause: -1 is whatever makes the sizes fit, so a wrong number of features
is paid for by the batch: 32 examples of 576 became 72 rows of 256.

Find: The error comes from the loss, the bug stands some lines before:
follow the first axis from layer to layer until it is no longer the batch.

Fix: Say what stays, not what is left: flatten(1), or rearrange(x, "batch
... -> batch (...)"). Then the next layer names the size that is off.

Checks: caught by fn.losses.cross_entropy: "batch" is bound twice. Not by
the layers before it, for which any number of rows is a batch.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import message
from fn.layers import linear, linear_init
from fn.losses import cross_entropy
from fn.rng import generator
from torch import nn


def broken(seed: int) -> Seen:
    torch.manual_seed(seed)
    conv = nn.Conv2d(1, 16, 3, stride=2, padding=1)
    head = nn.Linear(16 * 4 * 4, 10)
    x, y = torch.randn(32, 1, 12, 12), torch.randint(10, (32,))
    h = conv(x).relu().view(-1, 16 * 4 * 4)
    loss = nn.CrossEntropyLoss()
    return {"rows": len(h), "error": message(lambda: loss(head(h), y))}


def fixed(seed: int) -> Seen:
    torch.manual_seed(seed)
    conv = nn.Conv2d(1, 16, 3, stride=2, padding=1)
    head = nn.Linear(16 * 6 * 6, 10)
    x, y = torch.randn(32, 1, 12, 12), torch.randint(10, (32,))
    h = conv(x).relu().flatten(1)
    loss = nn.CrossEntropyLoss()
    return {"rows": len(h), "error": message(lambda: loss(head(h), y))}


def shows(seen: Seen) -> bool:
    """32 images go in, and the loss complains of another number of
    predictions than targets."""
    return seen["rows"] != 32 and "batch_size" in seen["error"]


def solves(seen: Seen) -> bool:
    """Give a prediction for each of 32 images, and their loss, without an
    error."""
    return seen["rows"] == 32 and seen["error"] == "no error"


def checked(seed: int) -> None:
    h = torch.randn(32, 16, 6, 6).view(-1, 16 * 4 * 4)
    logits = linear(h, **linear_init(generator(seed), 16 * 4 * 4, 10))
    cross_entropy(logits, torch.zeros(32, dtype=torch.int64))
