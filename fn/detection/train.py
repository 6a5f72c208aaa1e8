"""Training and evaluation of a detector: the objective, the step, predictions, average precision."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fn.detection.average_precision import SIZES, average_precision
from fn.detection.boxes import object_table
from fn.models import Detector
from fn.optim import Optimizer
from fn.train import Metrics, train_step
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


def detector_step(detector: Detector, optimizer: Optimizer) -> Callable:
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
    for x in images.split(100) if len(images) else ():
        output, _ = detector.model.apply(params, state, x, train=False)
        if not all(part.isfinite().all() for part in output.values()):
            raise FloatingPointError("prediction: an output of the model is not finite")
        found += detector.detect(**output)
    return collect([tuple(part.cpu() for part in image) for image in found])


def collect(found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Detections:
    """The (boxes, scores, labels) of each image as one table"""
    none = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    counts = torch.tensor([len(scores) for _, scores, _ in found], dtype=torch.int64)
    boxes, scores, labels = (torch.cat(column) for column in zip(none, *found, strict=True))
    return Detections(boxes, scores, labels, torch.arange(len(found)).repeat_interleave(counts))


def evaluate_detections(
    detections: Detections,
    objects: Float[Tensor, "examples objects 5"],
    classes: int,
    *,
    sizes: dict[str, tuple[float, float]] = SIZES,
) -> Float64[Tensor, "thresholds sizes classes"]:
    """`average_precision` of detections in the images that have these objects"""
    return average_precision(*detections, *object_table(objects.cpu()), classes=classes, sizes=sizes)
