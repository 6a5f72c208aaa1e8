"""Measure the cost of a collective: its time over sizes, the line t = α + β·bytes, and where processes pay by it."""

import os
import time
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.shared import show

SIZES = tuple(2**k for k in (12, 15, 18, 20, 22))
"""in bytes, of the tensor that each process gives"""
REPEATS = 15
"""of which the least time counts: the others waited for something else"""
Times = Mapping[str, Mapping[int, float]]
"""collective -> bytes -> seconds"""
Cost = tuple[float, float]
"""(α in seconds, β in seconds per byte)"""
Costs = Mapping[tuple[str, int], Cost]
"""of each (collective, number of processes)"""


def all_gather(x: Tensor) -> None:
    dist.all_gather_into_tensor(x.new_empty(dist.get_world_size() * x.numel()), x)


def broadcast(x: Tensor) -> None:
    dist.broadcast(x, src=0)


COLLECTIVES: dict[str, Callable[[Tensor], object]] = {
    "all_gather": all_gather,
    "all_reduce": dist.all_reduce,
    "broadcast": broadcast,
}


def time_collectives() -> dict[str, dict[int, float]]:
    """Return the least time of each collective for each size, in this process; every process calls this."""
    return {name: {size: least_seconds(f, size) for size in SIZES} for name, f in COLLECTIVES.items()}


def least_seconds(f: Callable[[Tensor], object], size: int) -> float:
    x, seconds = torch.zeros(size // 4), []
    for _ in range(REPEATS):
        dist.barrier()
        began = time.perf_counter()
        f(x)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def fit(seconds: Mapping[int, float]) -> Cost:
    """Return (α, β) of t = α + β·bytes with the least sum of squares of relative errors.

    >>> alpha, beta = fit({1000: 3.0, 2000: 4.0, 4000: 6.0})
    >>> round(alpha, 6), round(beta, 6)
    (2.0, 0.001)
    """
    t = torch.tensor(list(seconds.values()), dtype=torch.float64)
    size = torch.tensor(list(seconds), dtype=torch.float64)
    rows = torch.stack([1 / t, size / t], dim=1)
    alpha, beta = torch.linalg.lstsq(rows, torch.ones(len(t), 1, dtype=torch.float64)).solution.flatten().tolist()
    return alpha, beta


NCCL = {8: (11.7e-6, 480e9), 64: (47.5e-6, 376e9)}
"""number of H100 GPUs -> (α in seconds, bus bandwidth in bytes per second) of an all_reduce.

α is that of a tree in NCCL's own model, github.com/NVIDIA/nccl src/graph/tuning.cc: 4.4 µs + 2·7·0.52, on 8 machines
4.4 µs + 2·(7·0.52·1.8 + 3·5.0). The bandwidths are its maintainers', github.com/NVIDIA/nccl-tests: 480 GB/s by NVLink,
issues/212; 47 GB/s for each network card of 400 Gb/s, of which a machine has 8, issues/290.
"""


def nccl_cost(gpus: int) -> Cost:
    """Return (α, β) of an all_reduce: a ring moves 2·(W-1)/W times the bytes, nccl-tests doc/PERFORMANCE.md.

    >>> alpha, beta = nccl_cost(8)
    >>> f"{1e3 * (alpha + beta * 1e9):.2f} ms for 1 GB"
    '3.66 ms for 1 GB'
    """
    alpha, bandwidth = NCCL[gpus]
    return alpha, 2 * (gpus - 1) / gpus / bandwidth


def step_seconds(compute: float, processes: int, cost: Cost, size: float, *, cores: float = float("inf")) -> float:
    """Return compute/W + α + β·bytes, the time of a step; processes beyond the cores share them.

    >>> step_seconds(1.0, 4, (0.1, 0.001), 50)
    0.4
    """
    alpha, beta = cost
    return compute / min(processes, cores) + alpha + beta * size


def pays_from(processes: int, cost: Cost, size: float) -> float:
    """Return the seconds of compute of one process from which on W processes are W/2 times as fast: W·(α + β·bytes).

    >>> pays_from(4, (0.1, 0.001), 50)
    0.6
    """
    alpha, beta = cost
    return processes * (alpha + beta * size)


def show_costs(times: Mapping[int, Times], costs: Costs) -> None:
    """Print α and 1/β of each collective, and the time of the largest size."""
    most = max(SIZES)
    rows = [
        (name, f"{n}", f"{1e3 * alpha:.2f}", f"{1e-6 / beta:,.0f}", f"{1e3 * times[n][name][most]:.1f}")
        for (name, n), (alpha, beta) in costs.items()
    ]
    show.table(
        "t = α + β·bytes, gloo on this machine",
        ("collective", "processes", "α in ms", "1/β in MB/s", f"{most >> 20} MB in ms"),
        rows,
    )


def show_model(steps: Mapping[str, tuple[int, list[float]]], costs: Costs) -> None:
    """Print the measured time of a step beside that of the model, for {network: (parameters, seconds by 1, 2, 4)}."""
    rows, cores = [], os.cpu_count() or 1
    for name, (parameters, seconds) in steps.items():
        for n, measured in zip((1, 2, 4), seconds, strict=True):
            model = seconds[0]
            if n > 1:
                model = step_seconds(seconds[0], n, costs["all_gather", n], 4 * parameters, cores=cores)
            needed = f"{1e3 * pays_from(n, costs['all_gather', n], 4 * parameters):.1f}" if n > 1 else "-"
            rows.append((name, f"{n}", f"{1e3 * measured:.1f}", f"{1e3 * model:.1f}", needed))
    show.table(
        f"A step, in ms: measured, and compute/W + α + β·bytes of an all_gather, on {cores} cores",
        ("network", "processes W", "measured", "model", "compute from which it is W/2 times as fast"),
        rows,
    )
