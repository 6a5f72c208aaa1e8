"""Every worker gets a copy of the generator as it stands

Expect: A data set draws a random crop for each of 32 images from a
generator of its own; 2 workers load them. How many crops differ?

Cause: The data set is copied to every worker, generator and all. Each
copy begins at the same place, so the first draw of each is the same, and
the second.

Find: Return the random number with the example, and count the repeats.
They go away with num_workers=0.

Fix: Make it a function of the example: a seed from (seed, epoch, index).

Checks: blind: a repeated number is a number.
"""

import numpy
from torch.utils.data import DataLoader, Dataset

from experiments.failures import Seen
from fn.rng import key, uniform


class Crops(Dataset):
    def __init__(self, seed: int) -> None:
        self.rng = numpy.random.default_rng(seed)

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> float:
        return self.rng.random()


class KeyedCrops(Crops):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, index: int) -> float:
        return uniform(key(self.seed, index), []).item()


def broken(seed: int) -> Seen:
    loader = DataLoader(Crops(seed), batch_size=8, num_workers=2)
    draws = [draw for batch in loader for draw in batch.tolist()]
    return {"draws": len(draws), "that differ": len(set(draws))}


def fixed(seed: int) -> Seen:
    loader = DataLoader(KeyedCrops(seed), batch_size=8, num_workers=2)
    draws = [draw for batch in loader for draw in batch.tolist()]
    return {"draws": len(draws), "that differ": len(set(draws))}


def shows(seen: Seen) -> bool:
    """Random variations of the images repeat: half of them are the other
    half again."""
    return seen["that differ"] <= seen["draws"] / 2
