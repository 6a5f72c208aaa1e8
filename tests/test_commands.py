"""Every command that README.md, experiments/README.md and the pages of the labs name is one that works.

Fast: each must be a recipe or a module that is there, and its flags are accepted. Slow: those that take seconds run, in
the order of their text, with small sizes where the text's own take long. `ONLY_READ` says which do not run here.
"""

import re
import runpy
import shlex
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments.lab import LABS
from experiments.shared import cli

ROOT = Path(__file__).parents[1]
TEXTS = ["README.md", "experiments/README.md", *(f"experiments/{stem}.md" for stem in LABS.values())]
JUSTFILE = (ROOT / "justfile").read_text()
RECIPES = dict(re.findall(r"^([\w-]+)[^:\n]*:\n +@?(.+)$", JUSTFILE, re.MULTILINE))
SETUP = ("python3 -m venv .venv", ". .venv/bin/activate", "pip install uv")


class Command(NamedTuple):
    text: str
    """the file that names it"""
    line: str
    """without the setup and uv run"""


def commands() -> list[Command]:
    """Return the lines of each text's sh blocks and the commands between backticks; with an ellipsis they are none."""
    found = {}
    for text in TEXTS:
        content = (ROOT / text).read_text(encoding="utf-8")
        blocks = re.findall(r"^```sh\n(.*?)^```$", content, re.MULTILINE | re.DOTALL)
        lines = [line.partition(" # ")[0].strip() for block in blocks for line in block.splitlines()]
        rest = re.sub(r"^```.*?^```$", "", content, flags=re.MULTILINE | re.DOTALL)
        lines += [line for line in re.findall(r"`([^`\n]+)`", rest) if re.match(r"(uv run |just |python -m )\w", line)]
        for line in lines:
            if line and not line.startswith("#") and "…" not in line:
                parts = [part.removeprefix("uv run ") for part in line.split(" && ") if part not in SETUP]
                found |= {part: found.get(part, Command(text, part)) for part in parts}
    return list(found.values())


COMMANDS = commands()


def started(line: str) -> tuple[str, list[str]]:
    """Return the module that a command starts, pytest for the tests, and its arguments."""
    words = [{"N": "0", "NAME": "relu"}.get(word, word) for word in shlex.split(line)]
    if words[0] == "just":
        if len(words) == 1:
            return "just", []
        recipe = RECIPES[words[1]]
        fixed = [word for word in shlex.split(recipe) if word not in ("uv", "run", "--group", "bench", "$@")]
        words = [*fixed[:3], *words[2:], *fixed[3:]] if fixed[0] == "python" else [*fixed, *words[2:]]
    if words[0] == "python":
        assert words[1] == "-m", line
        return words[2], words[3:]
    return words[0], words[1:]


def accept(module: str, arguments: list[str]) -> None:
    """Parse the arguments as the module does, without running it; UsageError if it refuses them."""
    if module == "experiments.lab":
        number, *flags = arguments
        if "--page" in flags:
            assert set(flags) <= {"--page", "--answers"}
            return
        module, arguments = f"experiments.{LABS[number]}", flags
    is_package = (ROOT / module.replace(".", "/") / "__main__.py").exists()
    config = getattr(import_module(f"{module}.__main__" if is_package else module), "Config", None)
    if config is None:
        assert not arguments, f"{module} has no flags"
    else:
        cli.parse_flags(config, arguments)


@pytest.mark.parametrize("command", COMMANDS, ids=[f"{Path(c.text).stem}: {c.line}" for c in COMMANDS])
def test_a_command_is_there_and_takes_its_flags(command):
    if command.line == "just learn" and "learn" not in RECIPES:
        pytest.skip("there is no recipe learn yet")
    module, arguments = started(command.line)
    if module in ("just", "pytest", "bash"):
        assert all((ROOT / word).exists() for word in arguments if "/" in word)
        return
    accept(module, arguments)


def test_a_command_that_is_wrong_is_noticed():
    first_screen = {"just lab 0", "just lab 0 --page", "just learn", "pytest -n auto"}
    assert first_screen <= {command.line for command in COMMANDS if command.text == "README.md"}
    with pytest.raises(KeyError):
        started("just leran")
    for line in ("just lab 0 --epoch 3", "just overfit --family cnm", "just labs --seed 3"):
        with pytest.raises((cli.UsageError, AssertionError)):
            accept(*started(line))
    with pytest.raises(ModuleNotFoundError):
        accept(*started("python -m experiments.trian"))


def test_every_recipe_of_a_tool_takes_flags():
    """So that --help answers, and a flag that is refused is refused by the tool."""
    assert [name for name, line in RECIPES.items() if "python -m" in line and '"$@"' not in line] == []


def test_every_recipe_of_a_tool_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    named = {command.line.split()[1] for command in COMMANDS if command.line.startswith("just ")}
    assert set(RECIPES) - named - {"default", "lab", "labs", "check-drill", "test", "check", "ci"} <= set(
        re.findall(r"just ([\w-]+)", text)
    )


# Run for real, in this process and an empty folder, in the order of the texts.

SMALL = {
    "just train --model cnn --dataset fashion_mnist --augment crop flip --epochs 20 --out runs/fashion": (
        "just train --model cnn --dataset digits --limit 128 --augment crop flip --epochs 1 --out runs/fashion"
    ),
    "just train --epochs 2 --out runs/mine": "just train --epochs 1 --limit 128 --out runs/mine",
}
RUN = [
    *(f"just lab {n} --page" for n in LABS),
    "just drill",
    "just break silent_broadcast",
    "just break double_softmax",
    "python -m experiments.overfit --family cnn",
    "just train --model cnn --dataset fashion_mnist --augment crop flip --epochs 20 --out runs/fashion",
    "just train --resume runs/fashion",
    "just train --epochs 2 --out runs/mine",
    "just train --resume runs/mine",
]
ONLY_READ = ("lab", "labs", "learn", "note", "race", "bench", "sweep", "prove", "test")
"""tools whose commands are parsed alone: they take minutes, wait for a person, or write into LEARNING.md. The labs run
whole in tests/test_experiments.py, the tools in tests of their own"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_commands_that_take_seconds_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # cli.run sets its own
    for line in RUN:
        module, arguments = started(SMALL.get(line, line))
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        status = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capsys.readouterr()
        assert status == 0, f"{line}: {out}{err}"
        assert out or err
