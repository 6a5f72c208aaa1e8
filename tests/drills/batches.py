"""batches by counting places."""

import torch

from fn.data.loader import Gather, epoch_order
from fn.rng import key as rng_key


def batches(split, batch_size, *, seed=None, epoch=0, start=0, augment=None, moves_targets=False, workers=0):
    if augment and seed is None:
        raise ValueError("batches: augment needs a seed")
    n = len(split[0])
    order = torch.arange(n) if seed is None else epoch_order(n, seed=seed, epoch=epoch)
    gather = Gather(split, augment, rng_key(0) if seed is None else rng_key(seed, epoch), moves_targets)
    for first in range(start * batch_size, n, batch_size):
        yield gather[order[first : first + batch_size]]


WRONG = {
    "the last batch dropped": (
        "range(start * batch_size, n, batch_size)",
        "range(start * batch_size, n - batch_size + 1, batch_size)",
        "parts",
    ),
    "one order for every epoch": ("seed=seed, epoch=epoch)", "seed=seed, epoch=0)", "wrong"),
    "start counts examples": ("range(start * batch_size,", "range(start,", "`start`"),
    "shuffled without a seed": (
        "torch.arange(n) if seed is None",
        "torch.randperm(n) if seed is None",
        "without `seed`",
    ),
    "never shuffled": ("epoch_order(n, seed=seed, epoch=epoch)", "torch.arange(n)", "wrong"),
    "one key for every epoch": (
        "else rng_key(seed, epoch)",
        "else rng_key(seed)",
        "every example has a key of its own",
    ),
    "varied without a seed": ("if augment and seed is None:", "if False:", "refused"),
    "with replacement": (
        "order = torch.arange(n) if seed is None else epoch_order(n, seed=seed, epoch=epoch)",
        "order = torch.arange(n) if seed is None else epoch_order(n, seed=seed, epoch=epoch) // 2",
        "wrong",
    ),
}
