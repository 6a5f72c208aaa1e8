"""Train a perceptron at every learning rate from every seed, all of them at once: `vmap(train_step)`.

Draws accuracy against learning rate, keeps the best model, and looks at the gradient's noise and the curvature on the
way. Checks that every model ends where it would have ended alone; `--bench` also checks how much faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from experiments.shared import cli
from experiments.shared.registry import DatasetName


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/sweep")
    """the folder for pictures, the best model and summary.json"""
    lrs: Annotated[tuple[float, ...], cli.Between(1e-12, 1e38)] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    """learning rates of AdamW, constant from first step to last"""
    seeds: cli.Count = 4
    """models per learning rate, each with weights and an order of the examples of its own"""
    hidden: cli.Sizes = (32,)
    """sizes of the hidden layers"""
    dataset: DatasetName = "digits"
    """what they learn"""
    root: cli.MaybePath = None
    """the directory of photographs, a sub-directory per class, of --dataset folder"""
    validation: Annotated[float, cli.Between(0.01, 0.9)] = 0.2
    """the share of the training examples held out to choose the best model by"""
    epochs: cli.Count = 20
    """passes over the training examples"""
    batch_size: cli.Count = 64
    """examples per update of each model"""
    bench: bool = False
    """time 32 models at once against 32 of torch.nn one after the other: a minute more"""

    def compile_pays(self) -> bool:
        return self.dataset not in ("digits", "folder") or self.epochs >= 200


class Grid(NamedTuple):
    """The learning rate and the seed of every member of the ensemble."""

    lrs: list[float]
    seeds: list[int]


def make_grid(config: Config) -> Grid:
    """Return every learning rate with every seed."""
    pairs = [(lr, seed) for lr in config.lrs for seed in cli.seeds(config, config.seeds)]
    return Grid([lr for lr, _ in pairs], [seed for _, seed in pairs])


def parse(config_type: type[Config], argv: Sequence[str]) -> Config:
    """Return the config from the flags; UsageError for flags or values that are refused."""
    config = cli.parse(config_type, argv)
    require_rising(config)
    return config


def require_rising(config: Config) -> None:
    """Raise UsageError for learning rates that do not rise."""
    if list(config.lrs) != sorted(set(config.lrs)):
        raise cli.UsageError("--lrs must rise: each differs from the others, the smallest comes first")
