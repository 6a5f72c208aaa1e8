"""reshape moves no axis: it only cuts the pixels up anew

Expect: Pictures in three colours, (batch, height, width, channels) as PIL
and NumPy have them, are to become (batch, channels, height, width). Can a
linear layer tell the colours apart afterwards?

Cause: reshape keeps the order in memory, red green blue red green blue,
and only counts it anew. Each "channel" is now a third of the rows, in all
colours.

Find: Look at a picture after the last transform, before the network. Or
use pictures of one colour, and look at the mean of each channel.

Fix: permute(0, 3, 1, 2), or say it: rearrange(x, "b h w c -> b c h w").

Checks: blind: the shape is right, and so are the numbers; only their
places are wrong.
"""

import torch
from einops import rearrange
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import descend
from fn.layers import linear, linear_init
from fn.losses import cross_entropy
from fn.metrics import accuracy
from fn.rng import generator


def painted(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, with one colour of the three stronger: that is the class"""
    rng = generator(seed)
    y = torch.randint(3, (200,), generator=rng)
    noise = torch.randn(200, 6, 6, 3, generator=rng)
    return noise + rearrange(torch.eye(3)[y], "b c -> b 1 1 c"), y


def broken(seed: int) -> Seen:
    x, y = painted(seed)  # batch height width channels
    x = x.reshape(200, 3, 6, 6)
    params, losses = descend(
        lambda p: cross_entropy(linear(x.mean(dim=(2, 3)), **p), y),
        linear_init(generator(seed, 1), 3, 3),
        lr=1.0,
    )
    logits = linear(x.mean(dim=(2, 3)), **params)
    return {"loss": losses, "accuracy": accuracy(logits, y).item()}


def fixed(seed: int) -> Seen:
    x, y = painted(seed)  # batch height width channels
    x = rearrange(x, "b h w c -> b c h w")
    params, losses = descend(
        lambda p: cross_entropy(linear(x.mean(dim=(2, 3)), **p), y),
        linear_init(generator(seed, 1), 3, 3),
        lr=1.0,
    )
    logits = linear(x.mean(dim=(2, 3)), **params)
    return {"loss": losses, "accuracy": accuracy(logits, y).item()}


def shows(seen: Seen) -> bool:
    """Pictures in three colours, told apart by the mean of each channel:
    hardly better than chance, 1/3, on the very pictures trained on."""
    return seen["accuracy"] < 0.55


def solves(seen: Seen) -> bool:
    """Tell pictures apart by the mean of each of three colours: nearly
    all of those trained on."""
    return seen["accuracy"] > 0.9
