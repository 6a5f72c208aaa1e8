"""Write steps.png, growth.png and bench.json."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.bench.timing import Growth, Result, Timing, Timings
from experiments.shared import cli, show, strict_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@show.picture
def draw_steps(results: Sequence[Result], path: Path) -> None:
    """Draw a bar per way and a panel per workload; ours are blue."""
    from matplotlib.figure import Figure

    from fn import draw

    rows = [len(result.ways) for result in results]
    figure = Figure(figsize=(9, 1.2 * len(rows) + 0.27 * sum(rows)), layout="constrained")
    draw.set_title(figure, "One training step: ours in blue; the shorter the bar, the faster; × is the time over jit's")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, result in zip(panels, results, strict=True):
        _bars(axes, result)
    show.save(figure, path)


def _bars(axes: "Axes", result: Result) -> None:
    from fn import draw

    ways = list(result.ways)
    milliseconds = [1e3 * timing.median for timing in result.ways.values()]
    colours = [draw.color("ours" if way.startswith(("jit", "eager")) else "others") for way in ways]
    bars = axes.barh(ways, milliseconds, color=colours)
    times = [timing.over(result.ways["jit"]) for timing in result.ways.values()]
    labels = [f"{t:.3g} ms, {ratio:.2f}×" for t, ratio in zip(milliseconds, times, strict=True)]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.axvline(1e3 * result.floor, color=draw.color("ink"), linestyle=":", linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds per step; dotted: its products at the peak", title=result.name)
    axes.set(xlim=(0, 1.25 * max(milliseconds)))
    axes.spines[["top", "right"]].set_visible(False)


@show.picture
def draw_growth(results: Sequence[Result], grown: Sequence[Growth], path: Path) -> None:
    """Draw time against batch and width: a line per way, a row of panels per workload."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    from fn import draw

    figure = Figure(figsize=(9, 3.4 * len(results)), layout="constrained")
    draw.set_title(
        figure, "The time of a step grows with batch and width: parallel lines cost the same factor at any size"
    )
    rows = figure.subplots(len(results), 2, squeeze=False, sharey="row")
    for row, result, growth in zip(rows, results, grown, strict=True):
        for axes, (label, timings) in zip(row, growth.items(), strict=True):
            hues = draw.colors(way for way, _ in timings)
            for name in hues:
                line = {n: 1e3 * timing.median for (way, n), timing in timings.items() if way == name}
                axes.loglog(list(line), list(line.values()), "o-", label=name, color=hues[name])
            ticks = sorted({n for _, n in timings})
            axes.set(xlabel=label, title=result.name, xticks=ticks, xticklabels=ticks)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
            axes.grid(alpha=0.25)
        row[0].set_ylabel("milliseconds per step")
        row[0].legend(frameon=False)
    show.save(figure, path)


def save(file: Path, config: cli.Config, results: Sequence[Result], ops: Timings, load: float) -> None:
    """Write every number and the machine to a file."""
    from fn.files import write_atomic

    versions = [timing.versions for result in results for timing in result.ways.values()]
    numbers = {
        "machine": machine(versions, load),
        "workloads": {result.name: _as_json(result) for result in results},
        "ops": {": ".join(task): times(timing) for task, timing in ops.items()},
        "config": {name: value for name, value in cli.as_json(config).items() if name not in ("json", "compare")},
    }
    write_atomic(file, strict_json.dumps(numbers, indent=2) + "\n")


def machine(versions: Sequence[dict[str, str]], load: float) -> dict[str, Any]:
    """Return the processor, the versions of Python and of the libraries, and how busy others kept the machine."""
    found = {"cpu": cpu_name(), "cores": os.cpu_count(), "load_before": load, "python": platform.python_version()}
    return found | {library: number for each in versions for library, number in each.items()}


def times(timing: Timing) -> dict[str, Any]:
    """Return the seconds of each round, and of them the median and the quartiles."""
    return {"median_seconds": timing.median, "quartiles": timing.quartiles, "rounds": timing.seconds}


def _as_json(result: Result) -> dict[str, Any]:
    ways = {
        way: times(timing)
        | {"over_jit": timing.over(result.ways["jit"]), "share_of_peak": result.floor / timing.median}
        | {"peak_bytes": timing.peak_bytes, "seconds_until_ready": timing.ready}
        for way, timing in result.ways.items()
    }
    return {"flop": result.flop, "floor_seconds": result.floor, "fastest_module": result.fastest_module, "ways": ways}


def cpu_name() -> str:
    """Return the model of the processor as Linux names it, or else the platform."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
