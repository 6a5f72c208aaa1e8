"""Pretrain the small backbone that Lab 4 ships with: a ResNet-8 on Fashion-MNIST at 8×8 pixels.

The network predicts the class and the orientation of an image, 10 · 4 classes in all. The orientation makes the
features describe strokes and their directions, which images of other kinds have too (Lee, Hwang and Shin 2020).
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
from fn.optim import adamw, one_cycle_schedule
from fn.pretrained import to_state_dict, write
from fn.train import (
    TrainState,
    check_finite,
    classifier_step,
    count_steps,
    eval_one_epoch,
    init_train_state,
    run_key,
)

SIZE, TURNS, WIDTHS = 8, 4, (32, 64, 128)
BATCH, LR, WEIGHT_DECAY = 128, 1e-2, 5e-2
AUGMENT = partial(
    compose, transforms=[random_horizontal_flip, partial(random_affine, degrees=10, translate=0.1, scale=(0.7, 1.2))]
)


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/pretrain")
    """the folder for the weights and summary.json"""
    epochs: cli.Count = 3
    """passes over the training images, each in all four orientations"""

    def compile_pays(self) -> bool:
        return True


def main(config: Config, device: torch.device) -> list[cli.Check]:
    dataset = cli.load("fashion_mnist", device)
    small = [shrink(split.images) for split in (dataset.train, dataset.test)]
    train_images, test_images = (normalize(images, *channel_stats(small[0])) for images in small)
    data = rotate(train_images, dataset.train.labels)
    model = resnet((1, SIZE, SIZE), 10 * TURNS, depth=8, widths=WIDTHS)
    ts = train(config, model, data, device)
    path = config.out / "resnet8_fashion_mnist.safetensors"
    write(path, to_state_dict(tree.to(ts.params, "cpu"), tree.to(ts.state, "cpu"), {}))
    return evaluate(ts, model, test_images, dataset.test.labels, path)


def train(config: Config, model: Model, split: Split, device: torch.device) -> TrainState:
    """Train with one cycle of AdamW on augmented batches."""
    total = count_steps(len(split.labels), epochs=config.epochs, batch_size=BATCH)
    optimizer = adamw(lr=partial(one_cycle_schedule, lr=LR, total_steps=total), weight_decay=WEIGHT_DECAY)
    step = check_finite(cli.compiled(config, classifier_step(model, optimizer), BATCH))
    ts, key = init_train_state(model, optimizer, seed=config.seed, device=device), run_key(config.seed)
    with show.progress(total, "Fashion-MNIST, four ways up") as advance:
        for epoch in range(config.epochs):
            for x, y in batches(split, BATCH, seed=config.seed, epoch=epoch, augment=AUGMENT):
                ts, metrics = step(ts, x, y, key=key)
                advance(metrics["loss"])
    return ts


def shrink(images: Tensor) -> Tensor:
    """Return the images at 8×8 pixels: padded to 32×32 with background, then means of 4×4 pixels."""
    return avg_pool2d(F.pad(images, (2, 2, 2, 2), value=float(images.min())), 32 // SIZE)


def rotate(images: Tensor, labels: Tensor) -> Split:
    """Return every image in four orientations, with ten classes for each orientation."""
    turns = [images.rot90(turn, (2, 3)) for turn in range(TURNS)]
    return Split(torch.cat(turns), torch.cat([labels + 10 * turn for turn in range(TURNS)]))


def evaluate(ts: TrainState, model: Model, images: Tensor, labels: Tensor, path: Path) -> list[cli.Check]:
    """Check the accuracy on the test images, and the size of the weights file."""
    of_40 = eval_one_epoch(ts.params, ts.state, batches(rotate(images, labels), 1000), apply=model.apply)["accuracy"]
    with torch.no_grad():
        logits = torch.cat([model.apply(ts.params, ts.state, x, train=False)[0] for x in images.split(1000)])
    upright = float(accuracy(logits[:, :10], labels))
    return [
        cli.check("Fashion-MNIST, held out: class and orientation, of 40", of_40, ">=", 0.7),
        cli.check("Fashion-MNIST, held out: class of upright images", upright, ">=", 0.8),
        cli.check("weights: bytes", path.stat().st_size, "<=", 2_000_000),
    ]


if __name__ == "__main__":
    cli.run(Config, main)
