"""Add an entry to the journal: python -m experiments.note "What was learned. And the details." --run runs/lab3

The text up to its first line break, or else the end of its first sentence, is the heading. `--run` adds that run's
figures and its command.
"""

import argparse
import re
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

from experiments.shared.cli import UsageError, fail
from experiments.shared.show import print_anything

JOURNAL = Path(__file__).parents[2] / "LEARNING.md"


class OneLine(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        fail(2, message)


def main() -> None:
    print_anything()
    parser = OneLine(prog="python -m experiments.note", description=__doc__)
    parser.add_argument("text", help="what was observed, with the number")
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run, whose figures and command are added")
    parser.add_argument("--file", type=Path, default=JOURNAL, help="another journal than LEARNING.md")
    args = parser.parse_args()
    try:
        figures = run_figures(args.run) if args.run else ""
        insert(args.file, entry(args.text, figures, date.today()))
    except UsageError as error:
        fail(2, str(error))
    print(f"noted in {args.file}")


ABBREVIATIONS = ("e.g.", "i.e.", "vs.", "cf.", "etc.", "approx.", "resp.", "fig.", "sec.", "eq.")


def split_heading(text: str) -> tuple[str, str]:
    """Return (heading, rest).

    The first line where there are several, else the first sentence, which no abbreviation ends.
    """
    line, _, rest = text.strip().partition("\n")
    if rest:
        return line.strip(), rest.strip()
    for end in re.finditer(r"[.!?]\s+", line):
        word = line[: end.start() + 1].split()[-1].lower().lstrip("([")
        if word not in ABBREVIATIONS:
            return line[: end.start() + 1], line[end.end() :]
    return line, ""


def entry(text: str, figures: str, day: date) -> str:
    """Return the entry: "## 2026-11-25 · Heading", the rest as a paragraph, the figures.

    UsageError if there is no text.

    A # at the start of a line is escaped, so that it begins no other entry.
    """
    heading, rest = split_heading(text)
    if not heading:
        raise UsageError("there is nothing to note: the text is empty")
    parts = [f"## {day} · {heading.removesuffix('.')}", re.sub(r"(?m)^(?=#)", r"\\", rest), figures]
    return "\n\n".join(filter(None, parts)) + "\n"


def run_figures(run: Path) -> str:
    """Return the checks of a run as a table, and its command; UsageError for a folder without a summary.json."""
    from fn.files import read_json  # here, not above: what it imports would hold up --help

    try:
        summary: Any = read_json(run / "summary.json")
        rows = [f"| {_cell(c['name'])} | {_cell(_value(c))} | {_cell(c['target'])} |" for c in summary["checks"]]
        command = summary["command"]
    except OSError as error:
        raise UsageError(f"--run {run}: there is no summary.json to read in it ({error.strerror})") from None
    except KeyError as key:
        raise UsageError(f"--run {run}: its summary.json, perhaps an older one, has no {key}; run it again") from None
    except (ValueError, TypeError):
        raise UsageError(f"--run {run}: its summary.json is damaged") from None
    head = ["| check | value | target |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""] * bool(rows) + [f"    {command}"])


def _value(check: dict[str, Any]) -> str:
    value = "not finite" if check["value"] is None else f"{check['value']:.4g}"
    return " ".join(filter(None, [value, check.get("spread")])) + ("" if check["ok"] else ", which fails")


def _cell(text: Any) -> str:
    """Return the text of a cell; a pipe in it is escaped, so that it does not end the cell."""
    return str(text).replace("|", r"\|")


def insert(journal: Path, entry: str) -> None:
    """Insert the entry above the newest one; begin a journal that does not exist yet."""
    from fn.files import read_bytes, write_atomic  # here, not above: what it imports would hold up --help

    try:
        text = read_bytes(journal, "text").decode("utf-8") if journal.exists() else "# LEARNING\n"
        ends = "\r\n" if "\r\n" in text else "\n"
        before = text.replace(ends, "\n")
        newest = re.search(r"(?m)^## ", before)
        head, rest = (before[: newest.start()], before[newest.start() :]) if newest else (before, "")
        parts = [f"{head.rstrip()}\n"] * bool(head.strip()) + [entry] + [rest] * bool(rest)
        write_atomic(journal.resolve(), "\n".join(parts).replace("\n", ends))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--file {journal} cannot be read or written: {error}") from None


if __name__ == "__main__":
    main()
