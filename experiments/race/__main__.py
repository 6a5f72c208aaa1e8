"""How soon are 99 % of MNIST's test images read? Our CNN, against the recipe of pytorch/examples' mnist/main.py.

Theirs, as published: two convolutions of 32 and 64 channels, dropout, two linear layers; Adadelta at 1.0, times 0.7 an
epoch; batches of 64, each image through torchvision's ToTensor and Normalize. Ours: three convolutions of 16, 32 and 64
channels with batch norm and early pooling, one cycle of AdamW within a single epoch, batches gathered from memory. Both
are judged after each epoch. The clock counts that too, and starts when the files have been read.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

from experiments.shared import cli, show
from fn.data.datasets import Dataset, data_root
from fn.data.loader import batches
from fn.models.cnn import cnn
from fn.train import count_steps, eval_one_epoch, fit, one_cycle_adamw

GOAL = 0.99
BATCH = 64


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/race")
    """the folder for summary.json"""
    seeds: int = 5
    """how often ours runs"""
    their_seeds: int = 1
    """how often theirs does, which takes minutes"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    data = cli.load("mnist", device)
    mine = {seed: _race(partial(ours, config, data), seed) for seed in cli.seeds(config, config.seeds)}
    other = {seed: _race(partial(theirs, device), seed) for seed in cli.seeds(config, config.their_seeds)}
    rows = [
        (name, f"{seed}", ", ".join(f"{accuracy:.2%} after {s:.0f} s" for s, accuracy in epochs))
        for name, runs in (("ours", mine), ("theirs", other))
        for seed, epochs in runs.items()
    ]
    show.table("Accuracy on the test set after each epoch, until it is 99 %", ("", "seed", "epochs"), rows)
    slowest, soonest = max(epochs[-1][0] for epochs in mine.values()), min(epochs[-1][0] for epochs in other.values())
    return [
        cli.check("ours: seeds below 99 %", sum(epochs[-1][1] < GOAL for epochs in mine.values()), "==", 0),
        cli.check("times sooner: their soonest to our slowest", soonest / slowest, ">=", 5),
    ]


def _race(epochs: Callable[[int], Iterator[float]], seed: int) -> list[tuple[float, float]]:
    """(seconds, accuracy) after each epoch, until the goal is reached or the epochs are over."""
    began, reached = time.perf_counter(), []
    for accuracy in epochs(seed):
        reached.append((time.perf_counter() - began, accuracy))
        show.log.print(f"seed {seed}: {accuracy:.2%} after {reached[-1][0]:.0f} s")
        if accuracy >= GOAL:
            break
    return reached


def ours(config: Config, data: Dataset, seed: int) -> Iterator[float]:
    model = cnn(data.shape, 10, widths=(16, 32, 64))
    total = count_steps(len(data.train.labels), epochs=1, batch_size=BATCH)
    step = cli.classifier_step(config, model, one_cycle_adamw(lr=1e-2, total_steps=total), BATCH)
    run = partial(fit, model, data.train, step=step, epochs=1, batch_size=BATCH, seed=seed)
    ts, _ = show.follow(run, total, f"ours, seed {seed}")
    yield eval_one_epoch(ts.params, ts.state, batches(data.test, 1000), apply=model.apply)["accuracy"]


def theirs(device: torch.device, seed: int, most: int = 14) -> Iterator[float]:
    torch.manual_seed(seed)
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train, test = (MNIST(data_root(), train=part, transform=prepare) for part in (True, False))
    convolutions = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]
    head = [nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
    module = nn.Sequential(*convolutions, *head).to(device)
    optimizer = torch.optim.Adadelta(module.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)
    loader = DataLoader(train, BATCH)
    for epoch in range(most):
        with show.progress(len(loader), f"theirs, seed {seed}, epoch {epoch + 1}") as advance:
            module.train()
            for x, y in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(module(x.to(device)), y.to(device))
                loss.backward()
                optimizer.step()
                advance(loss.item())
        schedule.step()
        module.eval()
        with torch.no_grad():
            right = sum(
                (module(x.to(device)).argmax(1) == y.to(device)).sum().item() for x, y in DataLoader(test, 1000)
            )
        yield right / len(test)


if __name__ == "__main__":
    cli.run(Config, main)
