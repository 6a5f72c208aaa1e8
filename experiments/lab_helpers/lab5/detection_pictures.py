"""The pictures of Lab 5: detections and mistakes on the images, the anchors of an object, heat maps."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from experiments.shared import show
from experiments.shared.detection_report import FLAVORS
from fn import draw
from fn.data.scenes import Scenes, SceneSet
from fn.detection.anchors import match_anchors
from fn.detection.boxes import box_iou, object_table, unpack_objects
from fn.detection.train import Detections
from fn.draw import Drawn
from fn.models import Detector
from fn.train import TrainState

KINDS = {"class": "of another class", "place": "badly placed", "double": "found twice", "nothing": "of nothing"}
"""the kinds of false detections"""
SCORE_THRESHOLDS = {"anchor": 0.5, "center": 0.3}
"""a detection with a lower score is not drawn; scores of centers are lower at the same average precision"""


@show.picture
def draw_flavor(
    flavor: str, detector: Detector, ts: TrainState, scenes: SceneSet, detections: Detections, out: Path
) -> None:
    """Draw the detections and the mistakes in the held-out images, and the anchors or the heat; print the mistakes."""
    name, classes, threshold = FLAVORS[flavor], scenes.classes, SCORE_THRESHOLDS[flavor]
    title = f"{name}: the worst held-out images. Red: detections of another class, badly placed, double, or of nothing"
    title, path = f"{title}. Orange: missed objects", out / f"{flavor}_mistakes.png"
    kinds, missed = draw_mistakes(scenes.test, detections, classes, path, score_threshold=threshold, title=title)
    total = len(object_table(scenes.test.objects)[0])
    title = f"{name} finds {total - missed:,} of the {total:,} held-out objects, with {kinds.total()} false detections"
    title, path = f"{title}: above the objects, below what it finds", out / f"{flavor}_found.png"
    draw_predictions(scenes.test, detections, classes, path, score_threshold=threshold, title=title)
    false = ", ".join(f"{kinds[kind]} {words}" for kind, words in KINDS.items())
    show.console.print(
        f"{flavor}: at a score of {threshold:g}, {kinds.total()} false ({false}), {missed} of {total} objects missed"
    )
    if flavor == "anchor":
        output, _ = detector.model.apply(ts.params, ts.state, scenes.test.images[:1], train=False)
        draw_anchors(scenes.test, output["anchors"].detach(), classes, out / "anchors.png")
    else:
        draw_heat(detector, ts, scenes.test, classes, out / "heat.png")


@show.picture
def draw_predictions(
    scenes: Scenes,
    detections: Detections,
    classes: Sequence[str],
    path: Path,
    *,
    score_threshold: float,
    title: str,
    columns: int = 6,
) -> None:
    """Draw the first images with objects: the objects above, below them the detections with their scores."""
    chosen = (scenes.objects[..., 4] >= 0).any(dim=1).nonzero().squeeze(1)[:columns].tolist()
    true = [[_object(row, classes) for row in _present(scenes.objects[i])] for i in chosen]
    rows = [_above(detections, i, score_threshold) for i in chosen]
    found = [[_detection(detections, n, classes, "detection") for n in image] for image in rows]
    titles = ["objects"] * len(chosen) + ["detections"] * len(chosen)
    images = scenes.images[chosen].repeat(2, 1, 1, 1)
    show.save(draw.boxes(images, true + found, titles, columns=len(chosen), title=title), path)


def _present(objects: Tensor) -> list[list[float]]:
    return objects[objects[:, 4] >= 0].tolist()


def _object(row: Sequence[float], classes: Sequence[str], colour: str = "object") -> Drawn:
    return Drawn(row[:4], classes[int(row[4])], colour)


def _detection(detections: Detections, n: int, classes: Sequence[str], colour: str, *, dashed: bool = False) -> Drawn:
    text = f"{classes[int(detections.labels[n])]} {float(detections.scores[n]):.2f}"
    return Drawn(detections.boxes[n].tolist(), text, colour, dashed)


def _above(detections: Detections, image: int, score_threshold: float) -> list[int]:
    """Return the rows of the detections in one image whose score reaches the threshold."""
    return ((detections.images == image) & (detections.scores >= score_threshold)).nonzero().squeeze(1).tolist()


def mistakes(
    objects: Tensor, detections: Detections, image: int, score_threshold: float
) -> tuple[dict[int, str], list[int]]:
    """Return ({row of a false detection: its kind}, rows of the missed objects), for detections above the threshold.

    Highest score first, each detection finds the object of its class, not yet found, that it overlaps most, by an IoU
    of 0.5 or more.
    """
    rows, (boxes, labels, present) = _above(detections, image, score_threshold), unpack_objects(objects)
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
    """Name the kind of a false detection, from its overlap with each object, and which of them are of its class."""
    if (overlap >= 0.5).any():
        return "double" if (same & (overlap >= 0.5)).any() else "class"
    return "place" if (overlap >= 0.1).any() else "nothing"


def draw_mistakes(
    scenes: Scenes,
    detections: Detections,
    classes: Sequence[str],
    path: Path,
    *,
    score_threshold: float,
    title: str,
    columns: int = 6,
) -> tuple[Counter[str], int]:
    """Draw the images with the most mistakes below their objects; return (false detections by kind, misses) in all."""
    found = {i: mistakes(objects, detections, i, score_threshold) for i, objects in enumerate(scenes.objects.cpu())}
    worst = sorted(found, key=lambda i: -sum(map(len, found[i])))[: 2 * columns]
    columns = min(columns, len(worst))
    worst = worst[: len(worst) // columns * columns]  # whole rows, so that each stands below its objects
    order, drawn, titles = [], [], []
    for start in range(0, len(worst), columns):
        chosen = worst[start : start + columns]
        order += chosen + chosen
        drawn += [[_object(row, classes) for row in _present(scenes.objects[i])] for i in chosen]
        drawn += [_drawn_mistakes(scenes.objects[i], detections, found[i], classes) for i in chosen]
        titles += ["objects"] * len(chosen)
        titles += [f"{len(found[i][0])} false, {len(found[i][1])} missed" for i in chosen]
    show.save(draw.boxes(scenes.images[order], drawn, titles, columns=columns, title=title), path)
    kinds = Counter(kind for wrong, _ in found.values() for kind in wrong.values())
    return kinds, sum(len(missed) for _, missed in found.values())


def _drawn_mistakes(
    objects: Tensor, detections: Detections, found: tuple[dict[int, str], list[int]], classes: Sequence[str]
) -> list[Drawn]:
    wrong, missed = found
    false = [_detection(detections, n, classes, "false", dashed=True) for n in wrong]
    named = [box._replace(text=f"{box.text} {kind}") for box, kind in zip(false, wrong.values(), strict=True)]
    return named + [_object(objects[o].tolist(), classes, "missed") for o in missed]


@show.picture
def draw_anchors(scenes: Scenes, anchors: Tensor, classes: Sequence[str], path: Path, *, columns: int = 4) -> None:
    """Draw one object in each of the first images with objects, and the anchors matched to it, ten at most."""
    chosen = (scenes.objects[..., 4] >= 0).any(dim=1).nonzero().squeeze(1)[:columns].tolist()
    drawn, titles = [], []
    for i in chosen:
        boxes, _, present = unpack_objects(scenes.objects[i])
        o = int(present.nonzero()[0])
        matched = (match_anchors(anchors, boxes, present) == o).nonzero().squeeze(1)
        best = matched[box_iou(boxes[o : o + 1], anchors[matched])[0].argsort(descending=True)[:10]].tolist()
        drawn.append([Drawn(anchors[a].tolist(), "", "anchor", dashed=True) for a in best])
        drawn[-1].append(_object(scenes.objects[i, o].tolist(), classes))
        shown = f", the best {len(best)} drawn" if len(best) < len(matched) else ""
        titles.append(f"{len(matched)} {'anchor' if len(matched) == 1 else 'anchors'}{shown}")
    title = f"Green: an object. Dashed: its anchors of {len(anchors):,}, of an IoU of 0.5 or more, or else the best"
    show.save(draw.boxes(scenes.images[chosen], drawn, titles, columns=columns, title=title), path)


@show.picture
@torch.no_grad()
def draw_heat(detector: Detector, ts: TrainState, scenes: Scenes, classes: Sequence[str], path: Path) -> None:
    """Draw the heat maps of the classes in the first image that has two of them, each from 0 to 1."""
    kinds = [sorted({int(row[4]) for row in _present(objects)}) for objects in scenes.objects]
    most = min(2, max(map(len, kinds)))
    i = next(i for i, labels in enumerate(kinds) if len(labels) >= most)
    output, _ = detector.model.apply(ts.params, ts.state, scenes.images[i : i + 1], train=False)
    heat = output["heat"][0, kinds[i]].sigmoid()
    titles = ["image", *(f"heat of {classes[c]}" for c in kinds[i])]
    title = "Heat is to be 1 where a centre of the class is, 0 elsewhere: each object a bright spot of its own map"
    show.save(draw.heat_over(scenes.images[i], heat, titles, title=title), path)
