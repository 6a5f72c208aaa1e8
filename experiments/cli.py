"""What every experiment shares: flags, the table of checks, summary.json, the exit status.

0: every check holds. 1: one does not. 2: bad input, in one line on stderr. 130: Ctrl-C.
"""

import contextlib
import dataclasses
import io
import json
import math
import operator
import os
import platform
import re
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeVar

import torch
import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fn.data.datasets import DATASETS, Dataset, DatasetUnavailable, Split
from fn.files import write_atomic
from fn.models import MODELS

console = Console(highlight=False)
log = Console(stderr=True, highlight=False)

if TYPE_CHECKING:
    DatasetName = FamilyName = str
else:  # so that --help lists them, and another name is refused
    DatasetName = Literal[tuple(DATASETS)]
    FamilyName = Literal[("all", *MODELS)]


class UsageError(Exception):
    """Bad input, in one line."""


@dataclass(frozen=True)
class Config:
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute; auto takes an accelerator if there is one"""
    seed: int = 0
    """the first seed; all randomness follows from it"""
    out: Path = Path("runs")
    """the folder for pictures and summary.json"""


ConfigT = TypeVar("ConfigT", bound=Config)


class Check(NamedTuple):
    name: str
    value: float
    target: str
    ok: bool
    spread: str = ""
    """standard deviation and number of seeds, of a mean"""


def check(name: str, value: float, relation: str, bound: float, *, spread: str = "") -> Check:
    """The claim `value relation bound`, as in check("accuracy", 0.98, ">=", 0.97); a NaN never holds."""
    holds = {"<=": operator.le, "<": operator.lt, ">": operator.gt, ">=": operator.ge, "==": operator.eq}[relation]
    return Check(name, value, f"{relation} {bound:g}", bool(holds(value, bound)), spread)


def check_mean(name: str, values: Sequence[float], relation: str, bound: float) -> Check:
    """The claim about the mean over seeds; its standard deviation stands beside it."""
    spread = f"± {stdev(values):.2g}, {len(values)} seeds"
    return check(name, mean(values), relation, bound, spread=spread)


def run(config_type: type[ConfigT], main: Callable[[ConfigT, torch.device], list[Check]]) -> NoReturn:
    """Parse the flags, run the experiment, report, and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without θ shows a question mark
    try:
        config = parse(config_type, sys.argv[1:])
        started = time.perf_counter()
        device = pick_device(config.device)
        torch.backends.cudnn.allow_tf32 = False  # 10-bit products would drown what the labs compare
        checks = main(config, device)
        if not checks:
            sys.exit(0)
        report(checks, config, time.perf_counter() - started)
        sys.stdout.flush()
    except (UsageError, DatasetUnavailable) as error:
        fail(2, str(error))
    except FloatingPointError as error:
        fail(1, f"training diverged at {error}")
    except KeyboardInterrupt:
        fail(130, "interrupted")
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0 if all(c.ok for c in checks) else 1)


def fail(status: int, message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def parse(config_type: type[ConfigT], argv: Sequence[str]) -> ConfigT:
    """The config from the flags; UsageError, in one line, for flags that are no good."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config = tyro.cli(config_type, args=argv)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UsageError(_one_line(complaint.getvalue())) from None
    if not 0 <= config.seed < 2**62:
        raise UsageError(f"--seed {config.seed} is not between 0 and 2**62")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=config.out).close()
    except OSError as error:
        raise UsageError(f"--out {config.out} cannot be written to: {error.strerror}") from None
    return config


def _one_line(complaint: str) -> str:
    """What tyro's box says, less its title and its pointers to the help; on a plain terminal the box is of - and |."""
    lines = [line.strip("│| ") for line in complaint.splitlines()]
    title_and_body = "\n".join(
        "§" if re.fullmatch("[─-]+", line) else line for line in lines if line[:1] not in ("╭", "╰")
    )
    parts = [" ".join(part.split()) for part in title_and_body.split("§")]
    parts = parts if "╭" in complaint else parts[1:]
    said = [part for part in parts if part and not part.startswith(("For full helptext", "Argument helptext"))]
    return ". ".join(part.replace(" .", ".").rstrip(".") for part in said)


def pick_device(name: str) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available[name]:
        raise UsageError(
            f"--device {name}: there is none here; use {' or '.join(d for d in available if available[d])}"
        )
    return torch.device(name)


def load(name: str, device: torch.device) -> Dataset:
    dataset = DATASETS[name]()
    train, test = (Split(*(x.to(device) for x in split)) for split in (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test)


def seeds(config: Config, n: int) -> range:
    """`n` seeds from the first on"""
    return range(config.seed, config.seed + n)


def watch(
    steps: Iterable[tuple[Any, dict[str, float]]], total: int, title: str
) -> Iterator[tuple[Any, dict[str, float]]]:
    """Pass a training run on while showing its loss: a bar on a terminal, a line every fifth of the way elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        for i, (ts, metrics) in enumerate(steps, start=1):
            progress.update(task, advance=1, description=f"{title}  loss {metrics['loss']:.4f}")
            if not log.is_terminal and i % max(1, total // 5) == 0:
                log.print(f"{title}: step {i} of {total}, loss {metrics['loss']:.4f}")
            yield ts, metrics


def follow(steps: Iterable[tuple[Any, dict[str, float]]], total: int, title: str) -> tuple[Any, list[dict[str, float]]]:
    """Run to the end: the last state, and the metrics of every step."""
    states, history = deque(maxlen=1), []
    for ts, metrics in watch(steps, total, title):
        states.append(ts)
        history.append(metrics)
    return states[-1], history


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    drawn = Table(
        title=title, title_justify="left", title_style="bold", header_style="", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    console.print()
    console.print(drawn, markup=False)


def report(checks: Sequence[Check], config: Config, seconds: float) -> None:
    """The table of checks on stdout, and summary.json in `config.out`."""
    rows = [(c.name, f"{c.value:.4g} {c.spread}".strip(), c.target, "ok" if c.ok else "FAILED") for c in checks]
    table("Done when", ("check", "value", "target", ""), rows)
    console.print(f"\n{sum(c.ok for c in checks)} of {len(checks)} hold after {seconds:.0f} s; see {config.out}/")
    summary = {
        "name": type(config).out.name,
        "checks": [c._asdict() | {"value": c.value if math.isfinite(c.value) else None} for c in checks],
        "seconds": round(seconds, 1),
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()},
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "torchvision", "jaxtyping")},
        },
    }
    write_atomic(config.out / "summary.json", json.dumps(summary, indent=2) + "\n")
