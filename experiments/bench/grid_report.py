"""Time the networks of the grid in turns, print them, draw them, and check that no nn.Module wins."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

from experiments.bench.report import machine, times
from experiments.bench.timing import Timings, measure
from experiments.bench.workloads import GRID
from experiments.shared import cli, show, strict_json

OURS, JAX = "jit, donated", "jax.jit"
MODULES = (
    "nn.Module, fused",
    "nn.Module, fused, NHWC",
    "nn.Module, compiled",
    "nn.Module, compiled, NHWC",
    "nn.Module, step compiled",
)


class Raced(NamedTuple):
    """A network, the fastest way to write it with nn.Module, and that way's time over ours."""

    number: int
    network: str
    timings: Timings
    fastest: str
    ratio: float
    jax: float | None
    """the time of jax.jit over ours; None where JAX is not installed"""


def race(
    count: int, rounds: int, seed: int, out: Path, flags: Sequence[str], json: Path | None = None
) -> list[cli.Check]:
    """Time so many networks; check that ours is at least as fast on nearly all of them."""
    load = os.getloadavg()[0]
    raced = [result for index in range(count) if (result := time_network(seed, index, rounds, flags))]
    if not raced:
        raise cli.RunError("no network could be timed")
    rows = [
        (str(r.number), r.network, f"{1e3 * r.timings[_task(seed, r.number, OURS)].median:.3g}", f"{r.ratio:.2f}×",
         r.fastest.removeprefix("nn.Module, "), f"{r.jax:.2f}×" if r.jax else "-")
        for r in raced
    ]  # fmt: skip
    show.table(
        f"The grid of seed {seed}: {len(raced)} networks drawn at random, the fastest nn.Module's time over ours",
        ("", "network", "ours, ms", "ratio", "fastest module", JAX),
        rows,
    )
    draw_grid(raced, seed, out / "grid.png")
    for file in [out / "grid.json", *([json] if json else [])]:
        save(file, raced, seed, load)
    ratios, jax = [r.ratio for r in raced], [r.jax for r in raced if r.jax]
    checks = [
        cli.check("networks on which ours is at least as fast, share", sum(r >= 1 for r in ratios) / count, ">=", 0.95),
        cli.check("the least ratio", min(ratios), ">=", 0.9),
        cli.check("the median ratio", median(ratios), ">=", 1.1),
    ]
    return checks + ([cli.check("the median time of jax.jit over ours", median(jax), ">=", 1.0)] if jax else [])


def save(file: Path, raced: Sequence[Raced], seed: int, load: float) -> None:
    """Write every number and the machine to a file, which `--compare` reads."""
    from fn.files import write_atomic  # here, not above: what it imports would hold up --help

    figures = {
        f"{GRID}{seed} {r.number}": {"network": r.network, "fastest_module": r.fastest, "ratio": r.ratio}
        | {"jax_ratio": r.jax, "ways": {way: times(timing) for (_, way), timing in r.timings.items()}}
        for r in raced
    }
    versions = [timing.versions for r in raced for timing in r.timings.values()]
    numbers = {"seed": seed, "machine": machine(versions, load), "workloads": figures}
    write_atomic(file, strict_json.dumps(numbers, indent=2) + "\n")


def _task(seed: int, index: int, way: str) -> tuple[str, str]:
    return f"{GRID}{seed} {index}", way


def time_network(seed: int, index: int, rounds: int, flags: Sequence[str]) -> Raced | None:
    """Return the times of all ways to train a network, which take turns; None without ours or any module."""
    from experiments.bench import grid  # here, not above: it imports torch

    network = grid.draw(seed, index)
    ways = [OURS, *(way for way in MODULES if network.convs or "NHWC" not in way)]
    ways += [JAX] if find_spec("jax") else []
    timings = measure([_task(seed, index, way) for way in ways], rounds, *flags)
    modules = {way: timing for (_, way), timing in timings.items() if way in MODULES}
    ours = timings.get(_task(seed, index, OURS))
    if ours is None or not modules:
        return None
    fastest = min(modules, key=lambda way: modules[way].median)
    jax = timings.get(_task(seed, index, JAX))
    ratios = modules[fastest].over(ours), jax.over(ours) if jax else None
    return Raced(index, str(network), timings, fastest, *ratios)


@show.picture
def draw_grid(raced: Sequence[Raced], seed: int, path: Path) -> None:
    """Draw a bar per network, the slowest of ours at the top."""
    from matplotlib.figure import Figure

    from fn import draw

    ordered = sorted(raced, key=lambda r: r.ratio)
    figure = Figure(figsize=(9, 1.6 + 0.3 * len(ordered)), layout="constrained")
    wins = sum(r.ratio >= 1 for r in ordered)
    draw.set_title(
        figure, f"The fastest nn.Module's time over ours: right of 1 ours is faster, on {wins} of {len(ordered)}"
    )
    axes = figure.subplots()
    colours = [draw.color("ours" if r.ratio >= 1 else "others") for r in ordered]
    names = [r.network if len(r.network) <= 60 else r.network[:59] + "…" for r in ordered]
    bars = axes.barh([f"{name} [{r.number}]" for name, r in zip(names, ordered, strict=True)],
                     [r.ratio for r in ordered], color=colours)  # fmt: skip
    labels = [f"{r.ratio:.2f}" + (f"; jax.jit {r.jax:.2f}" if r.jax else "") for r in ordered]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.axvline(1, color=draw.color("ink"), linewidth=1)
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set(xlabel=f"times ours; networks of seed {seed}", xlim=(0, 1.35 * ordered[-1].ratio))
    axes.spines[["top", "right"]].set_visible(False)
    show.save(figure, path)
