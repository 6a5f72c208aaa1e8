"""Run every lab, each in a process of its own; print one table, and link their reports in runs/report.html.

Exit 0 only if all checks hold.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.lab import LABS
from experiments.shared.report.write import write_index
from experiments.shared.show import console, print_anything, table
from fn.files import read_json

RUNS = Path("runs")


def rows_of(number: str, summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of the table for each check of a lab."""
    rows = []
    for i, c in enumerate(summary["checks"]):
        value = "none" if c["value"] is None else f"{c['value']:.4g}"
        seconds = f"{summary['seconds']:.0f}" if i == 0 else ""
        rows.append((number, str(c["name"]), value, str(c["target"]), seconds, "ok" if c["ok"] else "FAILED"))
    return rows


def entry_of(number: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Return what the page of all labs says of one, with a link to the lab's own page."""
    link = f"lab{number}/report.html"
    return {
        "name": f"lab {number}",
        "link": link if (RUNS / link).exists() else None,
        "checks": summary["checks"],
        "seconds": summary["seconds"],
    }


def main() -> int:
    print_anything()
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(f"usage: python -m experiments.labs\n\n{__doc__}", end="")
        return 0
    if len(sys.argv) > 1:
        print("error: labs takes no flags; for one lab's, see python -m experiments.lab N --help", file=sys.stderr)
        return 2
    rows, entries, failed = [], [], 0
    for number, module in LABS.items():
        summary, page = (RUNS / f"lab{number}" / name for name in ("summary.json", "report.html"))
        summary.unlink(missing_ok=True)
        page.unlink(missing_ok=True)
        status = subprocess.run([sys.executable, "-m", f"experiments.{module}"], stdout=subprocess.DEVNULL).returncode
        failed += status != 0
        try:
            if not summary.exists():
                raise ValueError(f"ended with status {status}, without a summary")
            found = read_json(summary)
            rows += rows_of(number, found)
            entries.append(entry_of(number, found))
        except (OSError, ValueError, TypeError, KeyError) as error:
            failed += status == 0
            problem = f"{summary} is damaged ({type(error).__name__}: {error})" if summary.exists() else str(error)
            rows.append((number, problem, "", "", "", "FAILED"))
            entries.append({"name": f"lab {number}", "link": None, "checks": [], "problem": problem})
    table("The labs", ("lab", "check", "value", "target", "seconds", ""), rows)
    if page := write_index(entries, RUNS / "report.html"):
        console.print(f"\nsee {page}", markup=False, soft_wrap=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
