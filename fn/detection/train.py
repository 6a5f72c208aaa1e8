"""Training and evaluation of a detector: the objective, the step, predictions, average precision."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from fn import tree
from fn.detection.average_precision import SIZES, average_precision
from fn.detection.boxes import object_table, unpack_objects
from fn.domains import Bands, Count
from fn.models import Detector
from fn.optim import Optimizer
from fn.tensors import summarize as summarize_tensor
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
    """Return (the sum of the loss's parts, ({"loss": …} and the parts, new state)) of a training batch: an objective.

    >>> from fn.models.ssd import ssd
    >>> detector = ssd((1, 16, 16), classes=2, width=4)
    >>> params, state = detector.model.init(torch.Generator().manual_seed(0))
    >>> x, y = torch.zeros(3, 1, 16, 16), torch.tensor([[[2.0, 2, 11, 11, 1]]]).expand(3, 1, 5)
    >>> sorted(detection_loss(params, state, x, y, apply=detector.model.apply, loss=detector.loss)[1][0])
    ['box', 'class', 'loss']
    """
    output, state = apply(params, state, x, train=True, key=key)
    parts = loss(**output, objects=y)
    total = torch.stack(list(parts.values())).sum()
    return total, ({"loss": total.detach()} | {name: part.detach() for name, part in parts.items()}, state)


def detector_step(detector: Detector, optimizer: Optimizer) -> Callable:
    """Return step(ts, x, y, *, key), the `train_step` of a detector; y are the objects.

    >>> from fn.models.ssd import ssd
    >>> from fn.optim import sgd
    >>> step = detector_step(ssd((1, 16, 16), classes=2, width=4), sgd(lr=0.1))
    >>> step.func.__name__, sorted(step.keywords)
    ('train_step', ['objective', 'optimizer'])
    """
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
    """Return the detections in `images`, on the CPU. FloatingPointError if an output is NaN or infinite.

    >>> from fn.models.ssd import ssd
    >>> detector = ssd((1, 16, 16), classes=2, width=4)
    >>> params, state = detector.model.init(torch.Generator().manual_seed(0))
    >>> boxes, scores, labels, images = predict(detector, params, state, torch.zeros(3, 1, 16, 16))
    >>> boxes.shape[1], len(scores) == len(labels) == len(images) == len(boxes)
    (4, True)
    """
    found = []
    for x in images.split(100) if len(images) else ():
        output, _ = detector.model.apply(params, state, x, train=False)
        if bad := tree.first_non_finite(output):
            raise FloatingPointError(
                f"prediction: an output of the model is not finite, {bad[0]}: {summarize_tensor(bad[1])}"
            )
        found += detector.detect(**output)
    return collect([tuple(part.cpu() for part in image) for image in found])


def collect(found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Detections:
    """Concatenate the (boxes, scores, labels) of each image into one table.

    >>> image0 = (torch.zeros(2, 4), torch.tensor([0.9, 0.8]), torch.tensor([1, 0]))
    >>> image1 = (torch.ones(1, 4), torch.tensor([0.7]), torch.tensor([1]))
    >>> table = collect([image0, image1])
    >>> table.labels, table.images
    (tensor([1, 0, 1]), tensor([0, 0, 1]))
    """
    empty = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    counts = torch.tensor([len(scores) for _, scores, _ in found], dtype=torch.int64)
    boxes, scores, labels = (torch.cat(column) for column in zip(empty, *found, strict=True))
    return Detections(boxes, scores, labels, torch.arange(len(found)).repeat_interleave(counts))


def evaluate_detections(
    detections: Detections,
    objects: Float[Tensor, "examples objects 5"],
    classes: Count,
    difficult: Bool[Tensor, "examples objects"] | None = None,
    *,
    sizes: Bands = SIZES,
) -> Float64[Tensor, "thresholds sizes classes"]:
    """Return the `average_precision` of detections in the images that have these objects, some of them `difficult`.

    >>> box = torch.tensor([[0.0, 0, 10, 10]])
    >>> detections = collect([(box, torch.tensor([0.9]), torch.tensor([1]))])
    >>> ap = evaluate_detections(detections, torch.tensor([[[0.0, 0, 10, 10, 1]]]), classes=2)
    >>> ap.shape, ap[0, 0]
    (torch.Size([10, 4, 2]), tensor([nan, 1.], dtype=torch.float64))
    """
    present = unpack_objects(objects)[2].cpu()
    flags = None if difficult is None else difficult.cpu()[present]
    return average_precision(*detections, *object_table(objects.cpu()), difficult=flags, classes=classes, sizes=sizes)
