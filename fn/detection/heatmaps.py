"""Objects as points: a heat map of centres per class, and what is read at its peaks. Zhou et al. 2019, "CenterNet".

For one image each, as in fn.detection.anchors. Positions are (x, y), in cells of the map.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fn.conv import max_pool2d


def gaussian_radius(size: Float[Tensor, "*objects 2"], min_overlap: float = 0.7) -> Float[Tensor, "*objects"]:
    """How far both corners of a box of `size` (width, height) may move, at worst, and leave an IoU of `min_overlap`.

    The least of three radii r, each the root of a quadratic: for corners that move alike, (w - r)(h - r) is shared;
    for both inwards, (w - 2r)(h - 2r) is left of wh; for both outwards, wh is left of (w + 2r)(h + 2r).
    Law and Deng 2018, "CornerNet".
    """
    width, height = size.unbind(-1)
    half, area, t = width + height, width * height, min_overlap
    alike = (half - (half**2 - 4 * area * (1 - t) / (1 + t)).clamp(min=0).sqrt()) / 2
    inwards = (half - (half**2 - 4 * area * (1 - t)).clamp(min=0).sqrt()) / 4
    outwards = ((half**2 + 4 * area * (1 - t) / t).clamp(min=0).sqrt() - half) / 4
    return torch.minimum(torch.minimum(alike, inwards), outwards)


def center_cells(centres: Float[Tensor, "objects 2"], height: int, width: int) -> Int[Tensor, "objects 2"]:
    """The cell (column, row) that each centre lies in; the nearest where it lies outside the map"""
    column, row = centres.unbind(-1)
    return torch.stack([column.floor().clamp(0, width - 1), row.floor().clamp(0, height - 1)], dim=-1).long()


def center_heatmap(
    centres: Float[Tensor, "objects 2"],
    sizes: Float[Tensor, "objects 2"],
    labels: Int[Tensor, " objects"],
    present: Bool[Tensor, " objects"],
    *,
    classes: int,
    height: int,
    width: int,
) -> Float[Tensor, "classes {height} {width}"]:
    """exp(-d² / 2σ²) of the distance to the nearest centre of the class, exactly 1 in its cell; 0 without one.

    σ = (2r + 1) / 6, r the `gaussian_radius`: r off is still a good guess. Of two objects the larger value counts.
    """
    cells = center_cells(centres, height, width).to(centres.dtype)
    columns, rows = (torch.arange(n, dtype=centres.dtype, device=centres.device) for n in (width, height))
    along = rearrange(columns, "w -> 1 1 w") - rearrange(cells[:, 0], "objects -> objects 1 1")
    below = rearrange(rows, "h -> 1 h 1") - rearrange(cells[:, 1], "objects -> objects 1 1")
    sigma = rearrange((2 * gaussian_radius(sizes) + 1) / 6, "objects -> objects 1 1")
    bumps = torch.exp(-(along**2 + below**2) / (2 * sigma**2))
    own = (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)) & present.unsqueeze(1)
    bumps = torch.where(rearrange(own, "objects c -> objects c 1 1"), bumps.unsqueeze(1), 0.0)
    return torch.cat([torch.zeros_like(bumps[:1]), bumps]).amax(dim=0) if len(labels) else bumps.sum(dim=0)


def peaks(heat: Float[Tensor, "batch classes height width"]) -> Float[Tensor, "batch classes height width"]:
    """The heat where no neighbour, of eight, is hotter; 0 elsewhere: non-maximum suppression by a max-pooling"""
    return torch.where(max_pool2d(heat, 3, stride=1, padding=1) == heat, heat, 0.0)
