"""The whole of Lab 6: batches by counting places, the loaders in a loop over the workers."""

from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from experiments.lab6_data import BATCH, EXAMPLES, OURS, SAME, USUAL, Config
from experiments.lab_helpers.lab6.photographs import Pictures, decode_photographs
from experiments.lab_helpers.lab6.timing import Loader
from fn.data.cache import cached, fingerprint
from fn.data.datasets import Split
from fn.data.loader import START_METHOD, Gather
from fn.data.transforms import random_crop
from fn.rng import fold_in, generator
from fn.rng import key as rng_key


def epoch_order(examples, *, seed, epoch):
    return torch.randperm(examples, generator=generator(seed, epoch))


def batches(split, batch_size, *, seed=None, epoch=0, start=0, augment=None, moves_targets=False, workers=0):
    if augment and seed is None:
        raise ValueError("batches: augment needs a seed")
    n = len(split[0])
    order = torch.arange(n) if seed is None else epoch_order(n, seed=seed, epoch=epoch)
    gather = Gather(split, augment, rng_key(0) if seed is None else rng_key(seed, epoch), moves_targets)
    parts = [order[first : first + batch_size] for first in range(start * batch_size, n, batch_size)]
    if not workers:
        for part in parts:
            yield gather[part]
        return
    options = {"num_workers": workers, "multiprocessing_context": START_METHOD, "generator": generator(0)}
    yield from DataLoader(gather, None, sampler=parts, **options)  # pyright: ignore[reportArgumentType]


class Examples(Dataset):
    def __init__(self, split, seed, epoch, transform):
        super().__init__()
        self.images, self.labels = split
        self.transform = transform
        self.epoch_key = rng_key(seed, epoch)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.moved(self.images[index], fold_in(self.epoch_key, index)), self.labels[index]

    def moved(self, image, key):
        return self.transform(image.unsqueeze(0), key.unsqueeze(0)).squeeze(0)


def make_loaders(config: Config, split: Split) -> dict[tuple[str, int], Loader]:
    order = epoch_order(EXAMPLES, seed=config.seed, epoch=0).tolist()
    crop = v2.RandomCrop(split.images.shape[-1], padding=2)
    usual = [crop, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    options = {"batch_size": BATCH, "sampler": order}
    found: dict[tuple[str, int], Loader] = {}
    for workers in (0, 1, 4):
        found[OURS, workers] = partial(batches, split, BATCH, seed=config.seed, augment=random_crop, workers=workers)
    for workers in (0, 1, 4):
        how = {"num_workers": workers, "multiprocessing_context": START_METHOD} if workers else {}
        found[SAME, workers] = partial(DataLoader, Examples(split, config.seed, 0, random_crop), **options, **how)
    found[USUAL, 0] = partial(DataLoader, Pictures(split, v2.Compose(usual)), **options)
    return found


def photographs(root, entries):
    files = sorted(root.glob("*.png"))
    made = cached(lambda: decode_photographs(root), {"source": fingerprint(root, files)}, entries)
    return made["images"]


WRONG = {
    "one key for all": (
        "fold_in(self.epoch_key, index))",
        "self.epoch_key)",
        "compare_loaders",
        "loaders: epochs that differ, over 0, 1 and 4 workers: ",
    ),
    "an order that forgets the epoch": (
        "generator=generator(seed, epoch))",
        "generator=generator(seed))",
        "lose_reproducibility",
        "kept: ours replays it: 1, not == 0",
    ),
}
