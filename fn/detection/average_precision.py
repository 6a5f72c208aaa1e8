"""Average precision as COCO has it, equal to pycocotools: Lin et al. 2014, and the evaluation's own code.

Of one class, best score first, a detection is right if it finds an object of its image that none before it has found.
Precision is the share of right ones so far, recall the share of objects found; AP is the mean over 101 recalls from 0
to 1 of the best precision at that recall or beyond, and 0 beyond what is ever reached.
"""

import numpy
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from fn.detection.boxes import box_area, box_intersection

# numpy's, to the last bit: torch's linspace differs there, and a recall or an overlap may be exactly that
THRESHOLDS = tuple(numpy.linspace(0.5, 0.95, 10).tolist())
"""the least IoU of a detection with what it finds"""
AT_50, AT_75 = THRESHOLDS.index(0.5), THRESHOLDS.index(0.75)
RECALLS = torch.from_numpy(numpy.linspace(0, 1, 101))
SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""from which area to which, both included; objects of other sizes are neither asked for nor held against anyone"""


def average_precision(
    boxes: Float[Tensor, "detections 4"],
    scores: Float[Tensor, " detections"],
    labels: Int[Tensor, " detections"],
    images: Int[Tensor, " detections"],
    object_boxes: Float[Tensor, "objects 4"],
    object_labels: Int[Tensor, " objects"],
    object_images: Int[Tensor, " objects"],
    crowd: Bool[Tensor, " objects"] | None = None,
    *,
    classes: int,
    sizes: dict[str, tuple[float, float]] = SIZES,
    max_detections: int = 100,
) -> Float64[Tensor, "thresholds sizes classes"]:
    """AP at each of THRESHOLDS, for objects of each of `sizes`, of each class; NaN where there is no such object.

    A row per detection, and a row per object; `images` says which image each is of. A `crowd` object stands for many:
    it is not asked for, but any number may find it, whose IoU is then the share of their own area that lies in it. Of
    an image and a class the `max_detections` best count. Of equal scores the earlier image and row come first, of equal
    overlaps the later object is found. ValueError for NaN, reversed corners, or a class that is not among `classes`.
    """
    _require_sound(boxes, scores, labels, object_boxes, object_labels, classes)
    crowd = torch.zeros_like(object_labels, dtype=torch.bool) if crowd is None else crowd
    boxes, scores, object_boxes = boxes.double(), scores.double(), object_boxes.double()
    group, object_group = images * classes + labels, object_images * classes + object_labels

    best_first = scores.sort(descending=True, stable=True).indices
    grouped = best_first[group[best_first].sort(stable=True).indices]  # group by group, each best first
    rank = torch.arange(len(grouped)) - torch.searchsorted(group[grouped], group[grouped])
    counted = grouped[rank < max_detections]
    boxes, scores, labels, group = boxes[counted], scores[counted], labels[counted], group[counted]

    limits = torch.tensor(list(sizes.values()), dtype=torch.float64)
    ignored = crowd | _outside(box_area(object_boxes), limits)
    matched = torch.zeros(len(THRESHOLDS), len(sizes), len(group), dtype=torch.bool)
    left_out = _outside(box_area(boxes), limits).expand_as(matched).clone()
    for g in object_group.unique():
        rows, theirs = (group == g).nonzero().squeeze(1), (object_group == g).nonzero().squeeze(1)
        overlap = _overlaps(boxes[rows], object_boxes[theirs], crowd[theirs])
        found = _assign(overlap, crowd[theirs], ignored[:, theirs])
        matched[:, :, rows], hidden = found
        left_out[:, :, rows] = torch.where(found[0], hidden, left_out[:, :, rows])

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
    for what, some in (("a detection", boxes), ("an object", object_boxes)):
        if not (some[:, :2] <= some[:, 2:]).all():
            raise ValueError(f"average_precision: {what} has a box with reversed corners or NaN")
    if scores.isnan().any():
        raise ValueError("average_precision: a score is NaN")
    for what, some in (("a detection", labels), ("an object", object_labels)):
        if ((some < 0) | (some >= classes)).any():
            raise ValueError(f"average_precision: {what} is of a class that is not among the {classes}")


def _outside(area: Float64[Tensor, " boxes"], limits: Float64[Tensor, "sizes 2"]) -> Bool[Tensor, "sizes boxes"]:
    return (area < limits[:, :1]) | (area > limits[:, 1:])


def _overlaps(
    boxes: Float64[Tensor, "detections 4"], objects: Float64[Tensor, "objects 4"], crowd: Bool[Tensor, " objects"]
) -> Float64[Tensor, "detections objects"]:
    """IoU, or for a crowd the share of the detection; 0 where nothing is shared"""
    shared, area = box_intersection(boxes, objects), box_area(boxes).unsqueeze(1)
    whole = torch.where(crowd, area, area + box_area(objects) - shared)
    return torch.where(shared > 0, shared / whole, 0.0)


def _assign(
    overlap: Float64[Tensor, "detections objects"],
    crowd: Bool[Tensor, " objects"],
    ignored: Bool[Tensor, "sizes objects"],
) -> tuple[Bool[Tensor, "thresholds sizes detections"], Bool[Tensor, "thresholds sizes detections"]]:
    """(which detections find an object, which of those find one that is ignored), at every threshold and size at once.

    One after the other, best first: each takes what it overlaps most of what is left, an ignored object only for want
    of another; a crowd is always left.
    """
    least = torch.tensor(THRESHOLDS, dtype=torch.float64).clamp(max=1 - 1e-10).view(-1, 1, 1)
    matched = torch.zeros(len(THRESHOLDS), len(ignored), len(overlap), dtype=torch.bool)
    hidden, later = matched.clone(), torch.arange(1, len(crowd) + 1)
    taken = torch.zeros(len(THRESHOLDS), *ignored.shape, dtype=torch.bool)
    for i in (overlap >= min(THRESHOLDS)).any(dim=1).nonzero().squeeze(1).tolist():
        fits = (overlap[i] >= least) & ~(taken & ~crowd)
        wanted = fits & ~ignored
        fits = torch.where(wanted.any(dim=-1, keepdim=True), wanted, fits)
        value = torch.where(fits, overlap[i], -1.0)
        best = ((value == value.amax(dim=-1, keepdim=True)) * later).argmax(dim=-1, keepdim=True)
        matched[:, :, i] = fits.any(dim=-1)
        hidden[:, :, i] = ignored.expand_as(fits).gather(-1, best).squeeze(-1) & matched[:, :, i]
        taken |= torch.zeros_like(taken).scatter(-1, best, matched[:, :, i : i + 1])
    return matched, hidden


def area_under_curve(
    right: Bool[Tensor, "thresholds sizes detections"],
    left_out: Bool[Tensor, "thresholds sizes detections"],
    wanted: Int64[Tensor, " sizes"],
) -> Float64[Tensor, "thresholds sizes"]:
    """The mean over 101 recalls of the best precision from there on, detections in the order of their scores"""
    hits, misses = right.cumsum(dim=-1).double(), (~right & ~left_out).cumsum(dim=-1).double()
    precision = torch.nn.functional.pad(hits / (hits + misses).clamp(min=1), (0, 1))
    best_from_here = precision.flip(-1).cummax(dim=-1).values.flip(-1)
    recall = (hits / wanted.clamp(min=1).unsqueeze(-1)).contiguous()
    reached = torch.searchsorted(recall, RECALLS.expand(*recall.shape[:2], -1).contiguous())
    return best_from_here.gather(-1, reached).mean(dim=-1)


def summarize(ap: Float[Tensor, "thresholds sizes classes"]) -> dict[str, float]:
    """{"AP": over all thresholds, "AP50", "AP75"}, each a mean over the classes that have objects, of all sizes.

    The first of the sizes is taken for all of them.
    """
    whole = ap[:, 0]
    parts = {"AP": whole, "AP50": whole[AT_50], "AP75": whole[AT_75]}
    return {name: float(part.nanmean()) for name, part in parts.items()}
