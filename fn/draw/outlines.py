"""Boxes outlined on images."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fn.domains import Count
from fn.draw.figures import folded, readable, set_title
from fn.draw.images import pixels
from fn.draw.labels import place_labels
from fn.draw.palette import SHADES, color

PANEL = 1.9
"""the width of an image, in inches"""


class Drawn(NamedTuple):
    """A box over an image."""

    box: Sequence[float]
    """(x1, y1, x2, y2) in pixels"""
    text: str
    color: str
    """a name of the palette's: "object", "false"…"""
    dashed: bool = False


def boxes(
    images: Float[Tensor, "images channels height width"],
    drawn: Sequence[Sequence[Drawn]],
    titles: Sequence[str] = (),
    *,
    columns: Count,
    title: str = "",
) -> Figure:
    """Draw images in a grid, each on its own scale, with its boxes; one channel is drawn gray, three in color."""
    rows, shape = -(-len(images) // columns), images.shape[2:]
    width, size = PANEL * columns, readable(PANEL * columns)
    figure = Figure(figsize=(width, (PANEL + (0.025 * size if titles else 0)) * rows + 0.5), layout="constrained")
    set_title(figure, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for i, (axes, image) in enumerate(zip(grid.flat, images.detach().cpu(), strict=False)):
        axes.imshow(pixels(image), cmap=SHADES["image"], extent=(0, shape[1], shape[0], 0))
        _outline(axes, drawn[i], shape[1], shape[0], size)
        axes.set(xlim=(0, shape[1]), ylim=(shape[0], 0))
        if titles:
            axes.set_title(folded(titles[i], PANEL, size), fontsize=size)
    return figure


def _outline(axes: Axes, drawn: Sequence[Drawn], width: int, height: int, size: float) -> None:
    """Draw the boxes of one image, then their texts over them, each on a background of its own."""
    for (x1, y1, x2, y2), _, name, dashed in drawn:
        outline = [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]
        axes.plot(*outline, "--" if dashed else "-", color=color(name), linewidth=1.3)
    corners, texts = [list(box.box) for box in drawn], [box.text for box in drawn]
    point = max(width, height) / (0.9 * PANEL * 72)  # nine tenths: what titles and margins leave
    low = [box.dashed for box in drawn]  # two equal boxes, one dashed, keep their texts apart
    places = place_labels(corners, texts, image=(width, height), point=point, size=size, low=low)
    paper = {"facecolor": color("paper"), "alpha": 0.8, "edgecolor": "none", "pad": 0.6}
    for (x, y, text), box in zip(places, drawn, strict=True):
        if text:
            gap = 0.1 * size * point
            shade = {"color": color(box.color), "fontsize": size, "bbox": paper, "linespacing": 1.0}
            axes.text(x + gap, y + gap, text, va="top", clip_on=True, **shade)
