"""Three common ways to lose reproducibility, each measured beside the same thing with randomness as an argument."""

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fn.data.loader import START_METHOD, epoch_order
from fn.rng import fold_in
from fn.rng import key as rng_key


class Noisy(Dataset):
    """Draws from a generator that the data set holds: each worker process gets a copy of it."""

    def __init__(self, seed: int) -> None:
        self.rng = numpy.random.default_rng(seed)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> float:
        return self.rng.random()


def repeated_draws(seed: int) -> tuple[float, float]:
    """Return the share of draws that repeat another's.

    Of numpy's generator copied to 4 workers, and of a key per example.
    """
    noise = torch.cat(list(DataLoader(Noisy(seed), 8, num_workers=4, multiprocessing_context=START_METHOD)))
    keys = fold_in(rng_key(seed, 0).expand(64), torch.arange(64))
    return 1 - len(set(noise.tolist())) / 64, 1 - len(set(keys.tolist())) / 64


def moved_places(seed: int) -> tuple[float, float]:
    """Return the share of places where two orders differ.

    Of unseeded shuffles, and of `epoch_order` for one (seed, epoch).
    """
    shuffles = []
    for _ in range(2):
        torch.seed()  # as a fresh process begins
        shuffles.append(torch.cat(list(DataLoader(range(1000), 100, shuffle=True))))  # pyright: ignore
    orders = [epoch_order(1000, seed=seed, epoch=2) for _ in range(2)]
    return float((shuffles[0] != shuffles[1]).float().mean()), float((orders[0] != orders[1]).float().mean())


def replayed_epochs(seed: int) -> tuple[bool, bool]:
    """Return whether epoch 3, resumed, has the order of epoch 1.

    Of a generator seeded at the start, and of `epoch_order`.
    """

    def usual(first: int) -> list[Tensor]:
        """Return the orders of the epochs from `first` to 3 that one process trains."""
        rng = torch.Generator().manual_seed(seed)
        return [torch.randperm(1000, generator=rng) for _ in range(first, 4)]

    whole, resumed = usual(1), usual(3)
    orders = [epoch_order(1000, seed=seed, epoch=epoch) for epoch in range(3)]
    replays = torch.equal(resumed[0], whole[0]) and not torch.equal(resumed[0], whole[2])
    return replays, torch.equal(orders[2], orders[0])
