"""The page of each lab: what it names is there, what it says of a change is so, and how it is printed."""

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments import lab as labs
from experiments import (
    lab0_mlp,
    lab1_cnn,
    lab2_training,
    lab3_transformer,
    lab4_pretrained,
    lab5_detection,
    lab6_data,
    lab7_processes,
)
from experiments.drill.catalogue import DRILLS
from experiments.gallery.failures import gallery
from experiments.shared import cached_features, cli, language_tasks, page, several
from experiments.shared.page import Change
from experiments.train.config import Config as TrainerConfig
from experiments.train.run import train
from fn.data import scenes
from fn.data.datasets import digits, take
from fn.models.mlp import mlp
from fn.models.ssd import ssd
from fn.rng import generator
from fn.train import TrainState
from tests.edited import edited, new_source, ours_of_all_modules

CPU = torch.device("cpu")
SECTIONS = ["Read, in this order", "The equations", "Predict, before you run", "Change it, and run again"]
SECTIONS += ["Write it yourself", "Questions", "Next"]
CHANGES = [(n, change) for n in labs.LABS for change in page.changes(n)]


# What a page holds.


@pytest.mark.parametrize("n", labs.LABS)
def test_a_page_has_its_sections_and_is_short(n):
    text = page.source(n)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert text.startswith(f"# Lab {n}: ")
    assert "\nAfter this lab you can " in text
    assert len(text.splitlines()) <= 160
    assert max(len(line) for line in text.splitlines() if not line.startswith("<details>")) <= 125
    assert len(page.FOLDED.findall(text)) == text.count("<details>") == text.count("</details>") >= 6


@pytest.mark.parametrize("n", labs.LABS)
def test_every_place_that_a_page_names_is_there(n):
    text = page.page(n)
    named = re.findall(r"`(\S+\.py)(?::[\w.]+)?`", text)
    assert len(named) >= 8
    assert all((page.ROOT / file).is_file() for file in named)
    places = re.findall(r"`(\S+\.py):([\w.]+)` \(lines? (\d+)(?: to (\d+))?\)", text)
    assert len(places) == len(re.findall(r"`\S+\.py:[\w.]+`", text))
    for file, name, first, last in places:
        lines = (page.ROOT / file).read_text().splitlines()
        inside = lines[int(first) - 1 : int(last or first)]
        assert any(re.search(rf"\b{name.split('.')[-1]}\b", line) for line in inside), (file, name)
        assert inside[-1].strip(), (file, name)


def test_a_place_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"fn/layers\.py defines no linaer"):
        page.line_numbers("fn/layers.py", "linaer")
    with pytest.raises(ValueError, match="no page of a lab 99"):
        page.page(99)


def test_the_lines_of_a_place_hold_its_decorators_and_its_end():
    lines = (page.ROOT / "fn/layers.py").read_text().splitlines()
    first, last = page.line_numbers("fn/layers.py", "linear")
    assert lines[first - 1].startswith("@halves_by")
    assert lines[last - 1] == "    return y if bias is None else y + bias"
    first, last = page.line_numbers("experiments/lab6_data.py", "Examples.__len__")
    assert last == first + 1


@pytest.mark.parametrize("n", labs.LABS)
def test_every_drill_and_failure_that_a_page_names_is_there(n):
    text = page.source(n)
    drills = set(re.findall(r"just drill (\w+)", text)) - {"next"}
    assert drills >= {name for name, drill in DRILLS.items() if drill.topic.startswith(f"Lab {n} ")}
    assert drills <= DRILLS.keys()
    assert set(re.findall(r"just break (\w+)", text)) <= gallery().keys()


@pytest.mark.parametrize("n", labs.LABS)
def test_a_page_has_two_changes_or_more(n):
    assert len(page.changes(n)) == page.source(n).count("```change") >= 2
    for change in page.changes(n):
        assert new_source(change) != (page.ROOT / change.file).read_text()
        assert change.file.startswith("fn/") or change.file == f"experiments/{labs.LABS[n]}.py"


# What a page says of a change.


def small_digits():
    return scenes.digits(32, 20)


def lab0(part: str, out: Path) -> Callable[[], list]:
    few, config = take(digits().train, 32), lab0_mlp.Config(out=out)
    if part == "overfit_few":
        return lambda: lab0_mlp.overfit_few(config, mlp((1, 8, 8), 10), few, lr=0.01, title="")
    return lambda: getattr(lab0_mlp, part)(config, few)


def lab1(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    return lambda: getattr(lab1_cnn, part)(lab1_cnn.Config(out=out), CPU)


def lab2(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config = lab2_training.Config(out=out)
    if part == "damage_checkpoints":
        settings = TrainerConfig(model="mlp", epochs=1, limit=100, overwrite=True, compile=False, out=out / "whole")
        return lambda: lab2_training.damage_checkpoints(config, train(settings, CPU))
    arguments = {"compare_top_k": (config,), "accumulate": (config, CPU)}[part]
    return lambda: getattr(lab2_training, part)(*arguments)


def lab3(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config = lab3_transformer.Config(out=out)
    if part == "compare_with_torch":
        return lambda: lab3_transformer.compare_with_torch(config, CPU)
    task = language_tasks.toy_task("reverse", seed=0, device=CPU)

    def run() -> list[cli.Check]:
        model = lab3_transformer.build(config, lab3_transformer.RECIPES["reverse"], task)
        if part == "check_untrained":
            return [lab3_transformer.check_untrained(config, model, task)]
        params, state = model.init(generator(0))
        return lab3_transformer.check_attention(model, task, [TrainState(params, state, {})])

    return run


def lab4(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config = lab4_pretrained.Config(out=out)
    if part == "main":
        return lambda: lab4_pretrained.main(config, CPU)
    task, recipe = lab4_pretrained.setup(config, CPU)
    few = task.dataset._replace(train=take(task.dataset.train, 96))
    task, recipe = task._replace(dataset=few), recipe._replace(timed_epochs=1)
    return lambda: cached_features.cache_features(task, recipe, 0)


def lab5(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config, few = lab5_detection.Config(out=out, compile=False), small_digits()
    if part == "check_baselines":
        return lambda: lab5_detection.check_baselines(config, few)
    return lambda: getattr(lab5_detection, part)(config, "anchor", ssd(few.shape, 10), few)


def lab6(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config = lab6_data.Config(out=out)
    return lambda: getattr(lab6_data, part)(config)


def lab7(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config, way = lab7_processes.Config(out=out), "MLP, in order"
    if part == "make_mistakes":
        return lambda: lab7_processes.make_mistakes(config)
    trained = lambda n: several.in_processes(lab7_processes.train, n, way, 0, 1)  # noqa: E731
    return lambda: lab7_processes.compare_results({way: [trained(n) for n in (1, 2, 4)]})


PARTS = {f"lab{n}": globals()[f"lab{n}"] for n in labs.LABS}


@pytest.fixture
def _small(monkeypatch):
    """The sizes with which a part of a lab takes seconds."""
    once, make, write = lab6_data.time_loaders, lab6_data.make_loaders, lab6_data.write_photographs
    monkeypatch.setattr(lab6_data, "make_loaders", lambda *split: {k: f for k, f in make(*split).items() if not k[1]})
    monkeypatch.setattr(lab6_data, "EXAMPLES", 256)
    monkeypatch.setattr(lab6_data, "time_loaders", lambda loaders, rounds: once(loaders, rounds=1))
    monkeypatch.setattr(lab6_data, "write_photographs", lambda root, count: write(root, 4))
    monkeypatch.setattr(lab6_data, "run_at_once", lambda *arguments: [0] * len(arguments))
    monkeypatch.setattr(lab1_cnn, "range", lambda _: range(1), raising=False)
    monkeypatch.setattr(lab7_processes, "BATCH", 360)
    monkeypatch.setattr(several, "START_METHOD", "fork")  # so that the processes have the change too


LONG = ("damage_checkpoints", "cache_features", "compare_loops", "compare_convolutions", "make_mistakes")
"""parts that take several seconds"""
TRIED = [
    pytest.param(n, change, marks=[pytest.mark.slow] if change.part in LONG else [], id=f"lab{n}-{change.name}")
    for n, change in CHANGES
]
HELD: dict[tuple[str, str], list[cli.Check]] = {}
"""the checks of a part without a change, by lab and part"""


@pytest.mark.parametrize(("n", "change"), TRIED)
@pytest.mark.usefixtures("_small")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_change_does_what_the_page_says(capsys, tmp_path, n: str, change: Change):
    part = PARTS[f"lab{n}"](change.part, tmp_path)
    if change.verb == "says":
        with edited(change), pytest.raises((TypeError, ValueError)) as caught:
            part()
        assert change.text in cli.explain(caught.value)
        return
    if (n, change.part) not in HELD:
        HELD[n, change.part] = part()
    [before] = [check for check in HELD[n, change.part] if check.name == change.text]
    with edited(change):
        [after] = [check for check in part() if check.name == change.text]
    assert before.ok, before
    assert after.ok == (change.verb == "holds"), after


def test_after_a_change_everything_is_as_it_was():
    before = [(module, dict(vars(module))) for module in ours_of_all_modules()]
    for _, change in CHANGES:
        with edited(change):
            pass
    assert all(vars(module) == was for module, was in before)


# How it is printed.


def printed(monkeypatch, flags: list[str], *, width: int = 0, answer: str | None = None, n: str = "0") -> str:
    """What `python -m experiments.lab` prints: on a terminal of that width, or into a pipe."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=bool(width), width=width or None, color_system=None, highlight=False)
    monkeypatch.setattr(page, "console", console)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert page.show(n, ["--page", *flags]) == 0
    return out.getvalue()


@pytest.mark.parametrize("n", labs.LABS)
def test_a_pipe_gets_plain_text_and_no_answers(monkeypatch, n):
    text = printed(monkeypatch, [], n=n)
    assert "\x1b" not in text
    assert "<details>" not in text
    _, answer = page.FOLDED.findall(page.source(n))[0]
    assert answer not in text
    assert f"just lab {n} --page --answers" in text
    assert answer in printed(monkeypatch, ["--answers"], n=n)


@pytest.mark.parametrize("n", labs.LABS)
def test_a_terminal_of_60_columns_gets_every_word(monkeypatch, n):
    text = printed(monkeypatch, [], width=60, n=n)
    assert max(map(len, text.splitlines())) <= 60
    words = lambda text: re.sub(r"\W+", "", text)  # noqa: E731
    for change in page.changes(n):
        assert words(change.new) in words(text)
        assert words(change.text) in words(text)
    assert words(page.FOLDED.findall(page.source(n))[0][1].split(".")[0]) not in words(text)


def test_enter_shows_the_answers(monkeypatch):
    assert "Nothing adds up in a .grad" in " ".join(printed(monkeypatch, [], width=100, answer="").split())


def test_ctrl_c_at_the_answers_exits_130(monkeypatch):
    def interrupt(number, flags):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["lab", "0", "--page"])
    monkeypatch.setattr(page, "show", interrupt)
    with pytest.raises(SystemExit) as stop:
        labs.main()
    assert stop.value.code == 130


def test_another_flag_beside_page_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lab", "0", "--page", "--seed", "3"])
    with pytest.raises(SystemExit) as stop:
        labs.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --page goes with --answers alone, not with --seed\n"


def test_a_page_needs_no_torch_and_survives_a_closed_pipe():
    code = "import sys; sys.argv = ['lab', '3', '--page']\nfrom experiments import lab\n"
    code += "try: lab.main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=page.ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")
    command = f"{sys.executable} -m experiments.lab 3 --page | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=page.ROOT)
    assert (done.stdout, done.stderr) == (page.source(3).splitlines()[0] + "\n", "")


def test_every_lab_has_a_page():
    assert all((page.ROOT / "experiments" / f"{stem}.md").is_file() for stem in labs.LABS.values())
