"""Pictures: each function returns a matplotlib Figure, and `save` writes it. No global state, no window."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fn.files import write_atomic


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    write_atomic(path, png.getvalue())
    return path


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float] | Mapping[int, float]]],
    *,
    xlabel: str = "step",
    log: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """A panel per quantity, a line per name: {"loss": {"train": [...]}}. `log` names panels with a logarithmic axis.

    A line is a list, whose first value belongs to step 1, or {step: value}, drawn with dots.
    """
    figure = Figure(figsize=(5 * len(panels), 3.4), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    for axes, (quantity, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        # a dashed line shows what lies below it
        for style, (name, values) in zip(cycle(["-", "--"]), lines.items(), strict=False):
            if isinstance(values, Mapping):
                axes.plot(list(values), list(values.values()), "o-", label=name, linewidth=1.5, markersize=4)
            else:
                axes.plot(range(1, len(values) + 1), values, style, label=name, linewidth=1.5)
        axes.set(xlabel=xlabel, ylabel=quantity, yscale="log" if quantity in log else "linear")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if len(lines) > 1:
            axes.legend(frameon=False)
    return figure


def spread(
    x: Sequence[float],
    values: Float[Tensor, "x repeats"],
    *,
    xlabel: str,
    ylabel: str,
    marked: tuple[float, float, str],
) -> Figure:
    """Over a logarithmic axis, every repeat a dot, their mean a line, a standard deviation to each side a band.

    `marked` is (x, y, label) of the one that stands out.
    """
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    mean, deviation = values.mean(dim=1), values.std(dim=1, correction=min(1, values.shape[1] - 1))
    axes.fill_between(x, mean - deviation, mean + deviation, alpha=0.2, linewidth=0)
    axes.plot(x, mean, linewidth=1.5, label="mean ± standard deviation")
    axes.plot(x, values, ".", color="grey", markersize=4)
    axes.plot(*marked[:2], "*", color="tab:red", markersize=11, label=marked[2])
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def image_grid(
    images: Float[Tensor, "images height width"],
    titles: Sequence[str] = (),
    *,
    columns: int = 8,
    signed: bool = False,
    title: str = "",
) -> Figure:
    """Grey pictures in rows, each on its own scale; `signed` ones red above and blue below a white zero."""
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


def attention_maps(
    weights: Float[Tensor, "layers heads queries keys"], queries: Sequence[str], keys: Sequence[str], *, title: str = ""
) -> Figure:
    """A row per layer, a panel per head: how much each query, from top to bottom, takes from each key. White is 0."""
    layers, heads = weights.shape[:2]
    side = 0.16 * max(len(keys), 12) + 0.5
    figure = Figure(figsize=(side * heads, side * layers + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for layer, row in enumerate(figure.subplots(layers, heads, squeeze=False)):
        for head, axes in enumerate(row):
            axes.imshow(weights[layer, head].detach().cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"layer {layer}, head {head}", fontsize=8)
            axes.set_xticks(range(len(keys)), keys, fontsize=7, family="monospace")
            axes.set_yticks(range(len(queries)), queries, fontsize=7, family="monospace")
            axes.tick_params(length=0)
    figure.supxlabel("looked at", fontsize=9)
    figure.supylabel("looking", fontsize=9)
    return figure


def heat_maps(panels: Mapping[str, Float[Tensor, "_ _"]], *, xlabels: Sequence[str], ylabels: Sequence[str]) -> Figure:
    """A matrix per title, red above and blue below a white zero, each on its own scale."""
    figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
    for axes, (title, matrix), xlabel, ylabel in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), xlabels, ylabels, strict=True
    ):
        limit = float(matrix.abs().max()) or 1.0
        scale = ("RdBu_r", -limit) if matrix.min() < 0 else ("Reds", 0.0)
        shades = dict(zip(("cmap", "vmin"), scale, strict=True))
        drawn = axes.imshow(matrix.detach().cpu().numpy(), vmax=limit, aspect="auto", **shades)
        figure.colorbar(drawn, ax=axes, shrink=0.8)
        axes.set_title(title, fontsize=9)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def _pixels(image: Float[Tensor, "channels height width"]) -> numpy.ndarray:
    """From 0, its least value, to 1, its greatest; rows of grey or colour, as imshow takes them."""
    scaled = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
    return scaled.detach().cpu().movedim(0, -1).squeeze(-1).numpy()


class Drawn(NamedTuple):
    """A box over an image."""

    box: Sequence[float]
    """(x1, y1, x2, y2) in pixels"""
    text: str
    colour: str
    dashed: bool = False


def boxes(
    images: Float[Tensor, "images channels height width"],
    drawn: Sequence[Sequence[Drawn]],
    titles: Sequence[str] = (),
    *,
    columns: int,
    title: str = "",
) -> Figure:
    """Images in rows, one channel in greys on paper, three in colour, each on its own scale; over each its boxes."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, (2.1 if titles else 1.9) * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    height, width = images.shape[2:]
    for axes in grid.flat:
        axes.axis("off")
    for i, (axes, image) in enumerate(zip(grid.flat, images.detach().cpu(), strict=False)):
        axes.imshow(_pixels(image), cmap="gray_r", extent=(0, width, height, 0))
        for (x1, y1, x2, y2), text, colour, dashed in drawn[i]:
            outline = [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]
            axes.plot(*outline, "--" if dashed else "-", color=colour, linewidth=1.3)
            paper = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            place = {"x": max(x1, 0), "y": max(y1, 0), "va": "top", "clip_on": True}
            if x1 > 0.6 * width:  # else its text would leave the image
                place |= {"x": min(x2, width), "ha": "right"}
            if dashed and y2 <= 0.9 * height:  # where boxes of both kinds coincide, so do not their texts
                place["y"] = y2
            elif y1 > 0.1 * height:
                place["va"] = "bottom"
            if text:
                axes.text(s=text, color=colour, fontsize=7, bbox=paper, **place)
        axes.set(xlim=(0, width), ylim=(height, 0))
        if titles:
            axes.set_title(titles[i], fontsize=8)
    return figure


def heat_over(
    image: Float[Tensor, "channels height width"], heat: Float[Tensor, "maps rows columns"], titles: Sequence[str]
) -> Figure:
    """The image, then each map of heat from 0 to 1 laid over it."""
    figure = Figure(figsize=(2.6 * (len(heat) + 1), 2.9), layout="constrained")
    panels = figure.subplots(1, len(heat) + 1)
    frame = (0, image.shape[2], image.shape[1], 0)
    shown = None
    for i, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        axes.imshow(_pixels(image), cmap="gray_r", extent=frame)
        if i:
            shown = axes.imshow(heat[i - 1].cpu().numpy(), cmap="inferno", alpha=0.65, vmin=0, vmax=1, extent=frame)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    if shown:
        figure.colorbar(shown, ax=panels, shrink=0.8, label="heat")
    return figure


def confusion(matrix: Int[Tensor, "classes classes"], classes: Sequence[str]) -> Figure:
    """Rows are targets, columns predictions; the shade leaves out the diagonal, so that mistakes show."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    mistakes = matrix * ~torch.eye(len(classes), dtype=torch.bool)
    # twice the scale, so that the counts stay legible
    axes.imshow(mistakes.numpy(), cmap="Reds", vmax=2 * max(1, int(mistakes.max())))
    for row, counts in enumerate(matrix.tolist()):
        for column, count in enumerate(counts):
            if count:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8)
    axes.set(xlabel="predicted", ylabel="target", xticks=range(len(classes)), yticks=range(len(classes)))
    axes.set_xticklabels(classes)
    axes.set_yticklabels(classes)
    return figure


def photo_grid(
    images: Float[Tensor, "images 3 height width"], titles: Sequence[str], *, columns: int = 4, title: str = ""
) -> Figure:
    """Photographs in rows, each from its own least value to its greatest."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 1.9, rows * 2.3 + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, name in zip(grid.flat, images.detach().cpu(), titles, strict=False):
        axes.imshow(_pixels(image))
        axes.set_title(name, fontsize=8)
    return figure
