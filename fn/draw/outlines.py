"""Boxes outlined on images."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from fn.draw.images import pixels


class Drawn(NamedTuple):
    """A box over an image."""

    box: Sequence[float]
    """(x1, y1, x2, y2) in pixels"""
    text: str
    color: str
    dashed: bool = False


def boxes(
    images: Float[Tensor, "images channels height width"],
    drawn: Sequence[Sequence[Drawn]],
    titles: Sequence[str] = (),
    *,
    columns: int,
    title: str = "",
) -> Figure:
    """Draw images in a grid, each on its own scale, with its boxes; one channel is drawn gray, three in color."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, (2.1 if titles else 1.9) * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    height, width = images.shape[2:]
    for axes in grid.flat:
        axes.axis("off")
    for i, (axes, image) in enumerate(zip(grid.flat, images.detach().cpu(), strict=False)):
        axes.imshow(pixels(image), cmap="gray_r", extent=(0, width, height, 0))
        for (x1, y1, x2, y2), text, color, dashed in drawn[i]:
            outline = [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]
            axes.plot(*outline, "--" if dashed else "-", color=color, linewidth=1.3)
            paper = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            place = {"x": max(x1, 0), "y": max(y1, 0), "va": "top", "clip_on": True}
            if x1 > 0.6 * width:  # otherwise the text would leave the image
                place |= {"x": min(x2, width), "ha": "right"}
            if dashed and y2 <= 0.9 * height:  # two equal boxes, one dashed, keep their texts apart
                place["y"] = y2
            elif y1 > 0.1 * height:
                place["va"] = "bottom"
            if text:
                axes.text(s=text, color=color, fontsize=7, bbox=paper, **place)
        axes.set(xlim=(0, width), ylim=(height, 0))
        if titles:
            axes.set_title(titles[i], fontsize=8)
    return figure
