"""Lab 5: object detection with anchors (SSD) and with centers (CenterNet), scored like COCO on images never seen.

`--dataset voc --root PATH` takes photographs with VOC XML.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from experiments.lab_helpers.lab5 import detection_pictures
from experiments.lab_helpers.lab5.baselines import score_baselines
from experiments.lab_helpers.lab5.detection_task import Recipe, build_detector, load_scenes, thirds
from experiments.shared import cli, detection_report, show
from experiments.shared.detection_report import FLAVORS
from fn.data.loader import batches
from fn.data.scene_transforms import compose, random_flip, random_zoom
from fn.data.scenes import SceneSet, require_valid, take_scenes
from fn.detection.average_precision import summarize
from fn.detection.train import detector_step, evaluate_detections, predict
from fn.models import Detector
from fn.optim import adam, adamw, one_cycle_schedule
from fn.train import check_finite, count_steps, init_train_state, run_key

FEW, FEW_STEPS, FEW_LR = 8, 500, 3e-3
"""the images to overfit, and with how many steps at most, at which learning rate"""


RECIPES = {
    "digits": Recipe(
        epochs={"anchor": 10, "center": 15},
        batch_size=32,
        lr=4e-3,
        augment=random_zoom,
        targets={"AP50": 0.9, "AP": 0.6},
        sizes={"all": (0, 1e10), "small": (0, 14**2), "medium": (14**2, 20**2), "large": (20**2, 1e10)},
    ),
    "voc": Recipe(
        epochs={"anchor": 20, "center": 20},
        batch_size=16,
        lr=1e-3,
        augment=partial(compose, transforms=[random_flip, partial(random_zoom, scale=(0.7, 1.4))]),
        targets={},
        sizes=None,
    ),
}


@dataclass(frozen=True)
class Config(cli.CompiledLab):
    out: Path = Path("runs/lab5")
    """the folder for pictures and summary.json"""
    flavor: Literal["anchor", "center", "both"] = "both"
    """SSD, CenterNet, or both"""
    dataset: Literal["digits", "voc"] = "digits"
    """digits on canvases, or photographs with VOC XML"""
    root: cli.MaybePath = None
    """the folder of photographs with VOC XML of --dataset voc"""
    classes: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="")] = None
    """the only ones that --dataset voc may have; all that occur unless given"""
    weights: cli.MaybePath = None
    """a SqueezeNet 1.1 for --dataset voc to start from; unless given, what lies in weights/ beside --root"""
    target_ap50: cli.MaybeShare = None
    """exit 1 if AP50 stays below; unless given 0.9 for digits, and for photographs what random boxes reach"""

    def compile_pays(self) -> bool:
        return True


def main(config: Config, device: torch.device) -> list[cli.Check]:
    scenes = load_scenes(config.dataset, config.root, config.classes, config.weights, device)
    baselines, checks = score_baselines(scenes, config.seed), []
    for flavor in FLAVORS if config.flavor == "both" else [config.flavor]:
        detector = build_detector(flavor, scenes, config.root, config.weights)
        if config.dataset == "digits":
            checks += overfit_few(config, flavor, detector, scenes)
        checks += train_and_test(config, flavor, detector, scenes, baselines)
    return checks + check_baselines(config, baselines)


def overfit_few(config: Config, flavor: str, detector: Detector, scenes: SceneSet) -> list[cli.Check]:
    """Train on a few images until every object in them is found: each part of the loss has to fall."""
    few = take_scenes(scenes.train, FEW)
    require_valid(few, detector.classes)
    optimizer = adam(lr=FEW_LR)
    step = check_finite(detector_step(detector, optimizer))
    ts = init_train_state(detector.model, optimizer, seed=config.seed, device=few.images.device)
    key = run_key(config.seed)
    history, ap = [], torch.zeros(0)
    with show.progress(FEW_STEPS, f"{flavor}: overfit {FEW} images") as advance:
        for number in range(1, FEW_STEPS + 1):
            ts, metrics = step(ts, *few, key=key)
            history.append(metrics)
            advance(metrics["loss"])
            if number % 20 == 0 or number == FEW_STEPS:
                detections = predict(detector, ts.params, ts.state, few.images)
                ap = evaluate_detections(detections, few.objects, detector.classes)
                if detection_report.good_enough(ap):
                    break
    title = f"{flavor}: {FEW} images overfitted in {len(history)} steps"
    detection_report.show_parts(title, history, config.out / f"{flavor}_overfit.png")
    return [
        cli.check(f"{flavor}, {FEW} images: AP50", summarize(ap)["AP50"], "==", 1),
        cli.check(f"{flavor}, {FEW} images: AP50:95", summarize(ap)["AP"], ">=", 0.9),
    ]


def train_and_test(
    config: Config, flavor: str, detector: Detector, scenes: SceneSet, baselines: dict[str, float]
) -> list[cli.Check]:
    """Train on all the training images; score the detections in the held-out ones."""
    began, busy = time.perf_counter(), time.process_time()
    recipe, seed = RECIPES[config.dataset], config.seed
    batch_size, epochs = recipe.batch_size, recipe.epochs[flavor]
    images = len(scenes.train.images)
    total = count_steps(images, epochs=epochs, batch_size=batch_size)
    require_valid(scenes.train, detector.classes)
    optimizer = adamw(lr=partial(one_cycle_schedule, lr=recipe.lr, total_steps=total))
    step = check_finite(cli.compiled(config, detector_step(detector, optimizer), batch_size))
    ts = init_train_state(detector.model, optimizer, seed=seed, device=scenes.train.images.device)
    key, history = run_key(seed), []
    vary = {"augment": recipe.augment, "moves_targets": True}  # the boxes move as the images do
    with show.progress(total, f"{flavor}: {images} images") as advance:
        for epoch in range(epochs):
            for x, y in batches(scenes.train, batch_size, seed=seed, epoch=epoch, **vary):
                ts, metrics = step(ts, x, y, key=key)
                history.append(metrics)
                advance(metrics["loss"])
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    show.console.print(f"{flavor}: trained in {seconds:.0f} s, with {busy:.0f} s of processor time")

    show.parameters(ts.params, f"{flavor}: the detector, trained")
    detections = predict(detector, ts.params, ts.state, scenes.test.images)
    sizes = recipe.sizes or thirds(scenes)
    ap = evaluate_detections(detections, scenes.test.objects, detector.classes, scenes.difficult, sizes=sizes)
    detection_report.show_parts(f"{flavor}: all images, {total} steps", history, config.out / f"{flavor}_training.png")
    detection_report.show_average_precision(flavor, ap, scenes, sizes)
    detection_pictures.draw_flavor(flavor, detector, ts, scenes, detections, config.out)
    scores, names = summarize(ap), {"AP50": "AP50", "AP": "AP50:95"}
    targets = {**recipe.targets, **({"AP50": config.target_ap50} if config.target_ap50 else {})}
    checks = [cli.check(f"{flavor}, held out: {names[n]}", scores[n], ">=", least) for n, least in targets.items()]
    if not targets:
        guessed = baselines["random boxes"]
        checks.append(cli.check(f"{flavor}, held out: AP50, beside random boxes'", scores["AP50"], ">", guessed))
    return checks


def check_baselines(config: Config, scores: dict[str, float]) -> list[cli.Check]:
    """Check that no detections, and random boxes, score next to nothing."""
    if config.dataset == "voc":  # where an object fills the picture, a box of its size cannot but overlap it
        show.console.print("AP50 of " + ", ".join(f"{name}: {score:.3f}" for name, score in scores.items()))
        return []
    return [cli.check(f"{name}: AP50", score, "<=", 0.05) for name, score in scores.items()]


if __name__ == "__main__":
    cli.run(Config, main)
