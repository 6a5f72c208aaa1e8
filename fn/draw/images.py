"""Grids of images."""

from collections.abc import Sequence

import numpy
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from fn.domains import Count
from fn.draw.figures import folded, plain, readable, set_title
from fn.draw.palette import SHADES


def image_grid(
    images: Float[Tensor, "images height width"],
    titles: Sequence[str] = (),
    *,
    columns: Count = 8,
    signed: bool = False,
    title: str = "",
    row_names: Sequence[str] = (),
) -> Figure:
    """Draw gray images in a grid, each on its own scale; with `signed`, red is positive, blue negative, white zero.

    `row_names` stand left of the rows.
    """
    rows = -(-len(images) // columns)
    size = readable(columns * 1.0)
    names = [folded(name, 1.0, size) for name in titles]
    height = 1.0 + 0.02 * size * max((name.count("\n") + 1 for name in names), default=0)
    figure = Figure(figsize=(columns * 1.0, rows * height + 0.4), layout="constrained")
    set_title(figure, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for i, (axes, image) in enumerate(zip(grid.flat, images.detach().cpu(), strict=False)):
        limit = float(image.abs().max()) or 1.0
        axes.imshow(
            image.numpy(),
            cmap=SHADES["signed" if signed else "image"],
            **({"vmin": -limit, "vmax": limit} if signed else {}),
        )
        if titles:
            axes.set_title(names[i], fontsize=size)
    for axes, name in zip(grid[:, 0], row_names, strict=False):
        left = {"ha": "right", "va": "center", "transform": axes.transAxes}
        axes.text(-0.08, 0.5, plain(name), fontsize=size, **left)
    return figure


def photo_grid(
    images: Float[Tensor, "images 3 height width"], titles: Sequence[str], *, columns: Count = 4, title: str = ""
) -> Figure:
    """Draw RGB images in a grid, each scaled from its smallest value to its largest."""
    rows = -(-len(images) // columns)
    size = readable(columns * 1.9)
    figure = Figure(figsize=(columns * 1.9, rows * 2.3 + 0.4), layout="constrained")
    set_title(figure, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, name in zip(grid.flat, images.detach().cpu(), titles, strict=False):
        axes.imshow(pixels(image))
        axes.set_title(folded(name, 1.9, size), fontsize=size)
    return figure


def pixels(image: Float[Tensor, "channels height width"]) -> numpy.ndarray:
    """Scale an image to values from 0 to 1, and move its channels last, as imshow takes them."""
    scaled = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
    return scaled.detach().cpu().movedim(0, -1).squeeze(-1).numpy()
