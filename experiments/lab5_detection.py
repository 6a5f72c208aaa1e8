"""Lab 5: detection twice, by anchors and by centres, on the same pictures, scored as COCO does on images never seen.

`--dataset voc --data ../shared/data/raccoon` takes photographs with VOC XML.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import tyro
from torch import Tensor

from experiments.shared import cli, show
from experiments.shared import detection_report as detecting
from experiments.shared.backbones import weights_of
from experiments.shared.detection_report import FLAVORS, SURE
from experiments.shared.registry import DETECTORS, resolve
from fn.data.datasets import DatasetUnavailable
from fn.data.scene_transforms import compose, random_flip, random_zoom
from fn.data.scenes import Scenes, SceneSet, digits, take_scenes
from fn.data.voc import voc
from fn.detection.average_precision import summarize
from fn.detection.boxes import object_table
from fn.detection.train import Detections, detector_step, fit_detector, judge, overfit_detector, predict
from fn.models import Detector
from fn.models.pyramid import squeezenet_backbone
from fn.models.squeezenet import squeezenet
from fn.optim import adam
from fn.pretrained import IMAGENET_STATS
from fn.rng import generator
from fn.train import TrainState, compiled, count_steps, one_cycle_adamw

IMAGES, STEPS = 8, 500
WEIGHTS = "squeezenet1_1_onnxzoo.pt"


class Recipe(NamedTuple):
    epochs: dict[str, int]
    """of each flavour"""
    batch_size: int
    lr: float
    augment: Callable
    least: dict[str, float]
    """what average precision is asked for"""
    sizes: dict[str, tuple[float, float]]
    """areas of objects, about a third each"""


RECIPES = {
    "digits": Recipe(
        epochs={"anchor": 10, "center": 15},
        batch_size=32,
        lr=4e-3,
        augment=random_zoom,
        least={"AP50": 0.9, "AP": 0.6},
        sizes={"all": (0, 1e10), "small": (0, 14**2), "medium": (14**2, 20**2), "large": (20**2, 1e10)},
    ),
    "voc": Recipe(
        epochs={"anchor": 20, "center": 20},
        batch_size=16,
        lr=1e-3,
        augment=partial(compose, transforms=[random_flip, partial(random_zoom, scale=(0.7, 1.4))]),
        least={"AP50": 0.7},
        sizes={"all": (0, 1e10), "small": (0, 98**2), "medium": (98**2, 121**2), "large": (121**2, 1e10)},
    ),
}
OPTIONS = {"anchor": {"anchor_sizes": ((40, 60), (80, 105, 135)), "ratios": (0.8, 1.2, 1.8)}, "center": {}}
"""for photographs, whose objects are larger"""


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/lab5")
    """the folder for pictures and summary.json"""
    flavor: Literal["anchor", "center", "both"] = "both"
    """SSD, CenterNet, or both"""
    dataset: Literal["digits", "voc"] = "digits"
    """digits on canvases, or photographs with VOC XML"""
    data: cli.MaybePath = None
    """the folder with annotations/ and images/ of --dataset voc"""
    classes: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="")] = None
    """the only ones that --dataset voc may have; all that occur unless given"""
    weights: cli.MaybePath = None
    """a SqueezeNet 1.1 for --dataset voc to start from; unless given, what lies in weights/ beside --data"""

    def compile_pays(self) -> bool:
        return True


def main(config: Config, device: torch.device) -> list[cli.Check]:
    scenes = load(config, device)
    checks = []
    for flavor in FLAVORS if config.flavor == "both" else [config.flavor]:
        detector = build(config, flavor, scenes)
        if config.dataset == "digits":
            checks += learn_by_heart(config, flavor, detector, scenes)
        checks += generalise(config, flavor, detector, scenes)
    return [*checks, *know_nothing(config, scenes)]


def load(config: Config, device: torch.device) -> SceneSet:
    if config.dataset == "digits":
        for name in ("data", "classes", "weights"):
            if getattr(config, name) is not None:
                raise cli.UsageError(f"--dataset digits takes no --{name}")
        scenes = digits()
    elif config.data is None:
        raise cli.UsageError("--dataset voc needs --data, a folder with annotations/ and images/")
    else:
        try:
            scenes = voc(config.data, classes=config.classes, stats=IMAGENET_STATS)
        except DatasetUnavailable as error:
            raise cli.UsageError(str(error)) from None
        if scenes.dropped:
            show.console.print(f"{scenes.dropped} boxes dropped, as none of their area is in the image")
    train, test = (Scenes(*(x.to(device) for x in part)) for part in (scenes.train, scenes.test))
    return scenes._replace(train=train, test=test)


def build(config: Config, flavor: str, scenes: SceneSet) -> Detector:
    make = partial(resolve(DETECTORS[FLAVORS[flavor]]), scenes.shape, len(scenes.classes))
    if config.data is None:
        return make()
    path, weights = config.weights or config.data.parent / "weights" / WEIGHTS, None
    if config.weights or path.exists():
        weights, _ = weights_of(path, squeezenet(scenes.shape, 1000), "a SqueezeNet 1.1")
    show.console.print(f"{flavor}: starts from {path if weights else 'scratch'}", soft_wrap=True)
    return make(backbone=squeezenet_backbone(scenes.shape[0], weights=weights), **OPTIONS[flavor])


def learn_by_heart(config: Config, flavor: str, detector: Detector, scenes: SceneSet) -> list[cli.Check]:
    """A handful of images until every object is found, and what the parts of the loss say on the way."""
    images = take_scenes(scenes.train, IMAGES)
    run = partial(
        overfit_detector,
        detector,
        images,
        step=detector_step(detector, partial(adam, lr=3e-3)),
        seed=config.seed,
        steps=STEPS,
        enough=detecting.good_enough,
    )
    (_, ap), history = show.follow(run, STEPS, f"{flavor}: overfit {IMAGES} images")
    title = f"{flavor}: {IMAGES} images by heart in {len(history)} steps"
    detecting.show_parts(title, history, config.out / f"{flavor}_overfit.png")
    scores = summarize(ap)
    return [
        cli.check(f"{flavor}, {IMAGES} images: AP50", scores["AP50"], "==", 1),
        cli.check(f"{flavor}, {IMAGES} images: AP50:95", scores["AP"], ">=", 0.9),
    ]


def generalise(config: Config, flavor: str, detector: Detector, scenes: SceneSet) -> list[cli.Check]:
    """All the training images; average precision on the held-out ones."""
    recipe, began, busy = RECIPES[config.dataset], time.perf_counter(), time.process_time()
    epochs = recipe.epochs[flavor]
    total = count_steps(len(scenes.train.images), epochs=epochs, batch_size=recipe.batch_size)
    step = detector_step(detector, one_cycle_adamw(lr=recipe.lr, total_steps=total))
    run = partial(
        fit_detector,
        detector,
        scenes.train,
        step=compiled(step, recipe.batch_size) if config.compile else step,
        epochs=epochs,
        batch_size=recipe.batch_size,
        seed=config.seed,
        augment=recipe.augment,
    )
    ts, history = show.follow(run, total, f"{flavor}: {len(scenes.train.images)} images")
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    show.console.print(f"{flavor}: trained in {seconds:.0f} s, with {busy:.0f} s of processor time")
    detecting.show_parts(f"{flavor}: all images, {total} steps", history, config.out / f"{flavor}_training.png")
    detections = predict(detector, ts.params, ts.state, scenes.test.images)
    ap = judge(detections, scenes.test.objects, len(scenes.classes), sizes=recipe.sizes)
    show_ap(f"{flavor}: {len(scenes.test.images)} held-out images", ap, scenes, recipe.sizes)
    draw(config, flavor, detector, ts, scenes, detections)
    scores, names = summarize(ap), {"AP50": "AP50", "AP": "AP50:95"}
    checks = [
        cli.check(f"{flavor}, held out: {names[name]}", scores[name], ">=", least)
        for name, least in recipe.least.items()
    ]
    if config.dataset == "digits":
        checks.append(cli.check(f"{flavor}: seconds of training", seconds, "<=", 240))
    return checks


def show_ap(title: str, ap: Tensor, scenes: SceneSet, sizes: dict[str, tuple[float, float]]) -> None:
    """AP50, AP75 and AP50:95, of all objects, by size and by class."""
    _, labels, _ = object_table(scenes.test.objects)
    counts = labels.bincount(minlength=len(scenes.classes)).tolist()
    parts = {_band(name, *sizes[name]): ap[:, i : i + 1] for i, name in enumerate(sizes)}
    named = [f"{c} ({n} of them)" for c, n in zip(scenes.classes, counts, strict=True)]
    parts |= {name: ap[:, :1, i : i + 1] for i, name in enumerate(named)}
    scores = {name: summarize(part) for name, part in parts.items()}
    rows = [(name, *(f"{score[which]:.3f}" for which in ("AP50", "AP75", "AP"))) for name, score in scores.items()]
    show.table(title, ("objects", "AP50", "AP75", "AP50:95"), rows)


def _band(name: str, low: float, high: float) -> str:
    """The sizes from one area to another, both in square pixels, in words"""
    if low == 0:
        return name if high >= 1e10 else f"{name}, up to {high:g} px²"
    return f"{name}, from {low:g} px²" if high >= 1e10 else f"{name}, {low:g} to {high:g} px²"


def draw(
    config: Config, flavor: str, detector: Detector, ts: TrainState, scenes: SceneSet, detections: Detections
) -> None:
    """What was there and what was found, the mistakes, and what is peculiar to the flavour."""
    name, classes, out, least = FLAVORS[flavor], scenes.classes, config.out, SURE[flavor]
    title = f"{name}: held-out images, what is there and what is found with a score of {least:g} or more"
    found = partial(detecting.draw_predictions, scenes.test, detections, classes, least=least)
    found(out / f"{flavor}_found.png", title=title)
    title = f"{name}: the worst held-out images. Red: found, but of another class, badly placed, double, or of nothing"
    title += ". Orange: there, but not found"
    counted = partial(detecting.draw_mistakes, scenes.test, detections, classes, least=least)
    kinds, missed = counted(out / f"{flavor}_mistakes.png", title=title)
    there = len(object_table(scenes.test.objects)[0])
    false = ", ".join(f"{kinds[kind]} {words}" for kind, words in detecting.KINDS.items())
    show.console.print(
        f"{flavor}: at a score of {least:g}, {kinds.total()} false ({false}), {missed} of {there} objects missed"
    )
    if flavor == "anchor":
        output, _ = detector.model.apply(ts.params, ts.state, scenes.test.images[:1], train=False)
        detecting.draw_anchors(scenes.test, output["anchors"].detach(), classes, out / "anchors.png")
    else:
        detecting.draw_heat(detector, ts, scenes.test, classes, out / "heat.png")


def know_nothing(config: Config, scenes: SceneSet) -> list[cli.Check]:
    """The scores of who sees nothing anywhere, and of who sees random objects of the right sizes everywhere."""
    images, classes = len(scenes.test.images), len(scenes.classes)
    rng, (boxes, labels, _) = generator(config.seed), object_table(scenes.train.objects.cpu())
    rows = torch.randint(len(boxes), (100 * images,), generator=rng)
    size = boxes[rows, 2:] - boxes[rows, :2]
    corner = torch.rand(len(rows), 2, generator=rng) * (torch.tensor(scenes.shape[:0:-1]) - size)
    guesses = Detections(
        torch.cat([corner, corner + size], dim=1),
        torch.rand(len(rows), generator=rng),
        labels[rows],
        torch.arange(images).repeat_interleave(100),
    )
    nothing = Detections(*(column[:0] for column in guesses))
    scores = {
        name: summarize(judge(some, scenes.test.objects, classes))["AP50"]
        for name, some in (("all background", nothing), ("random boxes", guesses))
    }
    if config.dataset == "voc":  # where an object fills the picture, a box of its size cannot but overlap it
        show.console.print("AP50 of " + ", ".join(f"{name}: {score:.3f}" for name, score in scores.items()))
        return []
    return [cli.check(f"{name}: AP50", score, "<=", 0.05) for name, score in scores.items()]


if __name__ == "__main__":
    cli.run(Config, main)
