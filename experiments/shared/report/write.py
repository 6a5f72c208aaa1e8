"""Write report.html: one template of ours, report.html beside this file, with the data of a run as JSON in it."""

import base64
import html
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.shared import strict_json
from experiments.shared.page import page
from experiments.shared.report import record
from fn.files import read_bytes, write_atomic

TEMPLATE = Path(__file__).with_name("report.html")
TITLE, DATA = "@title@", "@data@"
"""where the template takes the title and the data"""


def write_run(summary: dict[str, Any], about: str, out: Path) -> Path | None:
    """Write the page of a run from its summary and the record, and return its path; None, said on stderr, if it fails.

    A run is never lost for its page: the summary is on the disk before.
    """
    checks = summary["checks"]
    held = f"{sum(c['ok'] for c in checks)} of {len(checks)} hold"
    kept = {"pictures": [], "curves": []} | record.kept
    try:
        latest = {entry["path"]: entry for entry in kept["pictures"] if entry["path"].exists()}
        drawn = {
            "pictures": [embedded(out=out, **entry) for entry in latest.values()],
            "curves": [named(out=out, **entry) for entry in kept["curves"]],
        }
        with suppress(ValueError):  # not every run is a lab's
            kept["page"] = [{"markdown": page(summary["name"].removeprefix("lab"))}]
        data = {"about": about, "date": time.strftime("%Y-%m-%d %H:%M"), **summary, **kept, **drawn}
        return write_page(f"{summary['name']}: {held}", data, out / "report.html")
    except Exception as error:
        return _without_page(out / "report.html", error)


def write_index(runs: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """Write the page that links the pages of several runs: {name, link, checks, seconds, problem} each."""
    try:
        return write_page("The labs", {"name": "The labs", "runs": list(runs)}, path)
    except Exception as error:
        return _without_page(path, error)


def _without_page(path: Path, error: Exception) -> None:
    print(f"{path} was not written ({type(error).__name__}: {error})", file=sys.stderr)
    with suppress(OSError):
        path.unlink(missing_ok=True)  # an older one would pass for this run's


def write_page(title: str, data: dict[str, Any], path: Path) -> Path:
    """Fill in the template. No `<` stands in the data, so that no text in it, </script> say, ends the data."""
    head, _, rest = TEMPLATE.read_text("utf-8").partition(TITLE)
    middle, _, tail = rest.partition(DATA)
    text = strict_json.dumps(data).replace("<", "\\u003c")
    write_atomic(path, f"{head}{html.escape(title)}{middle}{text}{tail}")
    return path


def name_of(path: Path, out: Path) -> str:
    """Return a file's name, with the folders between it and the run's."""
    return path.relative_to(out).as_posix() if path.is_relative_to(out) else path.name


def named(path: Path, title: str, panels: list[Any], out: Path) -> dict[str, Any]:
    """Return curves with a title: their picture's own, or its name."""
    return {"title": title or name_of(path, out).removesuffix(".png"), "panels": panels}


def embedded(path: Path, title: str, alt: str, out: Path) -> dict[str, Any]:
    """Return a PNG with its size, and its bytes as a data: address, so that the page is one file."""
    content = read_bytes(path, "image")
    width, height = struct.unpack(">II", content[16:24])
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"name": name_of(path, out), "title": title, "alt": alt, "width": width, "height": height, "src": source}
