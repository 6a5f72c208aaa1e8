"""Overfit 32 images with a family of models: the first thing to try on any new network.

A model that cannot learn 32 images by heart has a bug, or an optimizer that does not suit it.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

from experiments import cli, show
from experiments.registry import MODELS, DatasetName, FamilyName
from fn import plots
from fn.data.datasets import take
from fn.optim import adam
from fn.train import overfit

IMAGES = 32


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/overfit")
    """the folder for pictures and summary.json"""
    family: FamilyName = "all"
    """one family of models, or all of them"""
    dataset: DatasetName = "digits"
    """where the images come from"""
    root: cli.MaybePath = None
    """the directory of photographs, a sub-directory per class, of --dataset folder"""
    steps: int = 300
    """at most so many steps"""
    lr: float = 1e-2
    """Adam's learning rate"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    """Five seeds per family; a check holds if every one of them gets there."""
    if config.steps < 1:
        raise cli.UsageError(f"--steps {config.steps}: at least one is needed")
    dataset = cli.load(config.dataset, device, root=config.root)
    images = take(dataset.train, IMAGES)
    rows, checks, losses = [], [], {}
    for family in MODELS if config.family == "all" else [config.family]:
        model = cli.by_name(MODELS, family)(dataset.shape, len(dataset.classes))
        step = cli.classifier_step(config, model, partial(adam, lr=config.lr), IMAGES)
        runs = []
        for seed in cli.seeds(config, 5):
            run = partial(overfit, model, images, step=step, seed=seed, steps=config.steps)
            runs.append(show.follow(run, config.steps, f"{family}, seed {seed}")[1])
        counts, last = [len(r) for r in runs], [r[-1] for r in runs]
        worst_loss, worst_accuracy = max(m["loss"] for m in last), min(m["accuracy"] for m in last)
        rows.append((family, f"{median(counts):g}", f"{max(counts)}", f"{worst_loss:.1e}", f"{worst_accuracy:.0%}"))
        checks += [
            cli.check(f"{family}: loss, worst of 5 seeds", worst_loss, "<", 1e-3),
            cli.check(f"{family}: accuracy, worst of 5 seeds", worst_accuracy, "==", 1),
        ]
        losses[family] = [m["loss"] for m in runs[0]]
    title = f"Overfitting {IMAGES} images of {config.dataset}, seeds {config.seed} to {config.seed + 4}"
    show.table(title, ("family", "median steps", "most steps", "worst loss", "worst accuracy"), rows)
    plots.save(plots.curves({"loss": losses}, log=["loss"]), config.out / "loss.png")
    return checks


if __name__ == "__main__":
    cli.run(Config, main)
