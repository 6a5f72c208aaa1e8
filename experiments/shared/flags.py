"""The flags of an experiment: the fields of a dataclass, read by tyro, refused in one line."""

import contextlib
import dataclasses
import difflib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

import tyro


class UsageError(Exception):
    """Says in one line what is wrong with the input."""


class Between(NamedTuple):
    """The bounds of a number, or of each of several, both included: stands in the field's annotation, `parse` obeys."""

    least: float
    greatest: float


# None is a default that depends on other flags; the help of the field says which
MaybeInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
MaybeFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
MaybePath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]
MaybeNames = Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="")]

COUNT, SHARE, RATE, SIZE = Between(1, 10**9), Between(0.0, 1.0), Between(0.0, 1e38), Between(1, 10**5)
Count = Annotated[int, COUNT]
Share = Annotated[float, SHARE]
Rate = Annotated[float, RATE]
Sizes = Annotated[tuple[int, ...], SIZE]
MaybeCount = Annotated[MaybeInt, COUNT]
MaybeShare = Annotated[MaybeFloat, SHARE]
MaybeRate = Annotated[MaybeFloat, RATE]
MaybeSize = Annotated[MaybeInt, SIZE]
MaybeSizes = Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="INT [INT ...]", help_behavior_hint=""), SIZE]


@dataclass(frozen=True)
class Config:
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute; auto takes an accelerator if there is one"""
    seed: Annotated[int, Between(0, 2**62 - 1)] = 0
    """the first seed; all randomness follows from it"""
    out: Path = Path("runs")
    """the folder for pictures and summary.json"""
    traceback: bool = False
    """show every call that led to an error"""


@dataclass(frozen=True)
class Compiled(Config):
    compile: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: where it pays)")] = False
    """compile the training step, which takes a while and makes the rest fast"""

    def compile_pays(self) -> bool:
        """Return whether a run with no compiled step in the cache takes less time with it, from start to end."""
        return False


@dataclass(frozen=True)
class Lab(Config):
    """The flags of every lab."""

    predict: bool = False
    """ask for each value before it is shown; yours then stands beside it"""
    mine: bool = False
    """run with the functions of drills/ that pass their tests in place of ours"""


@dataclass(frozen=True)
class CompiledLab(Compiled, Lab):
    """The flags of a lab whose step can be compiled."""


ConfigT = TypeVar("ConfigT", bound=Config)
FlagsT = TypeVar("FlagsT")


def parse(config_type: type[ConfigT], argv: Sequence[str]) -> ConfigT:
    """Return the config that the flags give; UsageError, in one line, for bad flags."""
    config = parse_flags(config_type, argv)
    if isinstance(config, Compiled) and not {"--compile", "--no-compile"} & set(argv):
        config = dataclasses.replace(config, compile=config.compile_pays())
    return config


def parse_flags(config_type: type[FlagsT], argv: Sequence[str]) -> FlagsT:
    """Return any dataclass from flags, as `parse` does, for commands without a seed."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            flags = tyro.cli(
                config_type,
                args=argv,
                prog=f"python -m {program()}",
                description=sys.modules[config_type.__module__].__doc__,
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UsageError(_one_line(complaint.getvalue())) from None
    _require_in_bounds(flags)
    return flags


def _require_in_bounds(flags: Any) -> None:
    """Raise UsageError for a number out of its bounds, or a flag that takes several values and got none."""
    hints = get_type_hints(type(flags), include_extras=True)
    for field in dataclasses.fields(flags):
        value, flag = getattr(flags, field.name), f"--{field.name.replace('_', '-')}"
        if value == () and field.default != ():
            raise UsageError(f"{flag} takes one value or more")
        for bounds in getattr(hints[field.name], "__metadata__", ()):
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(bounds, Between) and number is not None and not bounds.least <= number <= bounds.greatest:
                    raise UsageError(f"{flag} {number} is not between {bounds.least} and {bounds.greatest}")


def program() -> str:
    """Return the module that was started: experiments.lab1_cnn, or experiments.train, a package with a __main__."""
    path = Path(sys.argv[0])
    return f"experiments.{path.parent.name if path.stem == '__main__' else path.stem}"


NO_NUMBER = {
    r"no type matching (?:\{None\}\|)?(?:\{\[)?(.+?)(?:\]\})? could be instantiated from \[(.*?)\]\..*": r"\2 is no \1",
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is no INT",
    r"could not convert string to float: (.*)": r"\1 is no FLOAT",
}
"""what Python and tyro say of a text that is no number, and how it is said here"""


def _one_line(complaint: str) -> str:
    """Return the text of tyro's error box in one line, without title and pointers to the help.

    On a plain terminal the box is drawn with - and |.
    """
    lines = [line.strip("│| ") for line in complaint.splitlines()]
    title_and_body = "\n".join(
        "§" if re.fullmatch("[─-]+", line) else line for line in lines if line[:1] not in ("╭", "╰")
    )
    parts = [" ".join(part.split()) for part in title_and_body.split("§")]
    parts = parts if "╭" in complaint else parts[1:]
    said = [part for part in parts if part and not part.startswith(("For full helptext", "Argument helptext"))]
    line = ". ".join(part.replace(" .", ".").rstrip(".") for part in said)
    for pattern, plain in NO_NUMBER.items():
        line = re.sub(pattern, plain, line)
    return line


def as_json(config: Config) -> dict[str, Any]:
    values = dataclasses.asdict(config).items()
    left_out = ("traceback", "predict", "mine")
    return {k: str(v) if isinstance(v, Path) else v for k, v in values if k not in left_out}


def as_flags(config_type: type[Config], file: Path) -> list[str]:
    """Return the flags that a config.json stands for; `parse` checks them like any others."""
    from fn.files import read_json  # here, not above: what it imports would hold up --help

    try:
        values = read_json(file)
    except (OSError, ValueError) as error:
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
