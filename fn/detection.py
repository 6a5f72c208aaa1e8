"""Detectors of either kind trained and judged: the objective, the step, predictions, average precision."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fn.average_precision import SIZES, average_precision
from fn.data.scenes import Scenes, object_table
from fn.models.detectors import Detector
from fn.optim import adam_init
from fn.train import Metrics, TrainState, checked_step, init, run_key, train_step
from fn.tree import Params


def detection_loss(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    y: Float[Tensor, "batch objects 5"],
    *,
    apply: Callable,
    loss: Callable,
    key: Int64[Tensor, ""] | None = None,
) -> tuple[Float[Tensor, ""], tuple[Metrics, Params]]:
    """(the sum of the parts, ({"loss": …} and the parts, new state)) of a training batch: an objective"""
    output, state = apply(params, state, x, train=True, key=key)
    parts = loss(**output, objects=y)
    total = torch.stack(list(parts.values())).sum()
    return total, ({"loss": total.detach()} | {name: part.detach() for name, part in parts.items()}, state)


def detector_step(detector: Detector, optimizer: Callable) -> Callable:
    """step(ts, x, y, *, key): the `train_step` of a detector, y being the objects"""
    objective = partial(detection_loss, apply=detector.model.apply, loss=detector.loss)
    return partial(train_step, objective=objective, optimizer=optimizer)


class Detections(NamedTuple):
    """A row per detection, image after image; the first four arguments of `average_precision`."""

    boxes: Float[Tensor, "detections 4"]
    scores: Float[Tensor, " detections"]
    labels: Int64[Tensor, " detections"]
    images: Int64[Tensor, " detections"]


@torch.no_grad()
def predict(
    detector: Detector, params: Params, state: Params, images: Float[Tensor, "examples channels height width"]
) -> Detections:
    """What the detector finds, on the CPU. FloatingPointError if it has become NaN."""
    found = []
    for x in images.split(100):
        output, _ = detector.model.apply(params, state, x, train=False)
        if not all(part.isfinite().all() for part in output.values()):
            raise FloatingPointError("prediction: an output of the model is not finite")
        found += detector.detect(**output)
    return collect([tuple(part.cpu() for part in image) for image in found])


def collect(found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Detections:
    """The (boxes, scores, labels) of each image as one table"""
    counts = torch.tensor([len(scores) for _, scores, _ in found])
    boxes, scores, labels = (torch.cat(column) for column in zip(*found, strict=True))
    return Detections(boxes, scores, labels, torch.arange(len(found)).repeat_interleave(counts))


def judge(
    detections: Detections,
    objects: Float[Tensor, "examples objects 5"],
    classes: int,
    *,
    sizes: dict[str, tuple[float, float]] = SIZES,
) -> Float64[Tensor, "thresholds sizes classes"]:
    """`average_precision` of detections in the images that have these objects"""
    return average_precision(*detections, *object_table(objects.cpu()), classes=classes, sizes=sizes)


def overfit_detector(
    detector: Detector,
    scenes: Scenes,
    classes: int,
    *,
    step: Callable,
    seed: int,
    steps: int,
    enough: Callable[[Tensor], bool],
    every: int = 20,
    each: Callable | None = None,
) -> tuple[TrainState, Tensor]:
    """Train on a handful of images until evaluation finds their objects: `enough(ap)`, asked now and then.

    (the state, its average precision), batch norm standing on its running statistics.
    """
    ts, key = init(detector.model, adam_init, seed=seed, device=scenes.images.device), run_key(seed)
    ap = torch.zeros(0)
    for number in range(1, steps + 1):
        ts, metrics = checked_step(ts, *scenes, step=step, key=key)
        if each:
            each(ts, metrics, {})
        if number % every == 0 or number == steps:
            ap = judge(predict(detector, ts.params, ts.state, scenes.images), scenes.objects, classes)
            if enough(ap):
                break
    return ts, ap
