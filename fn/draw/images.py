"""Grids of images."""

from collections.abc import Sequence

import numpy
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor


def image_grid(
    images: Float[Tensor, "images height width"],
    titles: Sequence[str] = (),
    *,
    columns: int = 8,
    signed: bool = False,
    title: str = "",
) -> Figure:
    """Draw gray images in a grid, each on its own scale; with `signed`, red is positive, blue negative, white zero."""
    rows = -(-len(images) // columns)
    height = 1.0 if not titles else 1.3
    figure = Figure(figsize=(columns * 1.0, rows * height + (0.4 if title else 0)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for i, (axes, image) in enumerate(zip(grid.flat, images.detach().cpu(), strict=False)):
        limit = float(image.abs().max()) or 1.0
        axes.imshow(
            image.numpy(), cmap="RdBu_r" if signed else "gray_r", **({"vmin": -limit, "vmax": limit} if signed else {})
        )
        if titles:
            axes.set_title(titles[i], fontsize=8)
    return figure


def photo_grid(
    images: Float[Tensor, "images 3 height width"], titles: Sequence[str], *, columns: int = 4, title: str = ""
) -> Figure:
    """Draw RGB images in a grid, each scaled from its smallest value to its largest."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 1.9, rows * 2.3 + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, name in zip(grid.flat, images.detach().cpu(), titles, strict=False):
        axes.imshow(pixels(image))
        axes.set_title(name, fontsize=8)
    return figure


def pixels(image: Float[Tensor, "channels height width"]) -> numpy.ndarray:
    """Scale an image to values from 0 to 1, and move its channels last, as imshow takes them."""
    scaled = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
    return scaled.detach().cpu().movedim(0, -1).squeeze(-1).numpy()
