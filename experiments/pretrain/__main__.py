"""Pretrain the small backbone that Lab 4 ships with: a ResNet-8 on Fashion-MNIST at 8×8 pixels.

It tells the ten classes apart and which way up a picture is, four ways: with the second question the features are of
strokes and their directions, which other pictures have too (Lee, Hwang and Shin 2020).
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.shared import cli, show
from fn import tree
from fn.conv import avg_pool2d
from fn.data.datasets import Split
from fn.data.loader import batches
from fn.data.transforms import channel_stats, compose, normalize, random_affine, random_horizontal_flip
from fn.metrics import accuracy
from fn.models import Model
from fn.models.resnet import resnet
from fn.pretrained import to_state_dict, write
from fn.train import TrainState, count_steps, eval_one_epoch, fit, one_cycle_adamw

SIZE, TURNS, WIDTHS, BATCH = 8, 4, (32, 64, 128), 128
AUGMENT = partial(
    compose, transforms=[random_horizontal_flip, partial(random_affine, degrees=10, translate=0.1, scale=(0.7, 1.2))]
)


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/pretrain")
    """the folder for the weights and summary.json"""
    epochs: int = 3
    """passes over the training images, each in all four orientations"""

    def compile_pays(self) -> bool:
        return True


def main(config: Config, device: torch.device) -> list[cli.Check]:
    if config.epochs < 1:
        raise cli.UsageError(f"--epochs {config.epochs}: at least one is needed")
    dataset = cli.load("fashion_mnist", device)
    small = [shrunk(split.images) for split in (dataset.train, dataset.test)]
    train, test = (normalize(images, *channel_stats(small[0])) for images in small)
    data = turned(train, dataset.train.labels)
    model = resnet((1, SIZE, SIZE), 10 * TURNS, depth=8, widths=WIDTHS)
    total = count_steps(len(data.labels), epochs=config.epochs, batch_size=BATCH)
    optimizer = one_cycle_adamw(lr=1e-2, total_steps=total, weight_decay=5e-2)
    step = cli.classifier_step(config, model, optimizer, BATCH)
    run = partial(
        fit, model, data, epochs=config.epochs, batch_size=BATCH, step=step, seed=config.seed, augment=AUGMENT
    )
    ts, _ = show.follow(run, total, "Fashion-MNIST, four ways up")
    path = config.out / "resnet8_fashion_mnist.safetensors"
    write(path, to_state_dict(tree.to(ts.params, "cpu"), tree.to(ts.state, "cpu"), {}))
    return judge(ts, model, test, dataset.test.labels, path)


def shrunk(images: Tensor) -> Tensor:
    """Means of 4×4 pixels of the image on a background of 32×32"""
    return avg_pool2d(F.pad(images, (2, 2, 2, 2), value=float(images.min())), 32 // SIZE)


def turned(images: Tensor, labels: Tensor) -> Split:
    """Every image in four orientations, each of which makes ten classes of its own."""
    turns = [images.rot90(turn, (2, 3)) for turn in range(TURNS)]
    return Split(torch.cat(turns), torch.cat([labels + 10 * turn for turn in range(TURNS)]))


def judge(ts: TrainState, model: Model, images: Tensor, labels: Tensor, path: Path) -> list[cli.Check]:
    forty = eval_one_epoch(ts.params, ts.state, batches(turned(images, labels), 1000), apply=model.apply)["accuracy"]
    with torch.no_grad():
        logits = torch.cat([model.apply(ts.params, ts.state, x, train=False)[0] for x in images.split(1000)])
    return [
        cli.check("Fashion-MNIST, held out: class and orientation, of 40", forty, ">=", 0.7),
        cli.check(
            "Fashion-MNIST, held out: class of upright images", float(accuracy(logits[:, :10], labels)), ">=", 0.8
        ),
        cli.check("weights: bytes", path.stat().st_size, "<=", 2_000_000),
    ]


if __name__ == "__main__":
    cli.run(Config, main)
