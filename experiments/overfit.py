"""Overfit 32 images with a family of models: the first thing to try on any new network.

A model that cannot fit 32 images has a bug, or an optimizer that does not suit it. A detector has to find every digit
on 8 canvases, whatever --dataset the others learn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.shared import cli, show
from experiments.shared.detection_report import good_enough
from experiments.shared.registry import DETECTORS, MODELS, DatasetName, FamilyName, resolve
from experiments.shared.training_pictures import draw_losses
from fn.data.datasets import take
from fn.data.scenes import digits
from fn.detection.average_precision import summarize
from fn.detection.train import detector_step, evaluate_detections, predict
from fn.draw import Seeds
from fn.gradcheck import largest, smallest
from fn.optim import adam
from fn.train import Metrics, check_finite, classifier_step, eval_one_epoch, init_train_state, is_overfit, run_key

IMAGES, CANVASES = 32, 8
LR, DETECTOR_LR = 1e-2, 3e-3
SEEDS = 5


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
    steps: cli.Count = 300
    """at most so many steps"""
    lr: cli.MaybeRate = None
    """Adam's learning rate; 0.01, and 0.003 for detectors, unless given"""


class Run(NamedTuple):
    """One seed: the metrics of each step, and a detector's average precision at the end."""

    history: list[Metrics]
    ap: Tensor = torch.zeros(0)


def main(config: Config, device: torch.device) -> list[cli.Check]:
    """Overfit each family from five seeds; a check holds if all of them do."""
    if config.family in DETECTORS and (config.dataset != "digits" or config.root):
        raise cli.UsageError(f"--family {config.family} learns canvases of digits: it takes no --dataset and no --root")
    families = [*MODELS, *DETECTORS] if config.family == "all" else [config.family]
    classifiers, detectors = ([family for family in families if family in rows] for rows in (MODELS, DETECTORS))
    checks = []
    if classifiers:
        checks += check_classifiers(config, overfit_classifiers(config, device, classifiers))
    if detectors:
        checks += check_detectors(config, overfit_detectors(config, device, detectors))
    return checks


def overfit_classifiers(config: Config, device: torch.device, families: Sequence[str]) -> dict[str, list[Run]]:
    """Train each family on the same images, step by step, until evaluation gets all of them right."""
    dataset = cli.load(config.dataset, device, root=config.root)
    images, labels = few = take(dataset.train, IMAGES)
    runs: dict[str, list[Run]] = {family: [] for family in families}
    for family in families:
        model = cli.by_name(MODELS, family)(dataset.shape, len(dataset.classes))
        optimizer = adam(lr=LR if config.lr is None else config.lr)
        step = check_finite(cli.compiled(config, classifier_step(model, optimizer), IMAGES))
        for seed in cli.seeds(config, SEEDS):
            ts, key, history = init_train_state(model, optimizer, seed=seed, device=device), run_key(seed), []
            with show.progress(config.steps, f"{family}, seed {seed}") as advance:
                for _ in range(config.steps):
                    ts, _ = step(ts, images, labels, key=key)
                    history.append(eval_one_epoch(ts.params, ts.state, [few], apply=model.apply))
                    advance(history[-1]["loss"])
                    if is_overfit(history[-1]):
                        break
            runs[family].append(Run(history))
    return runs


def overfit_detectors(config: Config, device: torch.device, families: Sequence[str]) -> dict[str, list[Run]]:
    """Train each family on the same canvases; every tenth step, evaluate, and stop when all digits are found."""
    scenes = digits(CANVASES, 1)
    images, objects = (part.to(device) for part in scenes.train)
    runs: dict[str, list[Run]] = {family: [] for family in families}
    for family in families:
        detector = resolve(DETECTORS[family])(scenes.shape, len(scenes.classes))
        optimizer = adam(lr=DETECTOR_LR if config.lr is None else config.lr)
        step = check_finite(cli.compiled(config, detector_step(detector, optimizer), CANVASES))
        for seed in cli.seeds(config, SEEDS):
            ts, key, history = init_train_state(detector.model, optimizer, seed=seed, device=device), run_key(seed), []
            ap = torch.zeros(0)
            with show.progress(config.steps, f"{family}, seed {seed}") as advance:
                for number in range(1, config.steps + 1):
                    ts, metrics = step(ts, images, objects, key=key)
                    history.append(metrics)
                    advance(metrics["loss"])
                    if number % 10 == 0 or number == config.steps:
                        detections = predict(detector, ts.params, ts.state, images)
                        ap = evaluate_detections(detections, objects, detector.classes)
                        if good_enough(ap):
                            break
            runs[family].append(Run(history, ap))
    return runs


def check_classifiers(config: Config, runs: dict[str, list[Run]]) -> list[cli.Check]:
    """Show the steps that each family took; check the worst seed's loss and accuracy."""
    rows, checks = [], []
    for family, seeds in runs.items():
        steps, last = [len(run.history) for run in seeds], [run.history[-1] for run in seeds]
        loss, accuracy = largest(m["loss"] for m in last), smallest(m["accuracy"] for m in last)
        rows.append((family, f"{median(steps):g}", f"{max(steps)}", f"{loss:.1e}", f"{accuracy:.0%}"))
        checks += [
            cli.check(f"{family}: loss, worst of {SEEDS} seeds", loss, "<", 1e-3),
            cli.check(f"{family}: accuracy, worst of {SEEDS} seeds", accuracy, "==", 1),
        ]
    title = f"Overfitting {IMAGES} images of {config.dataset}, seeds {config.seed} to {config.seed + SEEDS - 1}"
    show.table(title, ("family", "median steps", "most steps", "worst loss", "worst accuracy"), rows)
    draw_losses(losses_of(runs), config.out / "loss.png")
    return checks


def check_detectors(config: Config, runs: dict[str, list[Run]]) -> list[cli.Check]:
    """Show the steps that each family took; check the worst seed's average precision."""
    rows, checks = [], []
    for family, seeds in runs.items():
        steps, scores = [len(run.history) for run in seeds], [summarize(run.ap) for run in seeds]
        ap50, ap = smallest(score["AP50"] for score in scores), smallest(score["AP"] for score in scores)
        rows.append((family, f"{median(steps):g}", f"{max(steps)}", f"{ap50:.3f}", f"{ap:.3f}"))
        checks += [
            cli.check(f"{family}: AP50, worst of {SEEDS} seeds", ap50, "==", 1),
            cli.check(f"{family}: AP50:95, worst of {SEEDS} seeds", ap, ">=", 0.9),
        ]
    title = f"Overfitting {CANVASES} canvases, seeds {config.seed} to {config.seed + SEEDS - 1}"
    show.table(title, ("family", "median steps", "most steps", "worst AP50", "worst AP50:95"), rows)
    draw_losses(losses_of(runs), config.out / "detectors.png")
    return checks


def losses_of(runs: dict[str, list[Run]]) -> dict[str, Seeds]:
    """Return the losses of each family, a curve per seed."""
    return {family: Seeds([[m["loss"] for m in run.history] for run in seeds]) for family, seeds in runs.items()}


if __name__ == "__main__":
    cli.run(Config, main)
