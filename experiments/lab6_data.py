"""Lab 6: how data reaches a loop, how fast, in which order; a cache that can be trusted; and what repeats a run.

A Dataset and a DataLoader beside batches gathered in one go; the classic ways to lose reproducibility.
"""

import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from experiments.shared import cli, show
from experiments.shared.registry import DatasetName
from fn import checkpoint
from fn.data.cache import cached, fingerprint
from fn.data.datasets import Split, take
from fn.data.loader import batches, epoch_order
from fn.data.transforms import random_crop
from fn.rng import fold_in
from fn.rng import key as rng_key

BATCH = 128
EXAMPLES = 5120


@dataclass(frozen=True)
class Config(cli.Config):
    out: Path = Path("runs/lab6")
    """the folder for the runs and summary.json"""
    dataset: DatasetName = "digits"
    """what is loaded; the loaders are compared on MNIST where it is there: --dataset mnist"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    warnings.filterwarnings("ignore", message="This DataLoader will create 4 worker processes")  # on purpose
    return [
        *compare_loaders(config),
        *cache_photographs(config),
        *repeat_a_run(config),
        *lose_reproducibility(config),
    ]


class Examples(Dataset):
    """What a Dataset is: a length, and an example for an index. The transform is ours, on a batch of one."""

    def __init__(self, split: Split, seed: int, epoch: int, transform: Callable) -> None:
        self.split, self.transform, self.key = split, transform, rng_key(seed, epoch)

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.split.images[index], self.split.labels[index]
        return self.transform(x[None], fold_in(self.key, index)[None])[0], y


class Usual(Examples):
    """As tutorials have it: an image of PIL's, and torchvision's transforms, which draw from the global generator."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = self.split.images[index, 0]
        picture = Image.fromarray(((pixels - pixels.min()) * 255 / (pixels.max() - pixels.min())).byte().numpy())
        return self.transform(picture), self.split.labels[index]


Loader = Callable[[], Iterable[tuple[Tensor, Tensor]]]
OURS, SAME, USUAL = "by batch", "Dataset, DataLoader, our transform", "Dataset, DataLoader, torchvision's"


def make_loaders(config: Config, split: Split) -> dict[tuple[str, int], Loader]:
    """(name, workers) -> an epoch of the same shuffled examples, each shifted at random."""
    size, order = split.images.shape[-1], epoch_order(EXAMPLES, seed=config.seed, epoch=0).tolist()
    tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    usual = Usual(split, config.seed, 0, v2.Compose([v2.RandomCrop(size, padding=2), *tensor]))
    examples = Examples(split, config.seed, 0, random_crop)
    by_example = partial(DataLoader, batch_size=BATCH, sampler=order)
    by_batch = partial(batches, split, BATCH, seed=config.seed, augment=random_crop)
    loaders: dict[tuple[str, int], Loader] = {(OURS, n): partial(by_batch, workers=n) for n in (0, 1, 4)}
    loaders |= {(SAME, n): partial(by_example, examples, num_workers=n) for n in (0, 1, 4)}
    return loaders | {(USUAL, 0): partial(by_example, usual)}


def compare_loaders(config: Config) -> list[cli.Check]:
    """By example and by batch: the same samples in the same order, and how fast; the epochs are taken in turns."""
    split = cli.load(config.dataset).train
    repeats = -(-EXAMPLES // len(split.labels))
    split = take(Split(split.images.repeat(repeats, 1, 1, 1), split.labels.repeat(repeats)), EXAMPLES)
    loaders = make_loaders(config, split)
    seconds: dict[tuple[str, int], list[float]] = {name: [] for name in loaders}
    epochs: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for _ in range(3):
        for name, loader in loaders.items():
            began = time.perf_counter()
            some = list(loader())
            seconds[name].append(time.perf_counter() - began)
            epochs[name] = torch.cat([x for x, _ in some]), torch.cat([y for _, y in some])

    base = (OURS, 0)
    times = {n: median(b / a for a, b in zip(seconds[base], seconds[n], strict=True)) for n in loaders}
    alike = {n: [torch.equal(a, b) for a, b in zip(epochs[n], epochs[base], strict=True)] for n in loaders}
    said = {True: "same", False: "others"}
    show.table(
        f"{EXAMPLES} images of {'×'.join(map(str, split.images.shape[1:]))} with a random shift, batches of {BATCH}",
        ("loader", "workers", "images/s", "time / ours", "order", "values"),
        [
            (n[0], f"{n[1]}", f"{EXAMPLES / median(seconds[n]):,.0f}", f"{times[n]:.3g}×", said[order], said[values])
            for n, (values, order) in alike.items()
        ],
    )
    return [
        cli.check(
            "loaders: epochs that differ, over 0, 1 and 4 workers",
            sum(not all(same) for name, same in alike.items() if name[0] != USUAL),
            "==",
            0,
        ),
        cli.check("loaders: times faster by batch than by example", times[SAME, 0], ">=", 20),
    ]


def cache_photographs(config: Config) -> list[cli.Check]:
    """Decode and scale a folder of pictures once; read them again; damage the entry; build it twice at once."""
    root, entries = config.out / "photographs", config.out / "cache"
    for old in entries.glob("*"):
        old.unlink()
    for i, image in enumerate(cli.load("digits").train.images[:200, 0]):
        grey = ((image - image.min()) * 255 / (image.max() - image.min())).byte().numpy()
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey).resize((400, 300), Image.Resampling.BICUBIC).convert("RGB").save(root / f"{i:03}.png")

    def timed() -> tuple[float, Tensor]:
        began = time.perf_counter()
        images = photographs(root, entries).clone()
        return time.perf_counter() - began, images

    cold, built = timed()
    warm, read = timed()
    [entry] = entries.glob("*.safetensors")
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(bytes(content))
    damaged, rebuilt = timed()
    entry.unlink()
    twins = [subprocess.Popen([sys.executable, "-c", TWIN, str(root), str(entries)]) for _ in range(2)]
    failed = sum(twin.wait() != 0 for twin in twins)
    after, shared = timed()
    show.table(
        "200 photographs of 400×300, decoded and scaled to 64×64",
        ("", "milliseconds"),
        [
            (name, f"{1e3 * t:.0f}")
            for name, t in (
                ("cold: built", cold),
                ("warm: mapped", warm),
                ("damaged: built again", damaged),
                ("warm, after two built it at once", after),
            )
        ],
    )
    return [
        cli.check(
            "cache: reads that differ from what was built",
            sum(not torch.equal(built, x) for x in (read, rebuilt, shared)),
            "==",
            0,
        ),
        cli.check("cache: of two processes building at once, those that failed", failed, "==", 0),
        cli.check("cache: files left", len(list(entries.iterdir())), "==", 1),
    ]


def decode(root: Path) -> dict[str, Tensor]:
    squares = [Image.open(path).resize((64, 64)) for path in sorted(root.glob("*.png"))]
    return {"images": torch.stack([torch.from_numpy(numpy.array(square)) for square in squares])}


def photographs(root: Path, entries: Path) -> Tensor:
    return cached(partial(decode, root), {"source": fingerprint(root, root.glob("*.png"))}, entries)["images"]


TWIN = """
import sys
from pathlib import Path
from experiments.lab6_data import photographs
photographs(*map(Path, sys.argv[1:]))
"""


def repeat_a_run(config: Config) -> list[cli.Check]:
    """The trainer, twice, in two processes, with everything random that it has."""
    outs = [config.out / name for name in ("once", "again")]
    flags = ["--epochs", "2", "--limit", "500", "--augment", "affine", "cutout", "--dropout-p", "0.2"]
    flags += ["--deterministic", "--overwrite", "--seed", str(config.seed)]
    command = [sys.executable, "-m", "experiments.train", *flags, "--out"]
    runs = [
        subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for out in outs
    ]
    failed = sum(run.wait() != 0 for run in runs)
    logs = [(out / "metrics.jsonl").read_bytes() for out in outs]
    digests = [{path.name for path in checkpoint.find(out / "checkpoints")} for out in outs]
    return [
        cli.check("deterministic: processes that failed", failed, "==", 0),
        cli.check(
            "deterministic: bytes of metrics.jsonl that differ",
            sum(a != b for a, b in zip(*logs, strict=False)) + abs(len(logs[0]) - len(logs[1])),
            "==",
            0,
        ),
        cli.check("deterministic: checkpoints whose digest differs", len(digests[0] ^ digests[1]), "==", 0),
    ]


class Noisy(Dataset):
    """An augmentation that draws from a generator which the data set holds, and each worker gets a copy of."""

    def __init__(self, seed: int) -> None:
        self.rng = numpy.random.default_rng(seed)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> float:
        return self.rng.random()


def repeated_draws(config: Config) -> tuple[float, float]:
    """The share of draws that repeat another's: of numpy's generator copied to 4 workers, and of a key per example."""
    drawn = torch.cat(list(DataLoader(Noisy(config.seed), 8, num_workers=4)))
    keys = fold_in(rng_key(config.seed, 0).expand(64), torch.arange(64))
    theirs, ours = (1 - len(set(x.tolist())) / 64 for x in (drawn, keys))
    return theirs, ours


def moved_places(config: Config) -> tuple[float, float]:
    """The share of places where two orders differ: unseeded shuffles, and ours for one (seed, epoch)."""

    def shuffle() -> Tensor:
        torch.seed()  # as a fresh process begins
        return torch.cat(list(DataLoader(range(1000), 100, shuffle=True)))  # pyright: ignore

    ours = [epoch_order(1000, seed=config.seed, epoch=2) for _ in range(2)]
    return float((shuffle() != shuffle()).float().mean()), float((ours[0] != ours[1]).float().mean())


def replays_after_resuming(config: Config) -> tuple[bool, bool]:
    """Whether epoch 3, resumed, has the order of epoch 1: of the usual loop, and of ours."""

    def usual(first: int) -> list[Tensor]:
        """A generator seeded when the process starts, an order drawn from it for every epoch that the process runs."""
        rng = torch.Generator().manual_seed(config.seed)
        return [torch.randperm(1000, generator=rng) for _ in range(first, 4)]

    whole, resumed = usual(1), usual(3)
    ours = [epoch_order(1000, seed=config.seed, epoch=epoch) for epoch in range(3)]
    return torch.equal(resumed[0], whole[0]) and not torch.equal(resumed[0], whole[2]), torch.equal(ours[2], ours[0])


def lose_reproducibility(config: Config) -> list[cli.Check]:
    """Three ways that are met in the wild, and what is done here instead."""
    (repeats, our_repeats), (moves, our_moves) = repeated_draws(config), moved_places(config)
    replays, ours_replay = replays_after_resuming(config)
    replayed = {True: "epoch 3 replays the order of epoch 1", False: "epoch 3 has an order of its own"}
    show.table(
        "Ways to lose it, and what happens where randomness is an argument",
        ("a classic", "what it does", "here"),
        [
            ("numpy's generator in 4 workers", f"{repeats:.0%} of the draws repeat", f"{our_repeats:.0%}: a key each"),
            ("shuffle without a seed", f"{moves:.1%} of the places differ", f"{our_moves:.0%}: by (seed, epoch)"),
            ("a resumed run that seeds anew", replayed[replays], replayed[ours_replay]),
        ],
    )
    return [
        cli.check("lost: draws that workers sharing numpy's generator repeat", repeats, ">=", 0.5),
        cli.check("kept: draws of ours that repeat", our_repeats, "==", 0),
        cli.check("lost: places where two unseeded orders differ", moves, ">", 0.9),
        cli.check("kept: places where two of ours differ", our_moves, "==", 0),
        cli.check("lost: the usual resumed run replays the first epoch", replays, "==", 1),
        cli.check("kept: ours replays it", ours_replay, "==", 0),
    ]


if __name__ == "__main__":
    cli.run(Config, main)
