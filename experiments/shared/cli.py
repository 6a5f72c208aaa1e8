"""Run an experiment: flags, the table of checks, summary.json and report.html, the exit status.

A script imports this module alone.

0: every check holds. 1: one does not. 2: bad input, in one line on stderr. 130: Ctrl-C.
"""

import contextlib
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from experiments.shared import ranks, show, strict_json
from experiments.shared.checks import Check, check, check_mean, deviation, order
from experiments.shared.errors import explain, out_of_memory
from experiments.shared.flags import (
    Between,
    Compiled,
    CompiledLab,
    Config,
    ConfigT,
    Count,
    FlagsT,
    Lab,
    MaybeCount,
    MaybeFloat,
    MaybeInt,
    MaybeNames,
    MaybePath,
    MaybeRate,
    MaybeShare,
    MaybeSize,
    MaybeSizes,
    Rate,
    Share,
    Sizes,
    UsageError,
    as_flags,
    as_json,
    parse,
    parse_flags,
    program,
)
from experiments.shared.registry import DATASETS, resolve
from experiments.shared.report import record
from experiments.shared.show import console, print_anything, table

if TYPE_CHECKING:
    import torch

    from experiments.drill.stand_in import Stand
    from experiments.shared.predict import Questions
    from fn.data.datasets import Dataset


__all__ = [
    "Between",
    "Check",
    "Compiled",
    "CompiledLab",
    "Config",
    "Count",
    "Lab",
    "MaybeCount",
    "MaybeFloat",
    "MaybeInt",
    "MaybeNames",
    "MaybePath",
    "MaybeRate",
    "MaybeShare",
    "MaybeSize",
    "MaybeSizes",
    "Rate",
    "RunError",
    "Share",
    "Sizes",
    "UsageError",
    "as_flags",
    "as_json",
    "by_name",
    "check",
    "check_mean",
    "command",
    "compiled",
    "deviation",
    "explain",
    "fail",
    "load",
    "order",
    "parse",
    "parse_flags",
    "pick_device",
    "prepare",
    "program",
    "report",
    "run",
    "run_tool",
    "seeds",
]


class RunError(Exception):
    """Says in one line what stopped a run whose flags were good, and how to go on."""


def fail(status: int, message: str) -> NoReturn:
    ranks.say(message)
    sys.exit(status)


def prepare(out: Path) -> None:
    """Make the folder; UsageError, before the work rather than after it, where nothing can be written."""
    try:
        str(out).encode()
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written to: {error.strerror}") from None
    except UnicodeEncodeError:
        raise UsageError(f"--out {out}: its name is not in UTF-8, and safetensors opens no such file") from None


def run(
    config_type: type[ConfigT],
    main: "Callable[[ConfigT, torch.device], list[Check]]",
    parse: "Callable[[type[ConfigT], Sequence[str]], ConfigT]" = parse,
) -> NoReturn:
    """Parse the flags, run the experiment, report, and exit."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    print_anything()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    show.failures.clear()
    record.reset()
    try:
        config = parse(config_type, sys.argv[1:])
        prepare(config.out)
        asked = asking(config)
        with standing_in(config, main) as stand, asked as questions:
            started = time.perf_counter()
            checks = main(config, pick_device(config.device))
            seconds = time.perf_counter() - started - (questions.seconds if questions else 0)
        if not checks:
            sys.exit(0)
        report(checks, config, seconds, questions, stand)
        sys.stdout.flush()
        for error in show.failures:
            raise error
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if "--traceback" in sys.argv:
            traceback.print_exception(error)
        fail(*status_and_message(error))
    sys.exit(0 if all(c.ok for c in checks) else 1)


def run_tool(config_type: type[FlagsT], main: Callable[[FlagsT], int]) -> NoReturn:
    """Parse the flags, run a tool that has no checks to report, and exit with the status that it returns."""
    print_anything()
    try:
        status = main(parse_flags(config_type, sys.argv[1:]))
    except (UsageError, KeyboardInterrupt, OSError) as error:
        fail(*status_and_message(error))
    sys.exit(status)


def asking(config: Config) -> "contextlib.AbstractContextManager[Questions | None]":
    """Return the questions of --predict, inside which each check asks for its value first; None without the flag.

    UsageError, here and not later, where there is no terminal.
    """
    if not (isinstance(config, Lab) and config.predict):
        return contextlib.nullcontext()
    from experiments.shared.predict import questions, require_terminal

    require_terminal()
    return questions(type(config).out.name)


def standing_in(config: Config | None, main: Callable) -> "contextlib.AbstractContextManager[Stand | None]":
    """Return the context in which the reader's functions stand in for ours, if --mine says so; None without it.

    A process that such a lab starts finds them in its environment.
    """
    mine = isinstance(config, Lab) and config.mine
    if not mine and not os.environ.get("FN_MINE"):
        return contextlib.nullcontext()
    from experiments.drill.mine import from_drills
    from experiments.drill.stand_in import from_environment

    return from_drills(main) if mine else from_environment(main)


def status_and_message(error: BaseException) -> tuple[int, str]:
    """Return the exit status of an error, and what is said about it."""
    match error:
        case UsageError():
            return 2, str(error)
        case RunError():
            return 1, str(error)
        case KeyboardInterrupt():
            return 130, str(error) or "interrupted"
        case FloatingPointError():
            at_a_step = str(error).startswith("step ")
            return 1, f"training diverged at {error}" if at_a_step else str(error)
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return 1, f"{where}{error.strerror or error}"
    if lacking := out_of_memory(error):
        return 2, lacking
    return 1, f"{explain(error)}\n  --traceback shows every call that led there"


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
    """Return the data set of that name, on the device if one is given."""
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
    """Return a row's function with the options that are not None; UsageError for one too many or missing."""
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
    """Return `step`, compiled if the config says so."""
    from fn import train_variants

    return train_variants.compiled(step, batch_size) if config.compile else step


def seeds(config: Config, n: int) -> range:
    """Return `n` seeds from the first on."""
    return range(config.seed, config.seed + n)


def command() -> str:
    """Return the command that was typed, for the summary: it gives the figures again."""
    return shlex.join(["uv", "run", "python", "-m", program(), *sys.argv[1:]])


def report(
    checks: Sequence[Check],
    config: Config,
    seconds: float,
    questions: "Questions | None" = None,
    stand: "Stand | None" = None,
) -> None:
    """Print the table of checks, and write summary.json and report.html into `config.out`.

    Of `questions` the answers stand beside the values; of `stand` is said which functions were the reader's.
    """
    from experiments.shared.report.write import write_run  # here, not above: what it imports would hold up --help
    from fn.files import write_atomic

    summary = {
        "name": type(config).out.name,
        "checks": [c._asdict() for c in checks],
        "seconds": round(seconds, 1),
        "command": command(),
        "config": as_json(config),
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("torch", "torchvision", "jaxtyping")},
        },
    }
    if questions:
        summary["predictions"] = [answer._asdict() for answer in questions.answers]
    if stand:
        summary["mine"] = stand.as_json()
    write_atomic(config.out / "summary.json", strict_json.dumps(summary, indent=2) + "\n")
    page = write_run(summary, lesson(config), config.out)
    rows = [(c.name, f"{c.value:.4g} {c.spread}".strip(), c.target, "ok" if c.ok else "FAILED") for c in checks]
    columns = ("check", "value", "target", "")
    if questions:
        yours = {answer.claim: f"{answer.predicted:.4g}" for answer in questions.numbers()}
        rows = [(row[0], yours.get(row[0], "-"), *row[1:]) for row in rows]
        columns = ("check", "yours", "measured", "target", "")
    table("Done when", columns, rows)
    held = sum(c.ok for c in checks)
    console.print(
        f"\n{held} of {len(checks)} hold after {seconds:.0f} s; see {page or config.out}", markup=False, soft_wrap=True
    )
    if questions and questions.answers:
        show.wrapped("", questions.record())
    if stand:
        show.wrapped("", stand.said())


def lesson(config: Config) -> str:
    """Return the first paragraph of the docstring of the script that the config belongs to."""
    text = sys.modules[type(config).__module__].__doc__ or ""
    return " ".join(text.partition("\n\n")[0].split())
