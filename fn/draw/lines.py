"""Curves over steps, and their spread over seeds."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fn.domains import Count, Positives
from fn.draw.figures import set_title
from fn.draw.palette import color, colors

ROW = 2
"""panels side by side: more would be too small to read"""


class Seeds(NamedTuple):
    """The same curve of several seeds: drawn as their mean, in a band from the least to the greatest."""

    runs: Sequence[Sequence[float] | Mapping[int, float]]
    """values from step 1 on, or {step: value}; a run that ended before the others keeps its last value"""


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float] | Mapping[int, float] | Seeds]],
    *,
    xlabel: str = "step",
    log: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw a panel per quantity with a line per name: {"loss": {"train": [...]}}.

    A line is a list of values from step 1 on, or {step: value}, drawn with dots, or `Seeds`. `log` names the panels
    with a logarithmic axis. A cross says where a line stops being finite.
    """
    columns = min(ROW, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows), layout="constrained")
    set_title(figure, title)
    hues = colors(name for lines in panels.values() for name in lines)
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (quantity, lines) in zip(grid, panels.items(), strict=False):
        axes.set(xlabel=xlabel, ylabel=quantity, yscale="log" if quantity in log else "linear")
        # a dashed line does not hide the line below it
        for style, (name, values) in zip(cycle(["-", "--"]), lines.items(), strict=False):
            _line(axes, name, values, hues[name], style)
        axes.xaxis.set_major_locator(whole_steps())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[1] and (
            len(lines) > 1 or any(isinstance(line, Seeds) for line in lines.values())
        ):
            counts = [len(line.runs) for line in lines.values() if isinstance(line, Seeds) and len(line.runs) > 1]
            said = f"mean of {max(counts)} seeds, band from least to greatest" if counts else None
            axes.legend(frameon=False, title=said, title_fontsize=8, alignment="left")
    return figure


def whole_steps(most: Count = 9) -> MaxNLocator:
    """Return ticks at whole numbers alone; `min_n_ticks` keeps a single step from being drawn as 0.98, 1.00, 1.02."""
    return MaxNLocator(most, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def _line(axes: Axes, name: str, values: Sequence[float] | Mapping[int, float] | Seeds, hue: str, style: str) -> None:
    dotted = isinstance(values, Mapping)
    if isinstance(values, Seeds) and len(values.runs) > 1:
        dotted = isinstance(values.runs[0], Mapping)
        steps, (least, mean, greatest) = band(values)
        axes.fill_between(steps, least, greatest, color=hue, alpha=0.2, linewidth=0)
        axes.plot(steps, least, color=hue, alpha=0.4, linewidth=0.6)
        axes.plot(steps, greatest, color=hue, alpha=0.4, linewidth=0.6)
        name = name or "mean"
        values = dict(zip(steps, mean, strict=True))
    elif isinstance(values, Seeds):
        [values] = values.runs
        dotted = isinstance(values, Mapping)
    points = values if isinstance(values, Mapping) else dict(enumerate(values, 1))
    dotted |= len(points) == 1  # which no line would show
    marks: dict[str, Any] = {"marker": "o", "markersize": 4} if dotted else {"linestyle": style}
    axes.plot(list(points), list(points.values()), color=hue, label=name, linewidth=1.5, **marks)
    _mark_not_finite(axes, points, hue)


def band(seeds: Seeds) -> tuple[list[int], tuple[list[float], list[float], list[float]]]:
    """Return (steps, (least, mean, greatest)) over the runs that have a value there; a NaN in one makes the mean NaN.

    >>> band(Seeds([[1.0, 2.0], [3.0]]))
    ([1, 2], ([1.0, 2.0], [2.0, 2.5], [3.0, 3.0]))
    """
    longest = max(map(len, seeds.runs))
    runs = [
        run if isinstance(run, Mapping) else dict(enumerate([*run, *[run[-1]] * (longest - len(run))], 1))
        for run in seeds.runs
        if run
    ]
    steps = sorted({step for run in runs for step in run})
    at = [[run[step] for run in runs if step in run] for step in steps]
    finite = [[v for v in values if math.isfinite(v)] or [math.nan] for values in at]
    return steps, (list(map(min, finite)), [sum(values) / len(values) for values in at], list(map(max, finite)))


def _mark_not_finite(axes: Axes, points: Mapping[int, float], hue: str) -> None:
    """Draw a cross at the height of the last finite value, where the line stops being finite; the first says so."""
    if any(not math.isfinite(value) for value in points.values()):  # the axis shows every step, finite or not
        axes.update_datalim([(step, 1.0) for step in points], updatey=False)
        axes.autoscale_view()
    last, marked = None, False
    for step, value in points.items():
        stops = not math.isfinite(value) and (last is None or math.isfinite(last[1]))
        if stops:
            place = (step, last[1]) if last else (step, 0.5)
            over = axes.transData if last else axes.get_xaxis_transform()
            axes.scatter(
                *place, marker="X", s=60, color=hue, edgecolor=color("paper"), zorder=3, clip_on=False, transform=over
            )
            if not marked:
                word = "NaN" if math.isnan(value) else "infinite"
                options = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 8}
                axes.annotate(f"{word} at {step}", place, xycoords=over, color=hue, annotation_clip=False, **options)
                marked = True
        last = (step, value)


def spread(
    x: Positives,
    values: Float[Tensor, "x repeats"],
    *,
    xlabel: str,
    ylabel: str,
    marked: tuple[float, float, str],
    title: str = "",
) -> Figure:
    """Draw the repeats at each x as dots, their mean as a line, and a band of one standard deviation to each side.

    The x axis is logarithmic. `marked` is (x, y, label) of one point, drawn as a star. ValueError unless x has a place
    per row of values.
    """
    if len(x) != len(values):
        raise ValueError(f"spread: x has {len(x)} places for {len(values)} rows of values")
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    set_title(figure, title)
    axes = figure.subplots()
    mean, deviation = values.mean(dim=1), values.std(dim=1, correction=min(1, values.shape[1] - 1))
    hue = color("mean")
    axes.fill_between(x, mean - deviation, mean + deviation, color=hue, alpha=0.2, linewidth=0)
    axes.plot(x, mean, color=hue, linewidth=1.5, label="mean ± standard deviation")
    axes.plot(x, values, ".", color=color("single runs"), markersize=4)
    axes.plot(*marked[:2], "*", color=color("best"), markersize=11, label=marked[2])
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure
