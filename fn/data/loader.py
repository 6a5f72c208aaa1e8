"""Batches from tensors in memory, or images on the disk: one gather per batch, augmented all at once.

Batch `i` of an epoch is a function of (seed, epoch, i) alone. Any process can prepare it, and a loop can start at any
batch of any epoch.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from jaxtyping import Int, Int64
from torch import Tensor
from torch.utils.data import DataLoader

from fn.data.processes import START_METHOD
from fn.data.stored import Images, read
from fn.domains import Count, Integer, Natural, Ordinal
from fn.rng import fold_in, generator
from fn.rng import key as rng_key


def epoch_order(examples: Natural, *, seed: Integer, epoch: Ordinal) -> Int64[Tensor, " examples"]:
    """Return a random permutation of the examples, a function of (seed, epoch)."""
    return torch.randperm(examples, generator=generator(seed, epoch))


@dataclass(frozen=True)
class Gather:
    """A data set for torch's DataLoader whose index is a batch of indices."""

    split: tuple[Images, Tensor]
    augment: Callable | None
    key: Int64[Tensor, ""]
    moves_targets: bool

    def __getitem__(self, index: Int[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        x, y = (read(part[index]) for part in self.split)
        if self.augment:
            keys = fold_in(self.key.expand(len(index)), index).to(x.device)
            return self.augment(x, y, keys) if self.moves_targets else (self.augment(x, keys), y)
        return x, y


def batches(
    split: tuple[Images, Tensor],
    batch_size: Count,
    *,
    seed: Integer | None = None,
    epoch: Ordinal = 0,
    start: Ordinal = 0,
    augment: Callable | None = None,
    moves_targets: bool = False,
    workers: Natural = 0,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield the batches of one epoch from batch `start` on, shuffled if there is a seed; the last one may be short.

    `augment(x, key)` changes each batch, with a key per image; with `moves_targets` it is augment(x, y, key) -> (x, y).
    ValueError for `augment` without a seed. `workers` processes prepare batches ahead; they change no value.
    """
    if seed is None:
        if augment:
            raise ValueError("batches: augment needs a seed")
        order, key = torch.arange(len(split[0])), rng_key(0)
    else:
        order, key = epoch_order(len(split[0]), seed=seed, epoch=epoch), rng_key(seed, epoch)
    gather, indices = Gather(split, augment, key, moves_targets), order.split(batch_size)[start:]
    if workers:
        aside = generator(0)  # without it, the workers' seeds are drawn from torch's global generator
        options: Any = {"num_workers": workers, "multiprocessing_context": START_METHOD, "generator": aside}
        yield from DataLoader(gather, None, sampler=indices, **options)  # pyright: ignore
    else:
        yield from map(gather.__getitem__, indices)


def endless(split: tuple[Tensor, Tensor], batch_size: Count, *, seed: Integer) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of epoch after epoch, for a loop that counts steps."""
    for epoch in count():
        yield from batches(split, batch_size, seed=seed, epoch=epoch)
