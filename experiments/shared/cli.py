"""What every experiment shares: flags, the table of checks, summary.json, the exit status.

0: every check holds. 1: one does not. 2: bad input, in one line on stderr. 130: Ctrl-C.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import math
import operator
import os
import platform
import re
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar

import tyro

from experiments.shared.registry import DATASETS, resolve
from experiments.shared.show import console, table

if TYPE_CHECKING:
    import torch

    from fn.data.datasets import Dataset


class UsageError(Exception):
    """Bad input, in one line."""


class RunError(Exception):
    """What stopped a run that was sound, and how to go on, in one line."""


@dataclass(frozen=True)
class Config:
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute; auto takes an accelerator if there is one"""
    seed: int = 0
    """the first seed; all randomness follows from it"""
    out: Path = Path("runs")
    """the folder for pictures and summary.json"""


@dataclass(frozen=True)
class Compiled(Config):
    compile: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: where it pays)")] = False
    """compile the training step, which takes a while and makes the rest fast"""

    def compile_pays(self) -> bool:
        """Whether the run is done sooner with it, from start to finish, when nothing was compiled before."""
        return False


# None stands for "as it is by default", which the help then says
MaybeInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
MaybeFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
MaybePath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
MaybeNames = Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="")]
MaybeSizes = Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="INT [INT ...]", help_behavior_hint="")]

ConfigT = TypeVar("ConfigT", bound=Config)
FlagsT = TypeVar("FlagsT")


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


def fail(status: int, message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def parse(config_type: type[ConfigT], argv: Sequence[str]) -> ConfigT:
    """The config from the flags; UsageError, in one line, for flags that are no good."""
    config = parse_flags(config_type, argv)
    if isinstance(config, Compiled) and not {"--compile", "--no-compile"} & set(argv):
        config = dataclasses.replace(config, compile=config.compile_pays())
    if not 0 <= config.seed < 2**62:
        raise UsageError(f"--seed {config.seed} is not between 0 and 2**62")
    return config


def parse_flags(config_type: type[FlagsT], argv: Sequence[str]) -> FlagsT:
    """The same for any dataclass: what is no experiment has no seed."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                config_type,
                args=argv,
                prog=f"python -m {program()}",
                description=sys.modules[config_type.__module__].__doc__,
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UsageError(_one_line(complaint.getvalue())) from None


def program() -> str:
    """The module that was started: experiments.lab1_cnn, or experiments.train, a package with a __main__."""
    path = Path(sys.argv[0])
    return f"experiments.{path.parent.name if path.stem == '__main__' else path.stem}"


def as_json(config: Config) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}


def as_flags(config_type: type[Config], file: Path) -> list[str]:
    """The flags that a config.json stands for, for `parse` to judge like any others."""
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not a readable JSON file ({_first_line(error)})") from None
    if not isinstance(values, dict):
        raise UsageError(f"{file} is not a JSON object, which a config is")
    known = [field.name for field in dataclasses.fields(config_type)]
    flags = []
    for key, value in values.items():
        if key not in known:
            [nearest] = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise UsageError(f"{file}: there is no {key!r}; the nearest is {nearest!r}")
        flag = key.replace("_", "-")
        if isinstance(value, str) and value.startswith("-"):
            raise UsageError(f"{file}: {value!r} is no value for {key!r}")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def _first_line(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else str(error)
    return (said or type(error).__name__).splitlines()[0]


def prepare(out: Path) -> None:
    """Make the folder, and find out now, rather than after the work, if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}") from None


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


def run(
    config_type: type[ConfigT],
    main: "Callable[[ConfigT, torch.device], list[Check]]",
    parse: "Callable[[type[ConfigT], Sequence[str]], ConfigT]" = parse,
) -> NoReturn:
    """Parse the flags, run the experiment, report, and exit."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without θ shows a question mark
    try:
        config = parse(config_type, sys.argv[1:])
        prepare(config.out)
        started = time.perf_counter()
        checks = main(config, pick_device(config.device))
        if not checks:
            sys.exit(0)
        report(checks, config, time.perf_counter() - started)
        sys.stdout.flush()
    except UsageError as error:
        fail(2, str(error))
    except RunError as error:
        fail(1, str(error))
    except FloatingPointError as error:
        at_a_step = str(error).startswith("step ")
        fail(1, f"training diverged at {error}" if at_a_step else str(error))
    except KeyboardInterrupt as stop:
        fail(130, str(stop) or "interrupted")
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(1, f"{where}{error.strerror or error}")
    sys.exit(0 if all(c.ok for c in checks) else 1)


def pick_device(name: str) -> "torch.device":
    import torch  # here, not above: it takes seconds, which --help need not wait for

    torch.backends.cudnn.allow_tf32 = False  # 10-bit products would drown what the labs compare
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available[name]:
        raise UsageError(
            f"--device {name}: there is none here; use {' or '.join(d for d in available if available[d])}"
        )
    return torch.device(name)


def load(name: str, device: "torch.device | None" = None, **options: Any) -> "Dataset":
    """The data set of that name, on the device if one is given."""
    from fn.data.datasets import DatasetUnavailable, Split

    try:
        dataset = by_name(DATASETS, name, **options)()
    except DatasetUnavailable as error:
        raise UsageError(str(error)) from None
    if device is None:
        return dataset
    train, test = (Split(*(x.to(device) for x in split)) for split in (dataset.train, dataset.test))
    return dataset._replace(train=train, test=test)


def by_name(rows: dict[str, str], name: str, **options: Any) -> Callable[..., Any]:
    """A row's function, with the options that are not None; UsageError for one that it does not take, or misses."""
    f = resolve(rows[name])
    given = {option: value for option, value in options.items() if value is not None}
    parameters = signature(f).parameters
    for option in given:
        if option not in parameters:
            raise UsageError(f"{name} takes no --{option.replace('_', '-')}")
    for option in options:
        if option not in given and option in parameters and parameters[option].default is parameters[option].empty:
            raise UsageError(f"{name} needs --{option.replace('_', '-')}")
    return partial(f, **given)


def compiled(config: Compiled, step: Callable, batch_size: int) -> Callable:
    """`step`, compiled if the config says so."""
    from fn import train

    return train.compiled(step, batch_size) if config.compile else step


def seeds(config: Config, n: int) -> range:
    """`n` seeds from the first on"""
    return range(config.seed, config.seed + n)


def command() -> str:
    """What was typed, so that the figures can be had again."""
    return shlex.join(["uv", "run", "python", "-m", program(), *sys.argv[1:]])


def report(checks: Sequence[Check], config: Config, seconds: float) -> None:
    """The table of checks on stdout, and summary.json in `config.out`."""
    from fn.files import write_atomic  # here, not above: what it imports would hold up --help

    rows = [(c.name, f"{c.value:.4g} {c.spread}".strip(), c.target, "ok" if c.ok else "FAILED") for c in checks]
    table("Done when", ("check", "value", "target", ""), rows)
    held = sum(c.ok for c in checks)
    console.print(f"\n{held} of {len(checks)} hold after {seconds:.0f} s; see {config.out}/", markup=False)
    summary = {
        "name": type(config).out.name,
        "checks": [c._asdict() | {"value": c.value if math.isfinite(c.value) else None} for c in checks],
        "seconds": round(seconds, 1),
        "command": command(),
        "config": as_json(config),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "torchvision", "jaxtyping")},
        },
    }
    write_atomic(config.out / "summary.json", json.dumps(summary, indent=2) + "\n")
