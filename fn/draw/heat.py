"""Matrices as colors: attention, heat maps, confusion."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fn.draw.figures import plain
from fn.draw.images import pixels


def attention_maps(
    weights: Float[Tensor, "layers heads queries keys"], queries: Sequence[str], keys: Sequence[str], *, title: str = ""
) -> Figure:
    """Draw the attention weights, a row of panels per layer, a panel per head; queries are rows, white is 0."""
    layers, heads = weights.shape[:2]
    side = 0.16 * max(len(keys), 12) + 0.5
    figure = Figure(figsize=(side * heads, side * layers + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for layer, row in enumerate(figure.subplots(layers, heads, squeeze=False)):
        for head, axes in enumerate(row):
            axes.imshow(weights[layer, head].detach().cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
            axes.set_title(f"layer {layer}, head {head}", fontsize=8)
            axes.set_xticks(range(len(keys)), list(map(plain, keys)), fontsize=7, family="monospace")
            axes.set_yticks(range(len(queries)), list(map(plain, queries)), fontsize=7, family="monospace")
            axes.tick_params(length=0)
    figure.supxlabel("key", fontsize=9)
    figure.supylabel("query", fontsize=9)
    return figure


def heat_maps(panels: Mapping[str, Float[Tensor, "_ _"]], *, xlabels: Sequence[str], ylabels: Sequence[str]) -> Figure:
    """Draw a matrix per title, each on its own scale: red is positive, blue negative, white zero."""
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


def heat_over(
    image: Float[Tensor, "channels height width"], heat: Float[Tensor, "maps rows columns"], titles: Sequence[str]
) -> Figure:
    """Draw the image, then the image under each heat map, whose values lie between 0 and 1."""
    figure = Figure(figsize=(2.6 * (len(heat) + 1), 2.9), layout="constrained")
    panels = figure.subplots(1, len(heat) + 1)
    frame = (0, image.shape[2], image.shape[1], 0)
    shown = None
    for i, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        axes.imshow(pixels(image), cmap="gray_r", extent=frame)
        if i:
            shown = axes.imshow(heat[i - 1].cpu().numpy(), cmap="inferno", alpha=0.65, vmin=0, vmax=1, extent=frame)
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    if shown:
        figure.colorbar(shown, ax=panels, shrink=0.8, label="heat")
    return figure


def confusion(matrix: Int[Tensor, "classes classes"], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: rows are targets, columns predictions. Only the mistakes are shaded."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    mistakes = matrix * ~torch.eye(len(classes), dtype=torch.bool)
    # half of the color scale, so that the counts stay legible
    axes.imshow(mistakes.numpy(), cmap="Reds", vmax=2 * max(1, int(mistakes.max())))
    for row, counts in enumerate(matrix.tolist()):
        for column, count in enumerate(counts):
            if count:
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8)
    axes.set(xlabel="predicted", ylabel="target", xticks=range(len(classes)), yticks=range(len(classes)))
    axes.set_xticklabels(list(map(plain, classes)))
    axes.set_yticklabels(list(map(plain, classes)))
    return figure
