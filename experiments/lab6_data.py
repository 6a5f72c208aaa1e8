"""Lab 6: how data reaches the loop: order and speed of two kinds of loader, a cache, and what makes a run repeatable.

A torch Dataset and DataLoader beside batches gathered at once; three common ways to lose reproducibility, each written
out beside its cure in lab_helpers/lab6/mistakes.py.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from experiments.lab_helpers.lab6 import mistakes
from experiments.lab_helpers.lab6.photographs import Pictures, decode_photographs, write_photographs
from experiments.lab_helpers.lab6.timing import Loader, show_loaders, time_loaders, timed
from experiments.shared import cli, show
from experiments.shared.registry import RootlessName
from experiments.train.processes import run_at_once
from fn import checkpoint
from fn.data.cache import cached, fingerprint
from fn.data.datasets import Split, take
from fn.data.loader import START_METHOD, batches, epoch_order
from fn.data.transforms import random_crop
from fn.rng import fold_in
from fn.rng import key as rng_key

BATCH = 128
EXAMPLES = 5120


@dataclass(frozen=True)
class Config(cli.Lab):
    out: Path = Path("runs/lab6")
    """the folder for the runs and summary.json"""
    dataset: RootlessName = "digits"
    """what is loaded; the loaders are compared on MNIST where it is there: --dataset mnist"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    warnings.filterwarnings("ignore", message="This DataLoader will create 4 worker processes")  # on purpose
    return compare_loaders(config) + cache_photographs(config) + repeat_a_run(config) + lose_reproducibility(config)


class Examples(Dataset):
    """A torch Dataset: a length, and an example for an index. The transform is ours, on a batch of one."""

    def __init__(self, split: Split, seed: int, epoch: int, transform: Callable) -> None:
        self.split, self.transform, self.key = split, transform, rng_key(seed, epoch)

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = self.split.images[index], self.split.labels[index]
        return self.transform(x[None], fold_in(self.key, index)[None])[0], y


OURS, SAME, USUAL = "by batch", "Dataset, DataLoader, our transform", "Dataset, DataLoader, torchvision's"


def make_loaders(config: Config, split: Split) -> dict[tuple[str, int], Loader]:
    """Return a loader by (name, workers): an epoch of the same shuffled examples, each shifted at random."""
    size, order = split.images.shape[-1], epoch_order(EXAMPLES, seed=config.seed, epoch=0).tolist()
    tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
    pictures = Pictures(split, v2.Compose([v2.RandomCrop(size, padding=2), *tensor]))
    examples = Examples(split, config.seed, 0, random_crop)
    by_example = partial(DataLoader, batch_size=BATCH, sampler=order)
    by_batch = partial(batches, split, BATCH, seed=config.seed, augment=random_crop)
    loaders: dict[tuple[str, int], Loader] = {(OURS, n): partial(by_batch, workers=n) for n in (0, 1, 4)}
    loaders[SAME, 0] = partial(by_example, examples)
    start = {"multiprocessing_context": START_METHOD}
    loaders |= {(SAME, n): partial(by_example, examples, num_workers=n, **start) for n in (1, 4)}
    return loaders | {(USUAL, 0): partial(by_example, pictures)}


def compare_loaders(config: Config) -> list[cli.Check]:
    """Load by example and by batch: the same samples in the same order, and how fast; the epochs are taken in turns."""
    split = cli.load(config.dataset).train
    repeats = -(-EXAMPLES // len(split.labels))
    split = take(Split(split.images.repeat(repeats, 1, 1, 1), split.labels.repeat(repeats)), EXAMPLES)
    loaders = make_loaders(config, split)
    seconds, busy, epochs = time_loaders(loaders, rounds=3)
    base = (OURS, 0)
    times = {n: median(b / a for a, b in zip(seconds[base], seconds[n], strict=True)) for n in loaders}
    alike = {n: [torch.equal(a, b) for a, b in zip(epochs[n], epochs[base], strict=True)] for n in loaders}
    title = f"{EXAMPLES} images of {'×'.join(map(str, split.images.shape[1:]))} with a random shift, batches of {BATCH}"
    show_loaders(title, {n: EXAMPLES / median(s) for n, s in seconds.items()}, times, alike)
    different = sum(not all(same) for name, same in alike.items() if name[0] != USUAL)
    return [
        cli.check("loaders: epochs that differ, over 0, 1 and 4 workers", different, "==", 0),
        cli.check("loaders: processor time by example / by batch", min(busy[SAME, 0]) / min(busy[base]), ">=", 20),
    ]


def photographs(root: Path, entries: Path) -> Tensor:
    """Return the decoded photographs below `root`, from the cache in `entries` unless a file has changed."""
    source = fingerprint(root, root.glob("*.png"))
    return cached(partial(decode_photographs, root), {"source": source}, entries)["images"]


def cache_photographs(config: Config) -> list[cli.Check]:
    """Decode photographs once, read them from the cache, damage the entry, then build it in two processes at once."""
    root, entries = config.out / "photographs", config.out / "cache"
    for old in entries.glob("*"):
        old.unlink()
    write_photographs(root, 200)
    read = partial(timed, lambda: photographs(root, entries).clone())
    reads = {"cold: built": read(), "warm: mapped": read()}
    [entry] = entries.glob("*.safetensors")
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)
    reads["damaged: built again"] = read()
    entry.unlink()
    code = "import sys, pathlib, experiments.lab6_data as lab; lab.photographs(*map(pathlib.Path, sys.argv[1:]))"
    failed = sum(map(bool, run_at_once(*[["-c", code, str(root), str(entries)]] * 2)))
    reads["warm, after two built it at once"] = read()
    rows = [(name, f"{1e3 * seconds:.0f}") for name, (seconds, _) in reads.items()]
    show.table("200 photographs of 400×300, decoded and scaled to 64×64", ("", "milliseconds"), rows)
    built, *later = (images for _, images in reads.values())
    different = sum(not torch.equal(built, images) for images in later)
    return [
        cli.check("cache: reads that differ from what was built", different, "==", 0),
        cli.check("cache: of two processes building at once, those that failed", failed, "==", 0),
        cli.check("cache: files left", len(list(entries.iterdir())), "==", 1),
    ]


def repeat_a_run(config: Config) -> list[cli.Check]:
    """Train twice, in two processes, with everything random that the trainer has: logs and checkpoints must agree."""
    outs = [config.out / name for name in ("once", "again")]
    flags = ["--epochs", "2", "--limit", "500", "--augment", "affine", "cutout", "--dropout-p", "0.2"]
    flags += ["--deterministic", "--overwrite", "--seed", str(config.seed)]
    failed = sum(map(bool, run_at_once(*(["-m", "experiments.train", *flags, "--out", str(out)] for out in outs))))
    once, again = ((out / "metrics.jsonl").read_bytes() for out in outs)
    different = sum(a != b for a, b in zip(once, again, strict=False)) + abs(len(once) - len(again))
    digests = [{path.name for path in checkpoint.find(out / "checkpoints")} for out in outs]
    return [
        cli.check("deterministic: processes that failed", failed, "==", 0),
        cli.check("deterministic: bytes of metrics.jsonl that differ", different, "==", 0),
        cli.check("deterministic: checkpoints whose digest differs", len(digests[0] ^ digests[1]), "==", 0),
    ]


def lose_reproducibility(config: Config) -> list[cli.Check]:
    """Show three common mistakes, each beside the same thing with randomness as an argument."""
    repeats, our_repeats = mistakes.repeated_draws(config.seed)
    moves, our_moves = mistakes.moved_places(config.seed)
    replays, ours_replay = mistakes.replayed_epochs(config.seed)
    replayed = {True: "epoch 3 replays the order of epoch 1", False: "epoch 3 has an order of its own"}
    rows = [
        ("numpy's generator in 4 workers", f"{repeats:.0%} of the draws repeat", f"{our_repeats:.0%}: a key each"),
        ("shuffle without a seed", f"{moves:.1%} of the places differ", f"{our_moves:.0%}: by (seed, epoch)"),
        ("a resumed run that seeds anew", replayed[replays], replayed[ours_replay]),
    ]
    title = "Three ways to lose reproducibility, and the same with randomness as an argument"
    show.table(title, ("mistake", "what it does", "here"), rows)
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
