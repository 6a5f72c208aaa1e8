"""Two files of `--json`, or two bench.json, side by side: `just bench --compare BEFORE AFTER`. Needs no torch."""

from pathlib import Path
from typing import Any

from experiments.shared import cli, show

COLUMNS = ("", "ms before", "after", "after / before", "", "% peak before", "after")


def compare(before: Path, after: Path) -> None:
    """Print a table per workload that both have. `slower` and `faster` are where the quartiles do not meet."""
    old, new = _read(before), _read(after)
    both = [name for name in old["workloads"] if name in new["workloads"]]
    if not both:
        raise cli.UsageError(f"{before} and {after} have no workload in common")
    for what in ("cpu", "cores", "torch"):
        a, b = (figures["machine"].get(what) for figures in (old, new))
        if a != b:
            show.log.print(f"not the same {what}: {a} before, {b} after", markup=False, soft_wrap=True)
    for name in both:
        ways = (old["workloads"][name]["ways"], new["workloads"][name]["ways"])
        rows = [(way, *row(ways[0][way], ways[1][way])) for way in ways[0] if way in ways[1]]
        show.table(f"{name}: a step", COLUMNS, rows)


def row(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a way: milliseconds, their ratio, whether it is beyond the quartiles, shares of the floor.

    Networks of the grid come without their shares.
    """
    (low, high), (new_low, new_high) = before["quartiles"], after["quartiles"]
    verdict = "slower" if new_low > high else "faster" if new_high < low else ""
    times = [f"{1e3 * way['median_seconds']:.3g}" for way in (before, after)]
    shares = [f"{100 * way['share_of_peak']:.3g}" if "share_of_peak" in way else "" for way in (before, after)]
    return (*times, f"{after['median_seconds'] / before['median_seconds']:.2f}×", verdict, *shares)


def _read(file: Path) -> dict[str, Any]:
    """Return the figures of a file; UsageError for one that has none."""
    from fn.files import read_json  # here, not above: what it imports would hold up --help

    try:
        figures = read_json(file)
    except OSError as error:
        raise cli.UsageError(f"--compare {file}: {error.strerror}") from None
    except ValueError as error:
        raise cli.UsageError(f"--compare {file} is no JSON ({str(error).splitlines()[0]})") from None
    try:
        assert isinstance(figures["machine"], dict)
        for workload in figures["workloads"].values():
            for way in workload["ways"].values():
                row(way, way)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        raise cli.UsageError(f"--compare {file} holds no figures of a bench") from None
    return figures


def require_writable(file: Path) -> None:
    """Raise UsageError for a file that cannot be written, before the work rather than after it."""
    if file.is_dir():
        raise cli.UsageError(f"--json {file} is a folder")
    try:
        cli.prepare(file.parent)
    except cli.UsageError as error:
        raise cli.UsageError(str(error).replace(f"--out {file.parent}", f"--json {file}")) from None
