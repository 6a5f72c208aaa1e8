"""Matrices as colors: attention, heat maps, confusion."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from fn.draw.figures import plain, readable, set_title
from fn.draw.images import pixels
from fn.draw.lines import whole_steps
from fn.draw.palette import SHADES

WIDEST = 9.0
"""inches: heads that need more stand in several rows"""


def attention_maps(
    weights: Float[Tensor, "layers heads queries keys"], queries: Sequence[str], keys: Sequence[str], *, title: str = ""
) -> Figure:
    """Draw the attention weights, a panel per head, a row or more per layer; queries are rows, white is 0."""
    layers, heads = weights.shape[:2]
    side = 0.16 * max(len(keys), 12) + 0.5
    columns = max(1, min(heads, int(WIDEST / side)))
    rows = -(-heads // columns)  # of each layer
    figure = Figure(figsize=(side * columns, side * layers * rows + 0.3), layout="constrained")
    set_title(figure, title)
    grid = figure.subplots(layers * rows, columns, squeeze=False).reshape(layers, rows * columns)
    for layer, row in enumerate(grid):
        for axes in row[heads:]:
            axes.remove()
        for head, axes in enumerate(row[:heads]):
            axes.imshow(weights[layer, head].detach().cpu().numpy(), cmap=SHADES["attention"], vmin=0, vmax=1)
            axes.set_title(f"layer {layer}, head {head}", fontsize=readable(side * columns))
            axes.set_xticks(range(len(keys)), list(map(plain, keys)), fontsize=8, family="monospace")
            axes.set_yticks(range(len(queries)), list(map(plain, queries)), fontsize=8, family="monospace")
            axes.tick_params(length=0)
    figure.supxlabel("key", fontsize=9)
    figure.supylabel("query", fontsize=9)
    return figure


def heat_maps(
    panels: Mapping[str, Float[Tensor, "_ _"]], *, xlabels: Sequence[str], ylabels: Sequence[str], title: str = ""
) -> Figure:
    """Draw a matrix per name, each on its own scale: red is positive, blue negative, white zero."""
    width = 3.4 * len(panels)
    figure = Figure(figsize=(width, 3.4), layout="constrained")
    set_title(figure, title)
    for axes, (name, matrix), xlabel, ylabel in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), xlabels, ylabels, strict=True
    ):
        limit = float(matrix.abs().max()) or 1.0
        scale = (SHADES["signed"], -limit) if matrix.min() < 0 else (SHADES["positive"], 0.0)
        shades = dict(zip(("cmap", "vmin"), scale, strict=True))
        drawn = axes.imshow(matrix.detach().cpu().numpy(), vmax=limit, aspect="auto", **shades)
        figure.colorbar(drawn, ax=axes, shrink=0.8)
        axes.set_title(name, fontsize=readable(width))
        axes.set_xlabel(xlabel, fontsize=readable(width))
        axes.set_ylabel(ylabel, fontsize=readable(width))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(whole_steps(5))
    return figure


def heat_over(
    image: Float[Tensor, "channels height width"],
    heat: Float[Tensor, "maps rows columns"],
    titles: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """Draw the image, then the image under each heat map, whose values lie between 0 and 1."""
    figure = Figure(figsize=(2.6 * (len(heat) + 1), 3.2), layout="constrained")
    set_title(figure, title)
    panels = figure.subplots(1, len(heat) + 1)
    frame = (0, image.shape[2], image.shape[1], 0)
    shown = None
    for i, (axes, name) in enumerate(zip(panels, titles, strict=True)):
        axes.imshow(pixels(image), cmap=SHADES["image"], extent=frame)
        if i:
            shown = axes.imshow(
                heat[i - 1].cpu().numpy(), cmap=SHADES["heat"], alpha=0.65, vmin=0, vmax=1, extent=frame
            )
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    if shown:
        figure.colorbar(shown, ax=panels, shrink=0.8, label="heat")
    return figure


def confusion(matrix: Int[Tensor, "classes classes"], classes: Sequence[str], *, title: str = "") -> Figure:
    """Draw a confusion matrix: rows are targets, columns predictions. Only the mistakes are shaded."""
    figure = Figure(figsize=(5, 4.8), layout="constrained")
    set_title(figure, title)
    axes = figure.subplots()
    mistakes = matrix * ~torch.eye(len(classes), dtype=torch.bool)
    # half of the color scale, so that the counts stay legible
    axes.imshow(mistakes.numpy(), cmap=SHADES["positive"], vmax=2 * max(1, int(mistakes.max())))
    for row, counts in enumerate(matrix.tolist()):
        for column, count in enumerate(counts):
            if count:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8)
    axes.set(xlabel="predicted", ylabel="target", xticks=range(len(classes)), yticks=range(len(classes)))
    axes.set_xticklabels(list(map(plain, classes)))
    axes.set_yticklabels(list(map(plain, classes)))
    return figure
