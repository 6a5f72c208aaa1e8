"""--help of every script: its flags, without the import of torch, which takes seconds. No test asserts a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.lab import LABS
from experiments.shared import help

ROOT = Path(__file__).parents[1]
TOOLS = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/__main__.py"))
COMMANDS = [
    *([f"experiments.{name}"] for name in ("lab", "labs", "overfit", *LABS.values(), *TOOLS)),
    *(["experiments.lab", number] for number in LABS),
]
HEAVY = {"torch", "torchvision", "matplotlib", "sklearn"}

ASK = """
import contextlib, importlib, io, json, runpy, sys
import experiments

for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = ["-m", *arguments, "--help"]  # as Python has it while it looks for the script
    sys.orig_argv = [sys.executable, "-m", module, *arguments, "--help"]
    said, status = io.StringIO(), 0
    with contextlib.redirect_stdout(said):
        try:
            importlib.reload(experiments)
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code or 0
    loaded = sorted(name for name in sys.modules if "." not in name)
    print(json.dumps([status, said.getvalue(), loaded]))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str, list[str]]]:
    """For each command its status, its help, and what has been imported, in one process."""
    environment = os.environ | {"COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(COMMANDS)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {
        " ".join(command): json.loads(line) for command, line in zip(COMMANDS, done.stdout.splitlines(), strict=True)
    }


@pytest.mark.parametrize("command", [" ".join(command) for command in COMMANDS])
def test_help_imports_no_torch(answers, command):
    status, said, loaded = answers[command]
    assert status == 0
    assert not HEAVY & set(loaded)
    module, _, number = command.partition(" ")
    assert said.startswith(f"usage: python -m experiments.{LABS[number]}" if number else f"usage: python -m {module}")


def test_the_help_of_a_lab_is_that_of_its_flags(answers):
    """The docstring of the script, a flag of its own, one of every lab, and names that lie in fn."""
    _, said, _ = answers["experiments.lab3_transformer"]
    text = " ".join(line.strip("│ ") for line in said.splitlines())
    assert said == answers["experiments.lab 3"][1]
    for words in ("--task {reverse,copy,sort,add,text}", "how it is told where a token stands (default: learned)"):
        assert words in text
    assert "--positions {learned,sinusoidal,rotary,none}" in text
    assert "ask for each value before it is shown" in text
    assert "Lab 3: the transformer, from one dot product to a language model." in text


def test_python_asks_for_the_help_before_it_runs_the_script():
    command = [sys.executable, "-X", "importtime", "-m", "experiments.overfit", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m experiments.overfit")
    assert "experiments.shared.help" in imported
    assert not HEAVY & imported


def test_flags_that_are_refused_are_left_to_the_script(monkeypatch):
    """Nothing of the cut module stays behind."""
    module = "experiments.lab0_mlp"
    before = sys.modules.get(module)
    monkeypatch.setattr(sys, "argv", ["-m"])
    help.answer(module, ["--file"])
    help.answer("experiments.note", ["--help"])
    help.answer("experiments.nothing", ["--help"])
    assert sys.modules.get(module) is before
