"""Time a data-parallel step with 1, 2 and 4 processes, fit its cost, and say where 8 and 64 GPUs pay."""

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.bench.torch_steps import Task, begin
from experiments.shared import cli, show, strict_json
from experiments.shared.collectives import SIZES, Cost, fit, least_seconds, nccl_cost, step_seconds
from experiments.shared.local_processes import in_processes
from fn import draw, tree
from fn.distributed import data_parallel_step, sum_over_processes, to_vector
from fn.files import write_atomic
from fn.optim import adamw
from fn.train import classification_loss, run_key

COUNTS, PARTS = (1, 2, 4), 4
NAMES = ("mlp", "gpt", "cnn")
"""workloads that are timed: a step takes seconds at most"""
GPUS, SHARES = (8, 64), (0.5, 0.9)
H100 = 0.4 * 989e12
"""operations per second: 40 % of the dense bf16 peak in NVIDIA's data sheet of the H100 SXM (1,979 with sparsity)"""


class Timed(NamedTuple):
    seconds: float
    """the least of a step"""
    parameters: int
    digest: str
    """of the parameters after the last step"""


def main(names: Sequence[str], rounds: int, seed: int, out: Path) -> list[cli.Check]:
    """Print what was measured beside the model, draw it, and check that the number of processes changed no bit."""
    steps = {name: [in_processes(time_step, n, name, rounds, seed) for n in COUNTS] for name in names}
    sums = {n: in_processes(time_sums, n)[0] for n in COUNTS if n > 1}
    costs = {n: fit(seconds) for n, seconds in sums.items()}
    firsts = {name: [of[0] for of in by_count] for name, by_count in steps.items()}
    show_steps(firsts, costs)
    show_gpus()
    draw_processes(firsts, costs, out / "processes.png")
    figures = {"cores": os.cpu_count(), "costs": costs, "sums": sums, "steps": firsts}
    write_atomic(out / "processes.json", strict_json.dumps(figures, indent=2) + "\n")
    return [
        cli.check(f"{name}: results of 1, 2, 4 processes", len({one.digest for of in by_count for one in of}), "==", 1)
        for name, by_count in steps.items()
    ]


def time_step(name: str, rounds: int, seed: int) -> Timed:
    """Take steps of a workload, its batch in four parts; every process calls this."""
    start, optimizer = begin(Task(name, "", seed=seed)), adamw(lr=1e-3)
    step = data_parallel_step(partial(classification_loss, apply=start.model.apply), optimizer, parts=PARTS)
    ts, key, seconds = start.ts, run_key(seed), []
    for _ in range(1 + rounds):
        if dist.is_initialized():
            dist.barrier()
        began = time.perf_counter()
        ts, _ = step(ts, start.x, start.y, key=key)
        seconds.append(time.perf_counter() - began)
    content = to_vector(ts.params).numpy().tobytes()
    return Timed(min(seconds[1:]), tree.size(ts.params), sha256(content).hexdigest())


def time_sums() -> dict[int, float]:
    """Return bytes -> seconds of the sum over processes that a step takes; every process calls this."""
    return {size: least_seconds(sum_over_processes, size) for size in SIZES}


def modelled(timed: Sequence[Timed], costs: Mapping[int, Cost]) -> list[float]:
    """Return compute / W + α + β · bytes for each number of processes, from the time of one."""
    alone, size, cores = timed[0].seconds, 4 * timed[0].parameters, os.cpu_count() or 1
    return [alone, *(step_seconds(alone, n, costs[n], size, cores=cores) for n in COUNTS if n > 1)]


def tokens_per_gpu(parameters: float, gpus: int, share: float) -> float:
    """Return from how many tokens on each GPU on W of them are share · W times as fast as one.

    A token takes 6 operations per parameter, forward and backward (Kaplan et al. 2020). The gradients, 4 bytes each,
    are summed after that, not meanwhile. `sum_over_processes` sends as much as NCCL's ring: each number twice.

    >>> round(tokens_per_gpu(1e9, 8, 0.5)), round(tokens_per_gpu(1e9, 64, 0.9))
    (963, 12470)
    """
    alpha, beta = nccl_cost(gpus)
    return share / (1 - share) * (alpha + beta * 4 * parameters) * H100 / (6 * parameters)


def show_steps(steps: Mapping[str, list[Timed]], costs: Mapping[int, Cost]) -> None:
    fits = ", ".join(f"{n}: {1e3 * a:.2g} ms + {1e-6 / b:,.0f} MB/s" for n, (a, b) in costs.items())
    rows = []
    for name, timed in steps.items():
        for n, one, model in zip(COUNTS, timed, modelled(timed, costs), strict=True):
            faster = f"{timed[0].seconds / one.seconds:.2f}×"
            rows.append((name, f"{one.parameters:,}", f"{n}", f"{1e3 * one.seconds:.3g}", f"{1e3 * model:.3g}", faster))
    show.table(
        f"A step in {PARTS} parts, eagerly, {os.cpu_count()} cores; sum over processes, {fits}",
        ("", "parameters", "processes W", "ms", "compute/W + α + β·bytes", "one / W"),
        rows,
    )


def show_gpus() -> None:
    rows = [
        (f"{parameters:,.0f}", *(f"{tokens_per_gpu(parameters, n, share):,.0f}" for n in GPUS for share in SHARES))
        for parameters in (1e6, 1e8, 1e10)
    ]
    columns = [f"{n} are {share * n:g}× one" for n in GPUS for share in SHARES]
    show.table("Tokens on each H100 from which on they pay, by NCCL's figures", ("parameters", *columns), rows)


@show.picture
def draw_processes(steps: Mapping[str, list[Timed]], costs: Mapping[int, Cost], path: Path) -> None:
    """Draw each step's time over the number of processes, measured and modelled; and from how many tokens GPUs pay."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    half = [tokens_per_gpu(1e9, n, 0.5) for n in GPUS]
    title = f"Left: {os.cpu_count()} cores. Right: with 10⁹ parameters 8 GPUs are 4 times as fast as one from "
    draw.set_title(figure, title + f"{half[0]:,.0f} tokens on each, 64 are 32 times as fast from {half[1]:,.0f}.")
    left, right = figure.subplots(1, 2)
    hues = draw.colors(steps)
    for name, timed in steps.items():
        left.plot(COUNTS, [1e3 * one.seconds for one in timed], "o", color=hues[name], label=name)
        left.plot(COUNTS, [1e3 * t for t in modelled(timed, costs)], color=hues[name], linewidth=1.5)
    left.set(xlabel="processes W", ylabel="ms a step: dots measured, lines the model")
    left.set(xscale="log", yscale="log", xticks=COUNTS, xticklabels=COUNTS)
    left.minorticks_off()
    _draw_gpus(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    show.save(figure, path)


def _draw_gpus(axes: Axes) -> None:
    parameters, hues = [10.0**k for k in range(5, 12)], draw.colors(map(str, GPUS))
    for n in GPUS:
        for share, style in zip(SHARES, ("-", "--"), strict=True):
            tokens = [tokens_per_gpu(p, n, share) for p in parameters]
            label = f"{n} GPUs, {share * n:g} times as fast as one"
            axes.plot(parameters, tokens, style, color=hues[str(n)], linewidth=1.5, label=label)
    axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="tokens on each H100 in a step")
