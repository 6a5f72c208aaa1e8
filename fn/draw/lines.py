"""Curves over steps, and their spread over seeds."""

from collections.abc import Mapping, Sequence
from itertools import cycle

from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float] | Mapping[int, float]]],
    *,
    xlabel: str = "step",
    log: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw a panel per quantity with a line per name: {"loss": {"train": [...]}}.

    A line is a list of values from step 1 on, or {step: value}, drawn with dots. `log` names the panels with a
    logarithmic axis.
    """
    figure = Figure(figsize=(5 * len(panels), 3.4), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    for axes, (quantity, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        # a dashed line does not hide the line below it
        for style, (name, values) in zip(cycle(["-", "--"]), lines.items(), strict=False):
            if isinstance(values, Mapping):
                axes.plot(list(values), list(values.values()), "o-", label=name, linewidth=1.5, markersize=4)
            else:
                axes.plot(range(1, len(values) + 1), values, style, label=name, linewidth=1.5)
        axes.set(xlabel=xlabel, ylabel=quantity, yscale="log" if quantity in log else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
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
    """Draw the repeats at each x as dots, their mean as a line, and a band of one standard deviation to each side.

    The x axis is logarithmic. `marked` is (x, y, label) of one point, drawn as a star.
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
