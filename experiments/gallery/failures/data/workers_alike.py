"""Every worker gets a copy of the generator as it stands

Expect: A data set draws a random crop for each of 32 images from a
generator of its own; 2 workers load them, for two epochs. How many crops
differ?

Cause: The data set is copied to every worker, generator and all. Each
copy begins at the same place, so the first draw of each is the same, and
the second; and the next epoch begins with new copies, again at that place.

Find: Return the random number with the example, and count the repeats,
within an epoch and from one to the next. With num_workers=0 they go away.

Fix: Make it a function of the example: a seed from (seed, epoch, index).
With (seed, index) alone each image would keep its crop for ever.

Checks: blind: a repeated number is a number.
"""

import numpy
from experiments.gallery.failures import Seen
from fn.data.loader import START_METHOD
from fn.rng import key, uniform
from torch.utils.data import DataLoader, Dataset


class Crops(Dataset):
    def __init__(self, seed: int) -> None:
        self.rng = numpy.random.default_rng(seed)

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> float:
        return self.rng.random()


class KeyedCrops(Crops):
    def __init__(self, seed: int, epoch: int) -> None:
        self.seed, self.epoch = seed, epoch

    def __getitem__(self, index: int) -> float:
        return uniform(key(self.seed, self.epoch, index), []).item()


def load(data: Dataset) -> list[float]:
    loader = DataLoader(
        data,
        batch_size=8,
        num_workers=2,
        multiprocessing_context=START_METHOD,
    )
    return [draw for batch in loader for draw in batch.tolist()]


def broken(seed: int) -> Seen:
    crops = Crops(seed)
    draws = [load(crops) for epoch in range(2)]
    return {
        "draws in an epoch": len(draws[0]),
        "that differ": len(set(draws[0])),
        "epoch 2 repeats epoch 1": draws[0] == draws[1],
    }


def fixed(seed: int) -> Seen:
    draws = [load(KeyedCrops(seed, epoch)) for epoch in range(2)]
    return {
        "draws in an epoch": len(draws[0]),
        "that differ": len(set(draws[0])),
        "epoch 2 repeats epoch 1": draws[0] == draws[1],
    }


def shows(seen: Seen) -> bool:
    """Random variations of the images repeat: half of an epoch's are the
    other half again, and the next epoch's are those of the first."""
    halved = seen["that differ"] <= seen["draws in an epoch"] / 2
    return halved or seen["epoch 2 repeats epoch 1"]


def solves(seen: Seen) -> bool:
    """Draw a random number for each of 32 images, in each of two epochs;
    all differ."""
    differ = seen["that differ"] == seen["draws in an epoch"] == 32
    return differ and not seen["epoch 2 repeats epoch 1"]
