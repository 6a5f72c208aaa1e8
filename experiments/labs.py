"""Run every lab, each in a process of its own, and print one table; exit 0 only if all checks hold."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.lab import LABS
from experiments.shared.show import print_anything, table
from fn.files import read_json


def rows_of(number: str, summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of the table for each check of a lab."""
    rows = []
    for i, c in enumerate(summary["checks"]):
        value = "none" if c["value"] is None else f"{c['value']:.4g}"
        seconds = f"{summary['seconds']:.0f}" if i == 0 else ""
        rows.append((number, str(c["name"]), value, str(c["target"]), seconds, "ok" if c["ok"] else "FAILED"))
    return rows


def main() -> int:
    print_anything()
    if len(sys.argv) > 1:
        print("error: labs takes no flags; for one lab's, see python -m experiments.lab N --help", file=sys.stderr)
        return 2
    rows, failed = [], 0
    for number, module in LABS.items():
        summary = Path("runs") / f"lab{number}" / "summary.json"
        summary.unlink(missing_ok=True)
        status = subprocess.run([sys.executable, "-m", f"experiments.{module}"], stdout=subprocess.DEVNULL).returncode
        failed += status != 0
        if not summary.exists():
            rows.append((number, f"ended with status {status}, without a summary", "", "", "", "FAILED"))
            continue
        try:
            rows += rows_of(number, read_json(summary))
        except (OSError, ValueError, TypeError, KeyError) as error:
            failed += status == 0
            rows.append((number, f"{summary} is damaged ({type(error).__name__}: {error})", "", "", "", "FAILED"))
    table("The labs", ("lab", "check", "value", "target", "seconds", ""), rows)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
