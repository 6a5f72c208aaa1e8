"""Average precision by the rules of COCO, equal to pycocotools. Lin et al. 2014, and the code of that evaluation.

For one class, from the best score down: a detection is right if it matches an object of its image that no better
detection has matched. Precision is the fraction right so far, recall the fraction of objects matched. AP is the mean,
over 101 recalls from 0 to 1, of the best precision at that recall or beyond; it counts 0 where a recall is not reached.
`average_precision_naive` is that, word for word; `average_precision` does it for all classes, thresholds and sizes.
"""

import math

import numpy
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from fn.detection.boxes import box_area, box_intersection, box_iou
from fn.domains import Bands, Count, Share

# numpy's, to the last bit: torch's linspace differs there, and a recall or an overlap may be exactly that
THRESHOLDS = tuple(numpy.linspace(0.5, 0.95, 10).tolist())
"""the least IoU at which a detection matches an object"""
AT_50, AT_75 = THRESHOLDS.index(0.5), THRESHOLDS.index(0.75)
RECALLS = torch.from_numpy(numpy.linspace(0, 1, 101))
SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""the least and the largest area, both included; objects of other sizes are ignored, and so is what matches them"""


def average_precision_naive(
    boxes: Float[Tensor, "detections 4"],
    scores: Float[Tensor, " detections"],
    images: Int[Tensor, " detections"],
    object_boxes: Float[Tensor, "objects 4"],
    object_images: Int[Tensor, " objects"],
    *,
    threshold: Share = 0.5,
) -> float:
    """Return the AP of one class at one threshold, detection by detection; NaN where there is no object.

    >>> boxes, objects = torch.tensor([[0.0, 0, 9, 9], [0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 10]])
    >>> average_precision_naive(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), objects, torch.tensor([0]))
    1.0
    >>> average_precision_naive(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]), objects, torch.tensor([0]))
    0.5
    """
    if not len(object_boxes):
        return math.nan
    overlap, taken, hits = box_iou(boxes.double(), object_boxes.double()), set(), 0
    curve = []
    best_first = sorted(range(len(scores)), key=lambda i: (-scores[i], images[i], i))
    for rank, i in enumerate(best_first, start=1):
        free = [j for j in range(len(object_boxes)) if object_images[j] == images[i] and j not in taken]
        fitting = [j for j in free if overlap[i, j] >= threshold]
        if fitting:
            taken.add(max(fitting, key=lambda j: (overlap[i, j], j)))
            hits += 1
        curve.append((hits / len(object_boxes), hits / rank))
    at_recalls = [max((p for recall, p in curve if recall >= r), default=0.0) for r in RECALLS.tolist()]
    return sum(at_recalls) / len(at_recalls)


def average_precision(
    boxes: Float[Tensor, "detections 4"],
    scores: Float[Tensor, " detections"],
    labels: Int[Tensor, " detections"],
    images: Int[Tensor, " detections"],
    object_boxes: Float[Tensor, "objects 4"],
    object_labels: Int[Tensor, " objects"],
    object_images: Int[Tensor, " objects"],
    crowd: Bool[Tensor, " objects"] | None = None,
    difficult: Bool[Tensor, " objects"] | None = None,
    *,
    classes: Count,
    sizes: Bands = SIZES,
    max_detections: Count = 100,
) -> Float64[Tensor, "thresholds sizes classes"]:
    """Return AP at each of THRESHOLDS, for objects of each of `sizes` and each class; NaN where there is no object.

    Detections and objects have a row each; `images` and `object_images` say which image a row is of. A `crowd` object
    stands for many: it need not be found, but any number of detections may match it, and their IoU is the fraction of
    their own area that lies in it. A `difficult` object, as the devkit of Pascal VOC has it, need not be found either,
    and what matches it is neither right nor wrong. The `max_detections` best per image and class count. Of equal scores
    the earlier image and row come first; of equal overlaps the later object is matched. ValueError for NaN, reversed
    corners, or a class that is not among `classes`.

    >>> box, zero = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0])
    >>> ap = average_precision(box, torch.tensor([0.9]), zero, zero, box, zero, zero, classes=2)
    >>> ap.shape, ap[0, 0]
    (torch.Size([10, 4, 2]), tensor([1., nan], dtype=torch.float64))
    """
    _require_sound(boxes, scores, labels, object_boxes, object_labels, classes)
    crowd, difficult = (
        torch.zeros_like(object_labels, dtype=torch.bool) if flags is None else flags for flags in (crowd, difficult)
    )
    boxes, scores, object_boxes = boxes.double(), scores.double(), object_boxes.double()
    group, object_group = images * classes + labels, object_images * classes + object_labels

    best_first = scores.sort(descending=True, stable=True).indices
    grouped = best_first[group[best_first].sort(stable=True).indices]  # group by group, each best first
    rank = torch.arange(len(grouped)) - torch.searchsorted(group[grouped], group[grouped])
    counted = grouped[rank < max_detections]
    boxes, scores, labels, group = boxes[counted], scores[counted], labels[counted], group[counted]

    limits = torch.tensor(list(sizes.values()), dtype=torch.float64)
    open_to_many = crowd | difficult
    ignored = open_to_many | _outside(box_area(object_boxes), limits)
    matched = torch.zeros(len(THRESHOLDS), len(sizes), len(group), dtype=torch.bool)
    left_out = _outside(box_area(boxes), limits).expand_as(matched).clone()
    for g in object_group.unique():
        rows, objects = (group == g).nonzero().squeeze(1), (object_group == g).nonzero().squeeze(1)
        overlap = _overlaps(boxes[rows], object_boxes[objects], crowd[objects])
        on_difficult = difficult[objects][overlap.argmax(dim=1)].unsqueeze(1)
        overlap = overlap.masked_fill(difficult[objects] != on_difficult, 0.0)
        found, found_ignored = _assign(overlap, open_to_many[objects], ignored[:, objects])
        matched[:, :, rows] = found
        left_out[:, :, rows] = torch.where(found, found_ignored, left_out[:, :, rows])

    ranked = scores.sort(descending=True, stable=True).indices  # over all images, as the curve goes
    result = torch.full((len(THRESHOLDS), len(sizes), classes), torch.nan, dtype=torch.float64)
    for c in range(classes):
        rows, wanted = ranked[labels[ranked] == c], (~ignored & (object_labels == c)).sum(dim=1)
        ap = area_under_curve(matched[:, :, rows] & ~left_out[:, :, rows], left_out[:, :, rows], wanted)
        result[:, :, c] = torch.where(wanted > 0, ap, torch.nan)
    return result


def _require_sound(
    boxes: Float[Tensor, "detections 4"],
    scores: Float[Tensor, " detections"],
    labels: Int[Tensor, " detections"],
    object_boxes: Float[Tensor, "objects 4"],
    object_labels: Int[Tensor, " objects"],
    classes: int,
) -> None:
    for row, corners in (("a detection", boxes), ("an object", object_boxes)):
        if not (corners[:, :2] <= corners[:, 2:]).all():
            raise ValueError(f"average_precision: {row} has a box with reversed corners or NaN")
    if scores.isnan().any():
        raise ValueError("average_precision: a score is NaN")
    for row, indices in (("a detection", labels), ("an object", object_labels)):
        if ((indices < 0) | (indices >= classes)).any():
            raise ValueError(f"average_precision: {row} is of a class that is not among the {classes} classes")


def _outside(area: Float64[Tensor, " boxes"], limits: Float64[Tensor, "sizes 2"]) -> Bool[Tensor, "sizes boxes"]:
    return (area < limits[:, :1]) | (area > limits[:, 1:])


def _overlaps(
    boxes: Float64[Tensor, "detections 4"], objects: Float64[Tensor, "objects 4"], crowd: Bool[Tensor, " objects"]
) -> Float64[Tensor, "detections objects"]:
    """Return the IoU, or for a crowd the fraction of the detection inside it; 0 where nothing is shared."""
    shared, area = box_intersection(boxes, objects), box_area(boxes).unsqueeze(1)
    whole = torch.where(crowd, area, area + box_area(objects) - shared)
    return torch.where(shared > 0, shared / whole, 0.0)


def _assign(
    overlap: Float64[Tensor, "detections objects"],
    open_to_many: Bool[Tensor, " objects"],
    ignored: Bool[Tensor, "sizes objects"],
) -> tuple[Bool[Tensor, "thresholds sizes detections"], Bool[Tensor, "thresholds sizes detections"]]:
    """Return (which detections match an object, which of those match an ignored one), per threshold and size.

    The greedy loop of `average_precision_naive`: best first, each takes the object that it overlaps most among those
    not taken, an ignored one only if no other fits; one that is `open_to_many` is never taken.
    """
    least = torch.tensor(THRESHOLDS, dtype=torch.float64).clamp(max=1 - 1e-10).view(-1, 1, 1)
    matched = torch.zeros(len(THRESHOLDS), len(ignored), len(overlap), dtype=torch.bool)
    matched_ignored, later = matched.clone(), torch.arange(1, len(open_to_many) + 1)
    taken = torch.zeros(len(THRESHOLDS), *ignored.shape, dtype=torch.bool)
    for i in (overlap >= min(THRESHOLDS)).any(dim=1).nonzero().squeeze(1).tolist():
        fits = (overlap[i] >= least) & ~(taken & ~open_to_many)
        wanted = fits & ~ignored
        fits = torch.where(wanted.any(dim=-1, keepdim=True), wanted, fits)
        value = torch.where(fits, overlap[i], -1.0)
        best = ((value == value.amax(dim=-1, keepdim=True)) * later).argmax(dim=-1, keepdim=True)
        matched[:, :, i] = fits.any(dim=-1)
        matched_ignored[:, :, i] = ignored.expand_as(fits).gather(-1, best).squeeze(-1) & matched[:, :, i]
        taken |= torch.zeros_like(taken).scatter(-1, best, matched[:, :, i : i + 1])
    return matched, matched_ignored


def area_under_curve(
    right: Bool[Tensor, "thresholds sizes detections"],
    left_out: Bool[Tensor, "thresholds sizes detections"],
    wanted: Int64[Tensor, " sizes"],
) -> Float64[Tensor, "thresholds sizes"]:
    """Return the mean over 101 recalls of the best precision at that recall or beyond; detections best first.

    `right` and `left_out` (neither right nor wrong) are masks of the detections, `wanted` counts the objects.

    >>> right = torch.tensor([[[True, False, True]]])
    >>> area_under_curve(right, torch.zeros_like(right), wanted=torch.tensor([2]))  # (51 · 1 + 50 · 2/3) / 101
    tensor([[0.8350]], dtype=torch.float64)
    """
    hits, misses = right.cumsum(dim=-1).double(), (~right & ~left_out).cumsum(dim=-1).double()
    precision = torch.nn.functional.pad(hits / (hits + misses).clamp(min=1), (0, 1))
    best_from_here = precision.flip(-1).cummax(dim=-1).values.flip(-1)
    recall = (hits / wanted.clamp(min=1).unsqueeze(-1)).contiguous()
    reached = torch.searchsorted(recall, RECALLS.expand(*recall.shape[:2], -1).contiguous())
    return best_from_here.gather(-1, reached).mean(dim=-1)


def summarize(ap: Float[Tensor, "thresholds sizes classes"]) -> dict[str, float]:
    """Return {"AP": over all thresholds, "AP50", "AP75"}, each a mean over the classes that have objects.

    Only the first of the sizes is read, which stands for all.

    >>> summarize(torch.ones(10, 4, 3))
    {'AP': 1.0, 'AP50': 1.0, 'AP75': 1.0}
    """
    whole = ap[:, 0]
    parts = {"AP": whole, "AP50": whole[AT_50], "AP75": whole[AT_75]}
    return {name: float(part.nanmean()) for name, part in parts.items()}
