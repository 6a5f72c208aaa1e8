"""Anchors from the data: k-means over the sizes of boxes. Redmon and Farhadi 2017, "YOLO9000", section 2.

A size is (width, height), in pixels. The distance of two sizes is 1 - IoU of boxes with one centre: unlike Euclid's it
gives small boxes the same say as large ones.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from fn.detection.boxes import box_iou
from fn.domains import Count, Counts, Probability


def size_iou(sizes1: Float[Tensor, "sizes1 2"], sizes2: Float[Tensor, "sizes2 2"]) -> Float[Tensor, "sizes1 sizes2"]:
    """Return the intersection over union of boxes of these sizes with one centre.

    >>> size_iou(torch.tensor([[10.0, 20.0]]), torch.tensor([[20.0, 10.0], [10.0, 10.0]]))
    tensor([[0.3333, 0.5000]])
    """
    shared = torch.minimum(sizes1.unsqueeze(1), sizes2).prod(dim=-1)
    return shared / (sizes1.prod(dim=-1, keepdim=True) + sizes2.prod(dim=-1) - shared)


def cluster_sizes(
    sizes: Float[Tensor, "boxes 2"], k: Count, *, rng: torch.Generator, steps: Count = 100
) -> Float[Tensor, "clusters 2"]:
    """Return the means of `k` clusters of sizes, the smallest area first; of fewer distinct sizes each is its own mean.

    Lloyd's algorithm, until no size changes its cluster, in at most `steps` steps. The first means are drawn as by
    k-means++. A cluster that has lost all its sizes starts anew at the one that fits its own mean worst. ValueError if
    there is no size, or one that is not positive and finite.

    >>> sizes = torch.tensor([[9.0, 10], [50, 80], [11, 10], [50, 84]])
    >>> cluster_sizes(sizes, 2, rng=torch.Generator().manual_seed(0))
    tensor([[10., 10.],
            [50., 82.]])
    """
    if not len(sizes):
        raise ValueError("cluster_sizes: sizes holds no box")
    if not ((sizes > 0) & sizes.isfinite()).all():
        raise ValueError("cluster_sizes: sizes has a width or a height that is not positive and finite")
    points = sizes.double()
    means, assigned = _spread_out(points, k, rng), None
    for _ in range(steps):
        fit, nearest = size_iou(points, means).max(dim=1)
        if assigned is not None and torch.equal(nearest, assigned):
            break
        assigned, count = nearest, nearest.bincount(minlength=len(means)).unsqueeze(1)
        worst = points[fit.argsort(stable=True)[: len(means)]]
        place_among_empty = (count.squeeze(1) == 0).cumsum(dim=0) - 1
        total = torch.zeros_like(means).index_add(0, nearest, points)
        means = torch.where(count > 0, total / count, worst[place_among_empty.clamp(min=0)])
    return means[means.prod(dim=1).argsort(stable=True)].to(sizes)


def _spread_out(points: Float[Tensor, "boxes 2"], k: int, rng: torch.Generator) -> Float[Tensor, "clusters 2"]:
    """Draw `k` of the sizes, each with the probability of its squared distance to the nearest one before; all distinct.

    Arthur and Vassilvitskii 2007, "k-means++".
    """
    chosen = torch.randint(len(points), (1,), generator=rng)
    while len(chosen) < k:
        distance = 1 - size_iou(points, points[chosen]).amax(dim=1)
        if not (distance > 0).any():
            break
        reach = distance.clamp(min=0).square().cumsum(dim=0)
        drawn = reach[-1] * torch.rand(1, generator=rng, dtype=reach.dtype)
        chosen = torch.cat([chosen, torch.searchsorted(reach, drawn, right=True).clamp(max=len(points) - 1)])
    return points[chosen]


def split_by_level(sizes: Float[Tensor, "sizes 2"], strides: Counts) -> list[list[tuple[float, float]]]:
    """Return the sizes of each level's anchors; the levels are grids whose cells are `strides` pixels apart.

    A size goes to the coarsest level where a box of that size overlaps an anchor by half wherever it lies. At worst its
    centre is half a stride off both ways: with p = (1 - stride / 2w)(1 - stride / 2h) the IoU is p / (2 - p), at least
    0.5 if p is at least 2/3. The finest level takes what fits none. Coarse levels without a size are left out; a finer
    one without takes the nearest that there is. ValueError unless `strides` are positive and ascend.

    >>> split_by_level(torch.tensor([[10.0, 10.0], [24.0, 24.0], [90.0, 60.0]]), strides=(8, 16))
    [[(10.0, 10.0), (24.0, 24.0)], [(90.0, 60.0)]]
    """
    if not strides or min(strides) < 1 or list(strides) != sorted(set(strides)):
        raise ValueError(f"split_by_level: strides {tuple(strides)} are not positive numbers that ascend")
    if not len(sizes):
        raise ValueError("split_by_level: sizes holds no size")
    sizes = sizes[sizes.prod(dim=1).argsort(stable=True)]
    kept = (1 - torch.tensor(strides).view(-1, 1, 1) / (2 * sizes)).clamp(min=0).prod(dim=-1)
    level = ((kept >= 2 / 3).sum(dim=0) - 1).clamp(min=0)
    sizes, levels = sizes[level.argsort(stable=True)], min(int(level.max()) + 1, len(sizes))
    starts = [0]
    for i in range(1, levels):
        starts.append(max(starts[-1] + 1, min(int((level < i).sum()), len(sizes) - levels + i)))
    return [[(w, h) for w, h in part.tolist()] for part in sizes.tensor_split(starts[1:])]


def anchor_recall(
    boxes: Float[Tensor, "boxes 4"], anchors: Float[Tensor, "anchors 4"], *, iou_threshold: Probability = 0.5
) -> float:
    """Return the share of boxes that reach `iou_threshold` with some anchor; NaN if there is no box.

    >>> anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]])
    >>> anchor_recall(torch.tensor([[0.0, 0, 10, 9], [5, 0, 15, 10]]), anchors)
    0.5
    """
    best = [box_iou(part, anchors).amax(dim=1) for part in boxes.split(1000)]
    return float((torch.cat(best) >= iou_threshold).double().mean())
