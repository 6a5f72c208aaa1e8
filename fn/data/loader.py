"""Batches from tensors in memory: one gather per batch, no worker processes."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fn.data.datasets import Split


def batches(
    split: Split,
    batch_size: int,
    *,
    rng: torch.Generator | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the split, in an order drawn from `rng`, or in its own order without one.

    The last batch holds what is left. `augment(x, rng)` varies each batch; ValueError without an `rng` to vary it by.
    """
    if rng is None:
        if augment:
            raise ValueError("batches: augment needs an rng")
        yield from zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True)
        return
    for index in torch.randperm(len(split.labels), generator=rng).split(batch_size):
        x, y = split.images[index], split.labels[index]
        yield (augment(x, rng) if augment else x), y
