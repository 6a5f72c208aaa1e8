"""The whole of a lab: its functions in one file, from memory, held by the lab's own checks.

just drill lab0         drills/lab0.py: imports, and of each function the signature and the docstring
just check-drill lab0   run Lab 0 with them in place of ours; passed if every check holds
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from experiments.drill import cut
from experiments.drill.answer import Wrong, calls, parse
from experiments.drill.catalogue import DRILLS, WHOLES
from experiments.drill.forbidden import dotted_names, find_forbidden_in_part
from experiments.drill.launch import ROOT, Verdict
from experiments.drill.stand_in import FILES
from experiments.shared.show import say


def check(lab: str, file: Path) -> Verdict:
    """Return the verdict of the lab's own checks on the functions in `file`."""
    try:
        require_written(lab, file)
    except Wrong as error:
        return Verdict(False, str(error).splitlines())
    out = Path("runs") / f"{lab}-yours"
    summary = ROOT / out / "summary.json"
    summary.unlink(missing_ok=True)
    number = lab.removeprefix("lab")
    say(f"Lab {number} runs with your functions; its table says which checks hold")
    command = [sys.executable, "-m", "experiments.lab", number, "--out", str(out)]
    environment = os.environ | {FILES: json.dumps({lab: str(file.resolve())}), "PYTHONPATH": str(ROOT)}
    status = subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode
    return verdict(summary, status)


def require_written(lab: str, file: Path) -> None:
    """Raise Wrong for a file that lacks a function, leaves one empty, or leaves its work to ours or torch's."""
    tree = parse(file)
    for line, dotted in sorted(dotted_names(tree)):
        if dotted in {where.replace(":", ".") for where in WHOLES[lab]}:
            raise Wrong(f"line {line} takes our own `{dotted}`, which is to be written here")
    empty = []
    for where in WHOLES[lab]:
        name = where.partition(":")[2]
        try:
            empty += [name] if cut.is_empty(cut.definition_of(tree, name)) else []
        except LookupError:
            raise Wrong(f"{file.name} has no `{name}`") from None
    if empty:
        raise Wrong(f"nothing is written yet below {', '.join(f'`{name}`' for name in empty)}")
    for name, drill in DRILLS.items():
        if drill.of in WHOLES[lab] and (found := find_forbidden_in_part(tree, name, WHOLES[lab])):
            raise calls(*found, file)


def verdict(summary: Path, status: int) -> Verdict:
    """Return the verdict on a run of the lab: its exit status, its table of checks, and which functions it called."""
    if not summary.exists():
        return Verdict(False, [f"the lab ended with status {status}, before its checks; it said why above"])
    said = json.loads(summary.read_text())
    failed = [
        f"{c['name']}: {'not finite' if c['value'] is None else format(c['value'], '.4g')}, not {c['target']}"
        for c in said["checks"]
        if not c["ok"]
    ]
    idle = [name for name, calls in said["mine"]["calls"].items() if not calls]
    if failed:
        return Verdict(False, ["these checks of the lab do not hold:", *(f"  {line}" for line in failed)])
    if status or idle:
        return Verdict(False, [f"never called: {', '.join(idle)}" if idle else f"the lab ended with status {status}"])
    return Verdict(
        True, [f"all {len(said['checks'])} checks of the lab hold with your functions"], len(said["checks"]), star=True
    )
