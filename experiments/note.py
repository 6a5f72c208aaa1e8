"""Add an entry to the journal: python -m experiments.note "What was learned. And the details." --run runs/lab3

The text up to its first full stop or line break is the heading. `--run` adds that run's figures and its command.
"""

import argparse
import json
import re
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

from experiments.cli import UsageError, fail

JOURNAL = Path(__file__).parent.parent / "LEARNING.md"


class OneLine(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(2, message)


def main() -> None:
    parser = OneLine(prog="python -m experiments.note", description=__doc__)
    parser.add_argument("text", help="what was observed, with the number")
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run, whose figures and command are added")
    parser.add_argument("--file", type=Path, default=JOURNAL, help="another journal than LEARNING.md")
    given = parser.parse_args()
    try:
        figures = run_figures(given.run) if given.run else ""
        insert(given.file, entry(given.text, figures, date.today()))
    except UsageError as error:
        fail(2, str(error))
    print(f"noted in {given.file}")


def entry(text: str, figures: str, day: date) -> str:
    """ "## 2026-11-25 · Heading", the rest as a paragraph, the figures; UsageError if there is no text."""
    heading, *rest = re.split(r"\n+|(?<=[.!?])\s+(?=[A-Z])", text.strip(), maxsplit=1)
    if not heading:
        raise UsageError("there is nothing to note: the text is empty")
    return "\n\n".join([f"## {day} · {heading.removesuffix('.')}", *rest, *([figures] if figures else [])]) + "\n"


def run_figures(run: Path) -> str:
    """The run's checks as a table, and the command that made them; UsageError for a folder that holds none."""
    try:
        summary: Any = json.loads((run / "summary.json").read_text())
        rows = [f"| {c['name']} | {_value(c)} | {c['target']} |" for c in summary["checks"]]
        command = summary["command"]
    except OSError as error:
        raise UsageError(f"--run {run}: there is no summary.json to read in it ({error.strerror})") from None
    except KeyError as key:
        raise UsageError(f"--run {run}: its summary.json, perhaps an older one, has no {key}; run it again") from None
    except (ValueError, TypeError):
        raise UsageError(f"--run {run}: its summary.json is damaged") from None
    return "\n".join(["| check | value | target |", "|---|---|---|", *rows, "", f"    {command}"])


def _value(check: dict[str, Any]) -> str:
    value = "not finite" if check["value"] is None else f"{check['value']:.4g}"
    return f"{value} {check.get('spread', '')}{'' if check['ok'] else ', which fails'}".strip()


def insert(journal: Path, entry: str) -> None:
    """Before the newest entry, as the newest stands first; a journal that is not there yet is begun."""
    from fn.files import write_atomic  # here, not above: what it imports would hold up --help

    try:
        before = journal.read_text(encoding="utf-8") if journal.exists() else "# LEARNING\n"
        head, newest, rest = re.split(r"(?m)^(?=## )()", before, maxsplit=1) if "\n## " in before else (before, "", "")
        write_atomic(journal, f"{head.rstrip()}\n\n{entry}" + (f"\n{newest}{rest}" if rest else ""))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--file {journal} cannot be read or written: {error}") from None


if __name__ == "__main__":
    main()
