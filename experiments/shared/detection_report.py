"""What Lab 5 and `overfit` share: detectors by flavour, what the parts of their losses say, and the pictures."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from experiments.shared import show
from fn import draw
from fn.data.scenes import Scenes
from fn.detection.anchors import match_anchors
from fn.detection.boxes import box_iou, unpack_objects
from fn.detection.train import Detections
from fn.draw import Drawn
from fn.models import Detector
from fn.models.centernet import SIZE_WEIGHT
from fn.train import Metrics, TrainState

FLAVORS = {"anchor": "ssd", "center": "centernet"}
PARTS = {
    "class": "cross-entropy of the matched anchors and of three times as many of the background, always the hardest: "
    "as anchors get easy, others take their place",
    "box": "how far the matched anchors still are from their objects, in tenths of their size and in logarithms; it "
    "needs no class",
    "center": "heat at the centres against heat elsewhere: the only part that tells classes apart",
    "size": f"{SIZE_WEIGHT:g} of the error of width and height, in cells: at {SIZE_WEIGHT / 2:g} they are off by half "
    "a cell together",
    "offset": "where in its cell a centre lies: to guess the middle costs 0.5, what is below that has been learned",
}
"""of the loss, what each says"""
KINDS = {"class": "of another class", "place": "badly placed", "double": "found twice", "nothing": "of nothing"}
"""of false detections"""
SURE = {"anchor": 0.5, "center": 0.3}
"""a detection with less is not drawn; centres are less sure of themselves at the same average precision"""


def good_enough(ap: Tensor) -> bool:
    """All objects found at an IoU of 0.5, and nine tenths of them over all thresholds."""
    return bool(ap[0, 0].nanmean() >= 1) and bool(ap[:, 0].nanmean() >= 0.9)


def show_parts(title: str, history: Sequence[Metrics], path: Path) -> None:
    """The loss in parts: a table, a sentence on each, and the curves."""
    parts = [name for name in history[0] if name in PARTS]
    stages = {"first step": 0, "a tenth": len(history) // 10, "half": len(history) // 2, "last": len(history) - 1}
    rows = [(part, *(f"{history[i][part]:.3f}" for i in stages.values())) for part in parts]
    show.table(title, ("part of the loss", *stages), rows)
    for part in parts:
        begins, ends = (metrics[part] / metrics["loss"] for metrics in (history[0], history[-1]))
        share = f"{begins:.0%} of the loss at first, {ends:.0%} at last"
        show.console.print(f"{part}: {PARTS[part]}. It is {share}.", soft_wrap=True)
    panels = {"loss": {"sum": [m["loss"] for m in history]} | {part: [m[part] for m in history] for part in parts}}
    draw.save(draw.curves(panels, log=["loss"]), path)


def draw_predictions(
    scenes: Scenes,
    detections: Detections,
    classes: Sequence[str],
    path: Path,
    *,
    least: float,
    title: str,
    columns: int = 6,
) -> None:
    """The first images that hold an object: above what is there, below what was found, with scores."""
    chosen = (scenes.objects[..., 4] >= 0).any(dim=1).nonzero().squeeze(1)[:columns].tolist()
    there = [[_object(row, classes) for row in _present(scenes.objects[i])] for i in chosen]
    found = [[_detection(detections, n, classes, "tab:blue") for n in _sure(detections, i, least)] for i in chosen]
    titles = ["there"] * len(chosen) + ["found"] * len(chosen)
    images = scenes.images[chosen].repeat(2, 1, 1, 1)
    draw.save(draw.boxes(images, there + found, titles, columns=len(chosen), title=title), path)


def _present(objects: Tensor) -> list[list[float]]:
    return objects[objects[:, 4] >= 0].tolist()


def _object(row: Sequence[float], classes: Sequence[str], colour: str = "tab:green") -> Drawn:
    return Drawn(row[:4], classes[int(row[4])], colour)


def _detection(detections: Detections, n: int, classes: Sequence[str], colour: str, *, dashed: bool = False) -> Drawn:
    text = f"{classes[int(detections.labels[n])]} {float(detections.scores[n]):.2f}"
    return Drawn(detections.boxes[n].tolist(), text, colour, dashed)


def _sure(detections: Detections, image: int, least: float) -> list[int]:
    """The rows of one image with a score of at least so much"""
    return ((detections.images == image) & (detections.scores >= least)).nonzero().squeeze(1).tolist()


def mistakes(objects: Tensor, detections: Detections, image: int, least: float) -> tuple[dict[int, str], list[int]]:
    """({row of a detection that is false: of which of KINDS}, rows of objects that none finds), of the sure detections.

    Best first, each finds the object of its class that it overlaps most of those left, by an IoU of 0.5.
    """
    rows, (boxes, labels, present) = _sure(detections, image, least), unpack_objects(objects)
    left, wrong = present.nonzero().squeeze(1).tolist(), {}
    for n in sorted(rows, key=lambda n: -float(detections.scores[n])):
        overlap = torch.where(present, box_iou(detections.boxes[n][None], boxes)[0], 0.0)
        same = labels == detections.labels[n]
        fits = [o for o in left if same[o] and overlap[o] >= 0.5]
        if fits:
            left.remove(max(fits, key=lambda o: float(overlap[o])))
        else:
            wrong[n] = _kind(overlap, same)
    return wrong, left


def _kind(overlap: Tensor, same: Tensor) -> str:
    """Why a detection that overlaps the objects so, some of them of its class, has found none"""
    if (overlap >= 0.5).any():
        return "double" if (same & (overlap >= 0.5)).any() else "class"
    return "place" if (overlap >= 0.1).any() else "nothing"


def draw_mistakes(
    scenes: Scenes,
    detections: Detections,
    classes: Sequence[str],
    path: Path,
    *,
    least: float,
    title: str,
    columns: int = 6,
) -> tuple[Counter[str], int]:
    """The images with the most mistakes, below what is there; (false ones of each kind, misses) in all of them."""
    found = {i: mistakes(objects, detections, i, least) for i, objects in enumerate(scenes.objects.cpu())}
    worst = sorted(found, key=lambda i: -sum(map(len, found[i])))[: 2 * columns]
    columns = min(columns, len(worst))
    worst = worst[: len(worst) // columns * columns]  # so that each stands below what is there
    order, drawn, titles = [], [], []
    for start in range(0, len(worst), columns):
        chosen = worst[start : start + columns]
        order += chosen + chosen
        drawn += [[_object(row, classes) for row in _present(scenes.objects[i])] for i in chosen]
        drawn += [_drawn_mistakes(scenes.objects[i], detections, found[i], classes) for i in chosen]
        titles += ["there"] * len(chosen)
        titles += [f"{len(found[i][0])} false, {len(found[i][1])} missed" for i in chosen]
    draw.save(draw.boxes(scenes.images[order], drawn, titles, columns=columns, title=title), path)
    kinds = Counter(kind for wrong, _ in found.values() for kind in wrong.values())
    return kinds, sum(len(missed) for _, missed in found.values())


def _drawn_mistakes(
    objects: Tensor, detections: Detections, found: tuple[dict[int, str], list[int]], classes: Sequence[str]
) -> list[Drawn]:
    wrong, missed = found
    false = [_detection(detections, n, classes, "tab:red", dashed=True) for n in wrong]
    named = [one._replace(text=f"{one.text} {kind}") for one, kind in zip(false, wrong.values(), strict=True)]
    return named + [_object(objects[o].tolist(), classes, "tab:orange") for o in missed]


def draw_anchors(scenes: Scenes, anchors: Tensor, classes: Sequence[str], path: Path, *, columns: int = 4) -> None:
    """One object each of the first images that have any, and the anchors that stand for it, ten at most."""
    chosen = (scenes.objects[..., 4] >= 0).any(dim=1).nonzero().squeeze(1)[:columns].tolist()
    drawn, titles = [], []
    for i in chosen:
        boxes, _, present = unpack_objects(scenes.objects[i])
        o = int(present.nonzero()[0])
        matched = (match_anchors(anchors, boxes, present) == o).nonzero().squeeze(1)
        best = matched[box_iou(boxes[o : o + 1], anchors[matched])[0].argsort(descending=True)[:10]].tolist()
        drawn.append([Drawn(anchors[a].tolist(), "", "tab:blue", dashed=True) for a in best])
        drawn[-1].append(_object(scenes.objects[i, o].tolist(), classes))
        shown = f", the best {len(best)} drawn" if len(best) < len(matched) else ""
        titles.append(f"{len(matched)} {'anchor' if len(matched) == 1 else 'anchors'}{shown}")
    title = f"Green: an object. Dashed: its anchors of {len(anchors):,}, of an IoU of 0.5 or more, or else the best"
    draw.save(draw.boxes(scenes.images[chosen], drawn, titles, columns=columns, title=title), path)


@torch.no_grad()
def draw_heat(detector: Detector, ts: TrainState, scenes: Scenes, classes: Sequence[str], path: Path) -> None:
    """The heat of the classes in the first image that has two of them, on its own scale of 0 to 1."""
    kinds = [sorted({int(row[4]) for row in _present(objects)}) for objects in scenes.objects]
    most = min(2, max(map(len, kinds)))
    i = next(i for i, some in enumerate(kinds) if len(some) >= most)
    output, _ = detector.model.apply(ts.params, ts.state, scenes.images[i : i + 1], train=False)
    heat = output["heat"][0, kinds[i]].sigmoid()
    titles = ["image", *(f"heat of {classes[c]}" for c in kinds[i])]
    draw.save(draw.heat_over(scenes.images[i], heat, titles), path)
