"""Draw the cost of a collective, and where many processes pay."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.shared import show
from experiments.shared.collectives import NCCL, SIZES, Costs, Times, nccl_cost, pays_from
from fn import draw

PARAMETERS = [10.0**k for k in range(3, 11)]


@show.picture
def draw_costs(
    times: Mapping[int, Times], costs: Costs, steps: Mapping[str, tuple[int, list[float]]], path: Path
) -> None:
    """Draw the time of each collective over its size, measured and fitted; and from which compute on processes pay."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    alpha, beta = costs["all_reduce", 4]
    title = f"A collective takes α + β·bytes: all_reduce of 4 processes here {1e3 * alpha:.2g} ms and "
    title += f"{1e-6 / beta:,.0f} MB/s. Right: above its line, W processes are at least W/2 times as fast as one."
    draw.set_title(figure, title)
    left, right = figure.subplots(1, 2)
    _draw_times(left, times, costs)
    _draw_where_it_pays(right, costs, steps)
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    show.save(figure, path)


def _draw_times(axes: Axes, times: Mapping[int, Times], costs: Costs) -> None:
    hues = draw.colors(name for name, _ in costs)
    for (name, n), (alpha, beta) in costs.items():
        style = {"color": hues[name], "linestyle": "-" if n == max(times) else "--", "linewidth": 1.5}
        axes.plot(SIZES, [1e3 * (alpha + beta * size) for size in SIZES], label=f"{name}, {n} processes", **style)
        axes.plot(SIZES, [1e3 * times[n][name][size] for size in SIZES], "o", color=hues[name], markersize=4)
    axes.set(xlabel="bytes that each process gives", ylabel="ms: measured (dots), α + β·bytes (lines)")


def _draw_where_it_pays(axes: Axes, costs: Costs, steps: Mapping[str, tuple[int, list[float]]]) -> None:
    lines = {f"gloo here, W = {n}": (n, costs["all_reduce", n]) for n in (2, 4)}
    lines |= {f"NCCL, W = {n} H100": (n, nccl_cost(n)) for n in NCCL}
    hues = draw.colors([*lines, *steps])
    for name, (n, cost) in lines.items():
        needed = [1e3 * pays_from(n, cost, 4 * parameters) for parameters in PARAMETERS]
        axes.plot(PARAMETERS, needed, color=hues[name], linewidth=1.5, label=name)
    for name, (parameters, seconds) in steps.items():
        axes.plot([parameters], [1e3 * seconds[0]], "*", color=hues[name], markersize=11, label=name)
    axes.set(xlabel="parameters, in float32", ylabel="ms of compute in a step on one device")
