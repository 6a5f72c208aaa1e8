"""Heat maps of object centres, one per class, and their peaks. Zhou et al. 2019, "CenterNet".

All but `peaks` take one image; use `vmap` for a batch. Positions are (x, y), in cells of the map.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fn.conv import max_pool2d
from fn.domains import Count, Probability
from fn.precision import half_in_float32


@half_in_float32("size")
def gaussian_radius(size: Float[Tensor, "*objects 2"], min_overlap: Probability = 0.7) -> Float[Tensor, "*objects"]:
    """Return how far both corners of a box may move, at worst, with an IoU of `min_overlap` left.

    `size` is (width, height). The result is the least of three radii r, each the root of a quadratic. Corners that
    move alike leave an intersection of (w - r)(h - r). Both inwards, the box shrinks from wh to (w - 2r)(h - 2r); both
    outwards, it grows from wh to (w + 2r)(h + 2r). Law and Deng 2018, "CornerNet".

    >>> gaussian_radius(torch.tensor([[40.0, 40.0], [40.0, 4.0]]))
    tensor([3.2668, 0.5597])
    """
    width, height = size.unbind(-1)
    half, area, t = width + height, width * height, min_overlap
    alike = (half - (half**2 - 4 * area * (1 - t) / (1 + t)).clamp(min=0).sqrt()) / 2
    inwards = (half - (half**2 - 4 * area * (1 - t)).clamp(min=0).sqrt()) / 4
    outwards = ((half**2 + 4 * area * (1 - t) / t).clamp(min=0).sqrt() - half) / 4
    return torch.minimum(torch.minimum(alike, inwards), outwards)


def center_cells(centres: Float[Tensor, "objects 2"], height: Count, width: Count) -> Int[Tensor, "objects 2"]:
    """Return the cell (column, row) of each centre; for a centre outside the map the nearest cell.

    >>> center_cells(torch.tensor([[4.2, 6.9], [16.0, -3.0]]), height=10, width=16)
    tensor([[ 4,  6],
            [15,  0]])
    """
    column, row = centres.unbind(-1)
    return torch.stack([column.floor().clamp(0, width - 1), row.floor().clamp(0, height - 1)], dim=-1).long()


@half_in_float32("centres")
def center_heatmap(
    centres: Float[Tensor, "objects 2"],
    sizes: Float[Tensor, "objects 2"],
    labels: Int[Tensor, " objects"],
    present: Bool[Tensor, " objects"],
    *,
    classes: Count,
    height: Count,
    width: Count,
) -> Float[Tensor, "classes {height} {width}"]:
    """Return exp(-d² / 2σ²), d the distance to the nearest centre of the class: 1 in a centre's cell, 0 without one.

    σ = (2r + 1) / 6, r the `gaussian_radius`: a centre off by r is still a good guess. Of two objects the larger value
    counts.

    >>> centres, sizes = torch.tensor([[1.5, 0.5]]), torch.tensor([[16.0, 16.0]])
    >>> labels, present = torch.tensor([0]), torch.tensor([True])
    >>> center_heatmap(centres, sizes, labels, present, classes=1, height=1, width=4)
    tensor([[[0.2519, 1.0000, 0.2519, 0.0040]]])
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
    """Keep the heat where none of the eight neighbours is hotter, and zero it elsewhere.

    Non-maximum suppression by max pooling.

    >>> peaks(torch.tensor([[[[1.0, 3.0, 2.0, 5.0]]]]))
    tensor([[[[0., 3., 0., 5.]]]])
    """
    return torch.where(max_pool2d(heat, 3, stride=1, padding=1) == heat, heat, 0.0)
