"""Overfit 32 images with a family of models: the first thing to try on any new network.

A model that cannot learn 32 images by heart has a bug, or an optimizer that does not suit it. A detector has to find
every digit on 8 canvases, whatever --dataset the others learn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

from experiments.shared import cli, show
from experiments.shared import detection_report as detecting
from experiments.shared.registry import DETECTORS, MODELS, DatasetName, FamilyName, resolve
from fn import draw
from fn.data.datasets import take
from fn.data.scenes import Scenes, digits
from fn.detection.average_precision import summarize
from fn.detection.train import detector_step, overfit_detector
from fn.optim import adam
from fn.train import compiled, overfit

IMAGES, CANVASES = 32, 8
LR, DETECTOR_LR = 1e-2, 3e-3


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
    lr: cli.MaybeFloat = None
    """Adam's learning rate; 0.01, and 0.003 for detectors, unless given"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    """Five seeds per family; a check holds if every one of them gets there."""
    if config.steps < 1:
        raise cli.UsageError(f"--steps {config.steps}: at least one is needed")
    if config.family in DETECTORS and (config.dataset != "digits" or config.root):
        raise cli.UsageError(f"--family {config.family} learns canvases of digits: it takes no --dataset and no --root")
    every = [*MODELS, *DETECTORS] if config.family == "all" else [config.family]
    families = [family for family in every if family in MODELS], [family for family in every if family in DETECTORS]
    checks = classifiers(config, device, families[0]) if families[0] else []
    return checks + (detectors(config, device, families[1]) if families[1] else [])


def classifiers(config: Config, device: torch.device, families: Sequence[str]) -> list[cli.Check]:
    dataset = cli.load(config.dataset, device, root=config.root)
    images = take(dataset.train, IMAGES)
    rows, checks, losses = [], [], {}
    for family in families:
        model = cli.by_name(MODELS, family)(dataset.shape, len(dataset.classes))
        step = cli.classifier_step(config, model, partial(adam, lr=config.lr or LR), IMAGES)
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
    draw.save(draw.curves({"loss": losses}, log=["loss"]), config.out / "loss.png")
    return checks


def detectors(config: Config, device: torch.device, families: Sequence[str]) -> list[cli.Check]:
    """Judged by average precision, every tenth step."""
    scenes = digits(CANVASES, 1)
    canvases = Scenes(*(x.to(device) for x in scenes.train))
    rows, checks, losses = [], [], {}
    for family in families:
        detector = resolve(DETECTORS[family])(scenes.shape, len(scenes.classes))
        step = detector_step(detector, partial(adam, lr=config.lr or DETECTOR_LR))
        step = compiled(step, CANVASES) if config.compile else step
        learn = partial(overfit_detector, detector, canvases, step=step, steps=config.steps)
        learn = partial(learn, enough=detecting.good_enough, every=10)
        runs = [show.follow(partial(learn, seed=s), config.steps, f"{family}, seed {s}") for s in cli.seeds(config, 5)]
        counts, scores = [len(history) for _, history in runs], [summarize(ap) for (_, ap), _ in runs]
        worst = {name: min(score[name] for score in scores) for name in ("AP50", "AP")}
        rows.append((family, f"{median(counts):g}", f"{max(counts)}", *(f"{value:.3f}" for value in worst.values())))
        checks += [
            cli.check(f"{family}: AP50, worst of 5 seeds", worst["AP50"], "==", 1),
            cli.check(f"{family}: AP50:95, worst of 5 seeds", worst["AP"], ">=", 0.9),
        ]
        losses[family] = [m["loss"] for m in runs[0][1]]
    title = f"Overfitting {CANVASES} canvases, seeds {config.seed} to {config.seed + 4}"
    show.table(title, ("family", "median steps", "most steps", "worst AP50", "worst AP50:95"), rows)
    draw.save(draw.curves({"loss": losses}, log=["loss"]), config.out / "detectors.png")
    return checks


if __name__ == "__main__":
    cli.run(Config, main)
