"""The reader's attempts, a line of JSON per event, in a file of the user; everything else is computed from it.

An event is of a drill, `softmax`, or of another task of `just learn`, `question:softmax`.

A line is appended whole or, in a crash, cut off. Lines that cannot be read are passed over, and so are fields and
events of a later version. Nothing is ever rewritten, so that no version loses what another wrote.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.shared import strict_json

VERSION = 1
DAY = 86_400.0
END_OF_TIME = 1e11
"""in seconds; no clock of this millennium says more"""


class Standing(NamedTuple):
    """The reader's standing in one drill."""

    attempts: int = 0
    """how often it was checked"""
    passes: int = 0
    """how often it was begun and then passed"""
    best: float | None = None
    """the fewest seconds from its beginning to a pass"""
    begun: float | None = None
    """when the answer that is under way was begun"""
    hints: int = 0
    """shown since then"""
    open: bool = False
    """whether an answer is under way that has not passed"""
    star: bool = False
    """whether the edges were right too in the last pass"""


def file() -> Path:
    """Return $XDG_DATA_HOME/functional-torch/drills.jsonl, or in ~/.local/share"""
    root = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(root) / "functional-torch" / "drills.jsonl"


def record(drill: str, event: str, **details: Any) -> None:
    """Append "start", "check", "hint", "skip" or "place"."""
    append(event, drill=drill, **details)


def append(event: str, **details: Any) -> None:
    """Append any event, on a new line even if the last one was cut off; a number that is not finite becomes null."""
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True)
    line = strict_json.dumps({"v": VERSION, "at": round(time.time(), 1), "event": event, **details})
    with path.open("ab+") as log:
        if log.tell():
            log.seek(-1, os.SEEK_END)
            line = line if log.read(1) == b"\n" else f"\n{line}"
        log.write(f"{line}\n".encode())
        log.flush()
        os.fsync(log.fileno())


def standings() -> dict[str, Standing]:
    """Return the standing in each drill that was ever begun."""
    found: dict[str, Standing] = {}
    for event in task_events():
        found[event["drill"]] = _after(found.get(event["drill"], Standing()), event)
    return found


def task_events() -> Iterator[dict[str, Any]]:
    """Yield the events of drills and of the other tasks, in the order of the file."""
    return (event for event in events() if isinstance(event.get("drill"), str))


def events() -> Iterator[dict[str, Any]]:
    """Yield every event that can be read, of drills and of all else that is kept here, in the order of the file."""
    from fn.files import parse_json, read_bytes  # here, not above: what it imports would hold up --help

    try:
        lines = read_bytes(file(), "log").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            event = parse_json(line)
            if isinstance(event["event"], str):
                event["at"] = float(event["at"])
                if 0 <= event["at"] < END_OF_TIME:
                    yield event
        except (ValueError, TypeError, KeyError, OverflowError):  # cut off in a crash, or not ours
            continue


def _after(was: Standing, event: dict[str, Any]) -> Standing:
    """Return the standing after an event; a pass counts once per beginning."""
    at = event["at"]
    match event["event"]:
        case "start":
            return was._replace(begun=at, hints=0, open=True)
        case "hint":
            return was._replace(hints=was.hints + 1)
        case "skip":
            return was._replace(open=False)
        case "check":
            was = was._replace(attempts=was.attempts + 1)
            star = event.get("star", True) is True  # what has none was written before there were stars
            if event.get("passed") is not True or not was.open or was.begun is None:
                return was._replace(star=was.star or (bool(was.passes) and event.get("passed") is True and star))
            seconds = max(at - was.begun, 0.0)
            best = seconds if was.best is None else min(was.best, seconds)
            return was._replace(passes=was.passes + 1, best=best, open=False, star=star)
    return was
