"""Time and memory of one training step: ours, eager and compiled, beside nn.Module, jax.jit and Equinox.

Each way runs in a process of its own, and they take turns in short bursts, so that all meet the same machine. Ratios
are medians over the rounds of what stood side by side in a round. It draws steps.png, and bench.json holds the numbers.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from subprocess import PIPE
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from experiments import cli, show

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes


class Workload(NamedTuple):
    """What is trained, and on what. Text as in experiments.registry: where a function lives."""

    model: str
    """f(shape, classes, *, option=sizes) -> Model"""
    module: str
    """f(params) -> the same as an nn.Module, its parameters named alike"""
    jax: str
    """f(params, state, x) -> (logits, state)"""
    equinox: str
    """f(params) -> the layers of an equinox.nn.Sequential"""
    data: str
    """f(batch, seed) -> (x, y)"""
    batch: int
    option: str
    """of the model, which takes the sizes"""
    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    """times the sizes, for --growth"""
    images: bool
    """whether it makes a difference that channels come last"""
    module_target: float
    """the least time of the fastest nn.Module, as a multiple of ours"""
    jax_target: float
    """the least time of jax.jit, as a multiple of ours"""


HERE = "experiments.bench_variants"
WORKLOADS = {
    "mlp": Workload(
        "fn.models:mlp",
        f"{HERE}:mlp_module",
        f"{HERE}:jax_mlp",
        f"{HERE}:equinox_mlp",
        f"{HERE}:digits_batch",
        batch=64,
        option="hidden",
        sizes=(128,),
        scales=(0.25, 1, 4, 8),
        images=False,
        module_target=1.5,
        jax_target=0.6,
    ),
    "cnn": Workload(
        "fn.models:cnn",
        f"{HERE}:cnn_module",
        f"{HERE}:jax_cnn",
        f"{HERE}:equinox_cnn",
        f"{HERE}:random_mnist",
        batch=128,
        option="widths",
        sizes=(32, 64, 64),
        scales=(0.5, 1, 2),
        images=True,
        module_target=1.0,
        jax_target=1.0,
    ),
}
BATCHES = (16, 64, 256, 1024)
SIDE = 2048  # of the matrices whose product is the peak
PEAK = ("matrix product", "float32")
BURST = 0.15  # seconds
TaskName = tuple[str, str]  # what is trained, and how
Timings = dict[TaskName, "Timing"]
OPS = {  # each beside what it is compared with
    ("convolution", "native"): ("convolution", "native"),
    ("convolution", "unfold"): ("convolution", "native"),
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
    """what is trained"""
    rounds: int = 15
    """how often every way takes its turn"""
    growth: bool = False
    """draw growth.png too: time against batch and width, which compiles for minutes"""


class Lost(Exception):
    """A worker that died, with its last words."""


class Worker(NamedTuple):
    """A process of experiments.bench_variants, idle until it is asked."""

    process: subprocess.Popen
    stderr: IO[str]

    def ask(self, question: str = "") -> Any:
        """Its answer, or what it says of itself once it is ready; Lost if there is none."""
        try:
            if question:
                print(question, file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())  # pyright: ignore
        except (OSError, ValueError):
            self.stderr.seek(0)
            words = [line for line in self.stderr.read().splitlines() if line.strip()]
            raise Lost(words[-1] if words else "without a word") from None


@contextmanager
def worker(task: TaskName, flags: Sequence[str]) -> Iterator[Worker]:
    command = [sys.executable, "-m", HERE, *task, *flags]
    environment = os.environ | ({"JAXTYPING_DISABLE": "1"} if "unchecked" in task[1] else {})
    with (
        tempfile.TemporaryFile("w+") as stderr,
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=stderr, text=True, env=environment) as process,
    ):
        try:
            yield Worker(process, stderr)
        finally:
            process.kill()
            with suppress(BrokenPipeError):  # what it was asked in vain
                process.stdin.close()  # pyright: ignore


@dataclass
class Timing:
    """What was measured of one way; a time per round, in seconds per step."""

    seconds: list[float]
    peak_bytes: int | None
    ready: float
    """seconds until it had been compiled, or found in the compiler's cache, and done its first steps"""
    versions: dict[str, str]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """What half of the rounds lie between"""
        once = self.seconds * 2 if len(self.seconds) == 1 else self.seconds  # it takes two to have quartiles
        first, _, third = quantiles(once, n=4, method="inclusive")
        return first, third

    def over(self, base: "Timing") -> float:
        """How many times longer than `base`: the median over the rounds of their ratios"""
        return median(mine / its for mine, its in zip(self.seconds, base.seconds, strict=True))


def leave_out(task: TaskName, error: Lost) -> None:
    show.log.print(f"{': '.join(task)}: left out ({error})", markup=False, soft_wrap=True)


def measure(config: Config, device: "torch.device", tasks: Sequence[TaskName], rounds: int, *flags: str) -> Timings:
    """Every task's times, taken in turns; a task whose worker dies is left out."""
    workers, timings = {}, {}
    with ExitStack() as stack:
        for task in tasks:
            flags_of_all = ["--device", device.type, "--seed", str(config.seed), *flags]
            workers[task] = stack.enter_context(worker(task, flags_of_all))
            try:
                timings[task] = Timing([], None, **workers[task].ask())
                show.log.print(f"{': '.join(task)}: ready after {timings[task].ready:.1f} s", markup=False)
            except Lost as error:
                leave_out(task, error)
        for turn in range(rounds):
            order = list(timings)
            first = turn % max(1, len(order))
            for task in order[first:] + order[:first]:
                try:
                    take_turn(workers[task], timings[task], last=turn == rounds - 1)
                except Lost as error:
                    leave_out(task, error)
                    del timings[task]
    return timings


def take_turn(worker: Worker, timing: Timing, *, last: bool) -> None:
    timing.seconds.append(worker.ask(f"time {BURST}"))
    if last:
        timing.peak_bytes = worker.ask("memory") or None


class Result(NamedTuple):
    """Of one workload."""

    name: str
    flop: int
    """of the products in a step"""
    peak: Timing
    """of a product of two matrices of SIDE × SIDE"""
    ways: dict[str, Timing]

    @property
    def floor(self) -> float:
        """The seconds that the step's products would take at the rate of one large one"""
        return self.flop / (2 * SIDE**3 / self.peak.median)

    @property
    def fastest_module(self) -> str:
        return min((way for way in self.ways if way.startswith("nn.Module")), key=lambda way: self.ways[way].median)


def main(config: Config, device: "torch.device") -> list[cli.Check]:
    if config.rounds < 1:
        raise cli.UsageError(f"--rounds {config.rounds}: at least one is needed")
    load = os.getloadavg()[0]
    if load > 0.5:
        show.log.print(f"others keep this machine busy (load {load:.1f}): a short step on several threads suffers most")
    results = [time_steps(config, device, name) for name in config.workloads]
    ops, checks = time_ops(config, device)
    draw_steps(results, config.out / "steps.png")
    if config.growth:
        draw_growth(config, device, results)
    save(config, results, ops, load)
    return [check for result in results for check in judge(result)] + checks


def time_steps(config: Config, device: "torch.device", name: str) -> Result:
    """Every way to train a workload, and a table of them."""
    from experiments import bench_variants  # here, not above: torch takes seconds, which --help need not wait for

    tasks, missing = bench_variants.tasks(name)
    if missing:
        show.log.print(
            f"{', '.join(missing)}: not installed; uv run --group bench python -m experiments.bench has them"
        )
    timings = measure(config, device, [*tasks, PEAK], config.rounds)
    for task in ((name, "jit"), (name, "nn.Module"), PEAK):
        if task not in timings:
            raise cli.RunError(f"without {': '.join(task)} there is nothing to compare with")
    flop = bench_variants.flop(bench_variants.begin(bench_variants.Task(*tasks[0])))
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


def judge(result: Result) -> list[cli.Check]:
    """What is claimed of a workload; what could not be measured is left out."""
    name, _, _, ways = result
    jit, row, fastest = ways["jit"], WORKLOADS[name], ways[result.fastest_module]
    checks = [
        cli.check(f"{name}: fastest nn.Module / jit", fastest.over(jit), ">=", row.module_target),
        cli.check(f"{name}: nn.Module / jit", ways["nn.Module"].over(jit), ">=", 1.3),
    ]
    if "jit, unchecked" in ways:
        unchecked = ways["jit, unchecked"]
        checks.append(cli.check(f"{name}: jit with checks / without", jit.over(unchecked), "<=", 1.02))
    if "jax.jit" in ways:
        checks.append(cli.check(f"{name}: jax.jit / jit", ways["jax.jit"].over(jit), ">=", row.jax_target))
    donated = ways.get("jit, donated", jit)
    if donated.peak_bytes and fastest.peak_bytes:
        memory = donated.peak_bytes / fastest.peak_bytes
        checks.append(cli.check(f"{name}: memory of jit, donated / fastest nn.Module", memory, "<=", 1.1))
    return checks


def time_ops(config: Config, device: "torch.device") -> tuple[Timings, list[cli.Check]]:
    """What is written out here beside torch's own, in a table."""
    timings = measure(config, device, list(OPS), config.rounds)
    ratios = {task: timings[task].over(timings[OPS[task]]) for task in timings if OPS[task] in timings}
    show.table(
        "Ops: a convolution forward and backward, an epoch of 5,120 images",
        ("", "", "ms", "ratio"),
        [(*task, f"{1e3 * timings[task].median:.3g}", f"{ratio:.3g}×") for task, ratio in ratios.items()],
    )
    unfold = ("convolution", "unfold")
    return timings, [cli.check("convolution: unfold / native", ratios[unfold], "<=", 3)] if unfold in ratios else []


def draw_steps(results: Sequence[Result], path: Path) -> None:
    """A bar per way and a panel per workload; ours are blue."""
    from matplotlib.figure import Figure

    from fn import plots

    rows = [len(result.ways) for result in results]
    figure = Figure(figsize=(9, 1.2 * len(rows) + 0.27 * sum(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, result in zip(panels, results, strict=True):
        _bars(axes, result)
    plots.save(figure, path)


def _bars(axes: "Axes", result: Result) -> None:
    ways = list(result.ways)
    milliseconds = [1e3 * timing.median for timing in result.ways.values()]
    colours = ["tab:blue" if way.startswith(("jit", "eager")) else "silver" for way in ways]
    bars = axes.barh(ways, milliseconds, color=colours)
    times = [timing.over(result.ways["jit"]) for timing in result.ways.values()]
    labels = [f"{t:.3g} ms, {ratio:.2f}×" for t, ratio in zip(milliseconds, times, strict=True)]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.axvline(1e3 * result.floor, color="black", linestyle=":", linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds per step; dotted: its products at the peak", title=result.name)
    axes.set(xlim=(0, 1.25 * max(milliseconds)))
    axes.spines[["top", "right"]].set_visible(False)


def draw_growth(config: Config, device: "torch.device", results: Sequence[Result]) -> None:
    """Time against batch and width, of ours and of the fastest nn.Module; a row of panels per workload."""
    from matplotlib.figure import Figure

    from fn import plots

    figure = Figure(figsize=(9, 3.4 * len(results)), layout="constrained")
    for row, result in zip(figure.subplots(len(results), 2, squeeze=False), results, strict=True):
        name, workload = result.name, WORKLOADS[result.name]
        batches = {n: ["--batch", str(n)] for n in BATCHES}
        widths = {round(scale * workload.sizes[0]): ["--scale", str(scale)] for scale in workload.scales}
        for axes, label, points in zip(row, ("batch", workload.option), (batches, widths), strict=True):
            tasks = [(name, "jit"), (name, result.fastest_module)]
            grown = {n: measure(config, device, tasks, 5, *flags) for n, flags in points.items()}
            for task in tasks:
                line = {n: 1e3 * timings[task].median for n, timings in grown.items() if task in timings}
                axes.loglog(list(line), list(line.values()), "o-", label=task[1])
            axes.set(xlabel=label, ylabel="milliseconds per step", title=name, xticks=list(points))
            axes.set_xticklabels(list(points))
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            axes.legend(frameon=False)
    plots.save(figure, config.out / "growth.png")


def save(config: Config, results: Sequence[Result], ops: Timings, load: float) -> None:
    from fn.files import write_atomic

    versions = [timing.versions for result in results for timing in result.ways.values()]
    report = {
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load_before": load,
            "python": platform.python_version(),
        }
        | {library: number for found in versions for library, number in found.items()},
        "workloads": {result.name: _as_json(result) for result in results},
        "ops": {": ".join(task): _times(timing) for task, timing in ops.items()},
        "config": cli.as_json(config),
    }
    write_atomic(config.out / "bench.json", json.dumps(report, indent=2) + "\n")


def _times(timing: Timing) -> dict[str, Any]:
    return {"median_seconds": timing.median, "quartiles": timing.quartiles, "rounds": timing.seconds}


def _as_json(result: Result) -> dict[str, Any]:
    ways = {
        way: _times(timing)
        | {"over_jit": timing.over(result.ways["jit"]), "share_of_peak": result.floor / timing.median}
        | {"peak_bytes": timing.peak_bytes, "seconds_until_ready": timing.ready}
        for way, timing in result.ways.items()
    }
    return {"flop": result.flop, "floor_seconds": result.floor, "fastest_module": result.fastest_module, "ways": ways}


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    cli.run(Config, main)
