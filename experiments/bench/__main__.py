"""Time and memory of one training step: ours, eager and compiled, beside nn.Module, jax.jit and Equinox.

Draws steps.png and writes the numbers to bench.json. workloads.py lists what is trained; torch_steps.py and
jax_steps.py hold the ways to write the step.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import tyro

from experiments.bench import report
from experiments.bench.compare import compare, require_writable
from experiments.bench.grid_report import race
from experiments.bench.timing import Growth, Result, Timing, Timings, measure
from experiments.bench.workloads import PEAK, WORKLOADS, TaskName
from experiments.shared import cli, show

if TYPE_CHECKING:
    import torch

BATCHES, GROWTH_ROUNDS = (16, 64, 256, 1024), 9
OPS: dict[TaskName, TaskName] = {  # each task, and the one that it is compared with
    ("convolution", "native"): ("convolution", "native"),
    ("convolution", "unfold"): ("convolution", "native"),
    ("NMS", "torchvision"): ("NMS", "torchvision"),
    ("NMS", "written out"): ("NMS", "torchvision"),
    ("NMS of 10 classes", "torchvision"): ("NMS of 10 classes", "torchvision"),
    ("NMS of 10 classes", "written out"): ("NMS of 10 classes", "torchvision"),
    ("loader", "by batch"): ("loader", "by batch"),
    ("loader", "DataLoader"): ("loader", "by batch"),
}

if TYPE_CHECKING:
    WorkloadName: TypeAlias = str
else:  # so that --help lists the names, and another one is refused
    WorkloadName = Literal[tuple(WORKLOADS)]


@dataclass(frozen=True)
class Config(cli.Config):
    out: Path = Path("runs/bench")
    """the folder for steps.png, bench.json and summary.json"""
    workloads: tuple[WorkloadName, ...] = tuple(WORKLOADS)
    """the models to train"""
    rounds: cli.Count = 15
    """turns of every way"""
    processes: bool = False
    """time a step shared by 1, 2 and 4 processes instead (mlp, gpt, cnn), and say where 8 and 64 GPUs pay"""
    growth: bool = False
    """draw growth.png too: time against batch and width, which compiles for minutes"""
    grid: cli.MaybeCount = None
    """time so many networks drawn at random by --seed instead, ours beside the fastest nn.Module: two minutes each"""
    json: cli.MaybePath = None
    """a file to keep the figures in, besides bench.json or grid.json"""
    compare: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="FILE FILE", help_behavior_hint="")] = None
    """two files of --json, before and after, to set side by side; nothing is timed"""


def parse(config_type: type[Config], argv: Sequence[str]) -> Config:
    """Return the config from the flags; compare two files and exit, where that is asked for."""
    config = cli.parse(config_type, argv)
    if config.compare:
        compare(*config.compare)
        sys.exit(0)
    if config.grid and (config.processes or config.growth or config.workloads != tuple(WORKLOADS)):
        raise cli.UsageError("--grid draws networks of its own: no --workloads, --processes or --growth beside it")
    if config.json:
        require_writable(config.json)
    return config


def main(config: Config, device: "torch.device") -> list[cli.Check]:
    load = os.getloadavg()[0]
    if load > 0.5:
        show.log.print(f"others keep this machine busy (load {load:.1f}): a short step on several threads suffers most")
    if config.processes:
        return time_processes(config)
    flags = ("--device", device.type, "--seed", str(config.seed))
    if config.grid:
        return race(config.grid, config.rounds, config.seed, config.out, flags, config.json)
    results = [time_steps(name, config.rounds, flags) for name in config.workloads]
    ops, checks = time_ops(config.rounds, flags)
    report.draw_steps(results, config.out / "steps.png")
    for file in [config.out / "bench.json", *([config.json] if config.json else [])]:
        report.save(file, config, results, ops, load)
    if config.growth:
        report.draw_growth(results, [grow(result, flags) for result in results], config.out / "growth.png")
    return [check for result in results for check in evaluate(result)] + checks


def time_processes(config: Config) -> list[cli.Check]:
    """Time the step that processes share; they meet on the CPU."""
    from experiments.bench import processes  # here, not above: torch takes seconds, which --help need not wait for

    names = [name for name in config.workloads if name in processes.NAMES]
    if not names:
        raise cli.UsageError(f"--processes times {', '.join(processes.NAMES)}, and none of them is in --workloads")
    if config.device not in ("auto", "cpu"):
        raise cli.UsageError(f"--device {config.device}: the processes meet on the CPU; leave the flag out")
    if config.json:
        raise cli.UsageError("--json keeps the figures of a step; those of --processes are in processes.json of --out")
    return processes.main(names, config.rounds, config.seed, config.out)


def time_steps(name: str, rounds: int, flags: Sequence[str]) -> Result:
    """Time every way to train a workload, and print a table."""
    # here, not above: torch takes seconds, which --help need not wait for
    from experiments.bench import torch_steps, worker

    tasks, missing = worker.tasks(name)
    if missing:
        show.log.print(
            f"{', '.join(missing)}: not installed; uv run --group bench python -m experiments.bench has them"
        )
    timings = measure([*tasks, PEAK], rounds, *flags)
    for task in ((name, "jit"), (name, "nn.Module"), PEAK):
        if task not in timings:
            raise cli.RunError(f"without {': '.join(task)} there is nothing to compare with")
    flop = torch_steps.flop(torch_steps.begin(torch_steps.Task(*tasks[0])))
    result = Result(name, flop, timings.pop(PEAK), {way: timing for (_, way), timing in timings.items()})
    show.table(
        f"{name}, a step of {WORKLOADS[name].batch} examples: {flop / 1e6:.4g} Mflop, "
        f"{1e3 * result.floor:.2g} ms at the peak of {flop / result.floor / 1e9:.0f} Gflop/s",
        ("", "ms", "quartiles", "/ jit", "% peak", "MB"),
        [(way, *_figures(result, timing)) for way, timing in result.ways.items()],
    )
    return result


def _figures(result: Result, timing: Timing) -> tuple[str, ...]:
    low, high = timing.quartiles
    return (
        f"{1e3 * timing.median:.3g}",
        f"{1e3 * low:.3g}–{1e3 * high:.3g}",
        f"{timing.over(result.ways['jit']):.2f}×",
        f"{100 * result.floor / timing.median:.3g}",
        f"{timing.peak_bytes / 1e6:.4g}" if timing.peak_bytes else "",
    )


def evaluate(result: Result) -> list[cli.Check]:
    """Check the claims about a workload; a claim about what could not be measured is left out."""
    name, _, _, ways = result
    jit, workload, fastest = ways["jit"], WORKLOADS[name], ways[result.fastest_module]
    checks = [
        cli.check(f"{name}: fastest nn.Module / jit", fastest.over(jit), ">=", workload.module_target),
        cli.check(f"{name}: nn.Module / jit", ways["nn.Module"].over(jit), ">=", 1.3),
    ]
    if "jit, unchecked" in ways:
        unchecked = ways["jit, unchecked"]
        checks.append(cli.check(f"{name}: jit with checks / without", jit.over(unchecked), "<=", 1.02))
    if "jax.jit" in ways:
        checks.append(cli.check(f"{name}: jax.jit / jit", ways["jax.jit"].over(jit), ">=", workload.jax_target))
    donated = ways.get("jit, donated", jit)
    if donated.peak_bytes and fastest.peak_bytes:
        memory = donated.peak_bytes / fastest.peak_bytes
        checks.append(cli.check(f"{name}: memory of jit, donated / fastest nn.Module", memory, "<=", 1.1))
    return checks


def time_ops(rounds: int, flags: Sequence[str]) -> tuple[Timings, list[cli.Check]]:
    """Time our operations beside torch's, print a table, and check the bounds."""
    timings = measure(list(OPS), rounds, *flags)
    ratios = {task: timings[task].over(timings[OPS[task]]) for task in timings if OPS[task] in timings}
    show.table(
        "Ops: a convolution forward and backward, NMS of 5,000 boxes, an epoch of 5,120 images",
        ("", "", "ms", "ratio"),
        [(*task, f"{1e3 * timings[task].median:.3g}", f"{ratio:.3g}×") for task, ratio in ratios.items()],
    )
    bounds = {("convolution", "unfold"): 3, ("NMS", "written out"): 5, ("NMS of 10 classes", "written out"): 5}
    return timings, [
        cli.check(f"{task[0]}: {task[1]} / {OPS[task][1]}", ratios[task], "<=", bound)
        for task, bound in bounds.items()
        if task in ratios
    ]


def grow(result: Result, flags: Sequence[str]) -> Growth:
    """Time ours and the fastest nn.Module at several sizes; all take turns, so that no size meets a busier machine."""
    workload = WORKLOADS[result.name]
    sizes = {
        "batch": {n: ("--batch", str(n)) for n in BATCHES},
        workload.option: {round(scale * workload.sizes[0]): ("--scale", str(scale)) for scale in workload.scales},
    }
    grown: Growth = {}
    for what, row in sizes.items():
        tasks = {
            (way, n): (result.name, way, *flag) for way in ("jit", result.fastest_module) for n, flag in row.items()
        }
        timings = measure(list(tasks.values()), GROWTH_ROUNDS, *flags)
        grown[what] = {key: timings[task] for key, task in tasks.items() if task in timings}
    return grown


if __name__ == "__main__":
    cli.run(Config, main, parse)
