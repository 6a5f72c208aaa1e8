"""Run a lab with what drills/ holds in place of ours, wherever it passes its tests: `just lab N --mine`."""

import contextlib
import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from experiments.drill import cut, launch
from experiments.drill.catalogue import DRILLS
from experiments.drill.launch import Verdict
from experiments.drill.stand_in import Stand, said_of_refused, standing_in
from experiments.shared import attempts, show
from experiments.shared.answers import set_aside
from experiments.shared.flags import UsageError


@contextlib.contextmanager
def from_drills(main: Callable) -> Iterator[Stand]:
    """Put every passing answer of drills/ in place; UsageError if there is none. `main` is the lab's."""
    files = written()
    if not files:
        raise UsageError(f"--mine: nothing is written in {cut.FOLDER} yet; just drill next begins something")
    verdicts = graded(files)
    refused = [name for name, verdict in verdicts.items() if not verdict.passed]
    passing = {name: file for name, file in files.items() if name not in refused}
    if not passing:
        raise UsageError(f"--mine: nothing in {cut.FOLDER} passes its tests. {said_of_refused(refused)}")
    with standing_in(passing, main) as stand:
        stand.refused = refused
        yield stand


def written() -> dict[str, Path]:
    """Return the file of each drill in which more than a signature stands; of one begun anew, what was set aside."""
    found = {}
    for name in DRILLS:
        file = cut.FOLDER / f"{name}.py"
        for one in [file, *reversed(set_aside(file))]:
            if name not in found and one.is_file() and not _is_untouched(name, one):
                found[name] = one
    return found


def _is_untouched(name: str, file: Path) -> bool:
    with contextlib.suppress(SyntaxError, ValueError, LookupError):
        tree = cut.ast.parse(file.read_bytes())
        return not tree.body or cut.is_empty(cut.definition_of(tree, DRILLS[name].of.partition(":")[2]))
    return False


def graded(files: dict[str, Path]) -> dict[str, Verdict]:
    """Return the verdict on each file: kept from an earlier run, or else graded, as many at once as there are cores."""
    entries = {name: _entry(name, file) for name, file in files.items()}
    verdicts = {name: verdict for name, entry in entries.items() if (verdict := _kept(entry))}
    new = [name for name in files if name not in verdicts]
    waiting = show.log.status(f"the tests that hold ours are run on yours: {', '.join(new)}")
    watched = waiting if new and show.log.is_terminal else contextlib.nullcontext()
    with watched, ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as several:  # each takes half a GB
        for name, verdict in zip(new, several.map(lambda name: launch.graded(name, files[name]), new), strict=True):
            verdicts[name] = verdict
            _keep(verdict, entries[name])
    return {name: verdicts[name] for name in files}


def _entry(name: str, file: Path) -> Path:
    """Return where the verdict is kept: its name is a digest of the answer, of all our sources and of the versions."""
    digest = hashlib.sha256(f"{name} {sources()} ".encode() + file.read_bytes()).hexdigest()
    return attempts.file().parent / "graded" / f"{digest[:32]}.json"


@functools.cache
def sources() -> str:
    """Return a digest of all that a grade depends on, beside the answer."""
    digest = hashlib.sha256(f"{platform.python_version()} {version('torch')}".encode())
    for folder in ("fn", "experiments", "tests"):
        for path in sorted((cut.ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(cut.ROOT)} ".encode() + path.read_bytes())
    return digest.hexdigest()


def _kept(entry: Path) -> Verdict | None:
    from fn.files import read_json

    with contextlib.suppress(OSError, ValueError, TypeError):
        verdict = Verdict(**read_json(entry))
        return verdict if isinstance(verdict.passed, bool) else None
    return None


def _keep(verdict: Verdict, entry: Path) -> None:
    """Write the verdict, unless it is one on the machine's patience rather than on the answer."""
    from fn.files import write_atomic

    if verdict.passed or not verdict.lines[0].startswith("not done after"):
        write_atomic(entry, json.dumps(verdict._asdict()))
