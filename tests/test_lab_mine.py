"""--mine: the reader's functions in place of ours, who calls them, which are taken; and the whole of a lab."""

import ast
import importlib
import inspect
import json
import os
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from experiments import lab0_mlp, lab2_training, lab6_data
from experiments.drill import __main__ as drill
from experiments.drill import cut, launch, mine, stand_in, whole_lab
from experiments.drill.catalogue import DRILLS, WHOLES
from experiments.drill.launch import Verdict
from experiments.lab import LABS
from experiments.lab_helpers.lab0.tables import show_lines, tagged_lines
from experiments.shared import answers, cli, show
from fn import layers
from fn.data.datasets import Split, digits, take
from fn.models.mlp import mlp_apply, mlp_init
from fn.rng import generator
from fn.trace import trace
from fn.train import ACCURACY, eval_one_epoch
from tests import lab_parts

ANSWERS = cut.ROOT / "tests" / "drills"
GRADED = launch.graded
LONG = ("main", "compare_loops", "compare_convolutions", "compare_loaders", "compare_with_torch", "compare_results")
"""parts of labs that take seconds"""
TIMED = ("processor time", "times faster")
"""checks that hang on how fast the machine is"""


@pytest.fixture(autouse=True)
def _own_files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for module in (drill, cut):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "drills")
    (tmp_path / "drills").mkdir()
    monkeypatch.setattr(launch, "graded", lambda *_: pytest.fail("graded"))


def write(name: str, text: str) -> Path:
    file = cut.FOLDER / f"{name}.py"
    file.write_text(text)
    return file


def main_of(lab: str) -> Any:
    return importlib.import_module(f"experiments.{LABS[lab.removeprefix('lab')]}").main


def right(*names: str) -> dict[str, Path]:
    return {name: ANSWERS / f"{name}.py" for name in names}


@dataclass(frozen=True)
class Config(cli.Lab):
    out: Path = Path("runs/lab9")


def main(config: Config, device: Any) -> list[cli.Check]:
    return [cli.check("relu(-1)", float(layers.relu(torch.tensor(-1.0))), "==", 0)]


# Who calls theirs.


PLACES = sorted({drill.of for drill in DRILLS.values()} | {of for places in WHOLES.values() for of in places})


@pytest.mark.parametrize("of", PLACES)
def test_every_function_can_be_given_another_body(of):
    """It has no variables of a function around it, and the new body has its parameters, in their order."""
    ours = resolve_name(of)
    for f in [vars(ours)[name] for name in stand_in.methods(ours)] if inspect.isclass(ours) else [ours]:
        inner = inspect.unwrap(f)
        code = stand_in.one_line(inner, "yours", inner.__code__)
        assert inner.__code__.co_freevars == ()
        count = code.co_argcount + code.co_kwonlyargcount
        assert code.co_varnames[:count] == inner.__code__.co_varnames[:count]
        assert code.co_flags & 12 == inner.__code__.co_flags & 12  # *args and **kwargs


def mlp_logits(x: torch.Tensor) -> torch.Tensor:
    params, _ = mlp_init(generator(0), 4, (5,), 3)
    return mlp_apply(params, {}, x, train=False, layers=2)[0]


def test_theirs_is_called_by_every_name_that_ours_has():
    """In `fn.layers`, in the models that import it by name, in a partial and in a table that were made before."""
    x, made_before = torch.randn(2, 4, generator=generator(1)), partial(layers.linear, weight=torch.ones(3, 4))
    labels = torch.tensor([0, 1])
    expected = mlp_logits(x), made_before(x), ACCURACY["accuracy"].mean(x, labels)
    with stand_in.standing_in(right("linear", "accuracy"), main) as stand:
        got = mlp_logits(x), made_before(x), ACCURACY["accuracy"].mean(x, labels)
        assert stand.calls() == {"linear": 3, "accuracy": 1}
        eval_one_epoch({}, {}, [(x, labels)], apply=lambda params, state, x, train: (x, state))
        assert stand.calls()["accuracy"] == 2
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other)
    mlp_logits(x)
    assert stand.calls() == {"linear": 3, "accuracy": 2}  # ours again
    assert not [name for name in vars(layers) if name.startswith("yours")]


def test_the_shape_checks_of_ours_hold_theirs():
    file = write("linear", "def linear(x, weight, bias=None):\n    return x @ weight.T[:, :1]\n")
    with stand_in.standing_in({"linear": file}, main), pytest.raises(TypeCheckError, match=r"fn\.layers\.linear"):
        mlp_logits(torch.ones(2, 4))


def test_a_network_of_theirs_is_traced_as_ours_is():
    params, _ = mlp_init(generator(0), 4, (5,), 3)
    run = partial(trace, params, lambda x: mlp_apply(params, {}, x, train=False, layers=2)[0], torch.ones(2, 4))
    shown = [(call.layer, call.op, call.output, call.multiply_adds) for call in run()[1]]
    with stand_in.standing_in(right("linear", "relu"), main):
        assert [(call.layer, call.op, call.output, call.multiply_adds) for call in run()[1]] == shown


def test_theirs_is_what_a_compiled_step_is_traced_from():
    from torch.fx.experimental.proxy_tensor import make_fx

    with stand_in.standing_in(right("linear"), main) as stand:
        make_fx(mlp_logits, tracing_mode="fake")(torch.ones(2, 4))
    assert stand.calls() == {"linear": 2}


def test_a_class_of_theirs_stands_in_by_its_methods():
    text = (ANSWERS / "Examples.py").read_text().split("\nWRONG")[0]
    text = text.replace("        self.images", "        super().__init__()\n        self.images", 1)
    split = Split(torch.randn(3, 1, 4, 4), torch.arange(3))
    examples = partial(lab6_data.Examples, split, 0, 0, lambda x, key: x)
    expected = [examples()[i][0] for i in range(3)]
    with stand_in.standing_in({"Examples": write("Examples", text)}, lab6_data.main) as stand:
        got = [examples()[i][0] for i in range(len(examples()))]
        assert len(lab6_data.Pictures(split, lambda x: x)) == 3
        assert stand.calls() == {"Examples": 5 + 3}
    assert all(map(torch.equal, got, expected))


def test_a_function_of_another_lab_is_left_alone():
    with stand_in.standing_in(right("Examples", "relu"), main) as stand:
        assert stand.calls() == {"relu": 0}


def test_its_source_is_theirs():
    with stand_in.standing_in(right("classic_loop"), lab0_mlp.main):
        assert inspect.getsource(lab0_mlp.classic_loop) in (ANSWERS / "classic_loop.py").read_text()
    assert next(iter(tagged_lines(lab0_mlp.classic_loop))) == "forward"


def test_no_line_of_a_loop_of_theirs_that_has_no_tags_is_said_to_be_missing(monkeypatch):
    tables = []
    monkeypatch.setattr(show, "table", lambda *table: tables.append(table))
    show_lines(lab0_mlp.classic_loop, lab0_mlp.functional_loop)
    assert [row[0] for row in tables[0][2] if row[2].startswith("nothing to clear")] == ["zero_grad"]
    for name in ("functional_loop", "classic_loop"):
        with stand_in.standing_in(right(name), lab0_mlp.main):
            show_lines(lab0_mlp.classic_loop, lab0_mlp.functional_loop)
    assert all(len(table[2]) == 5 for table in tables), tables


OF_LAB0 = ("linear", "relu", "softmax", "cross_entropy", "accuracy", "sgd", "two_layer_grads")
OF_LAB0 += ("functional_loop", "classic_loop")  # numerical_grad, an entry at a time, takes seconds


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")
def test_of_a_drill_begun_anew_the_answer_that_was_set_aside_is_used():
    file = write("relu", "def relu(x):\n    return x.clamp(min=0)\n")
    answers.begin(file, cut.cut("relu"))
    assert mine.written()["relu"] == file.with_name("relu.py.old")
    stand_in.load("relu", mine.written()["relu"], main)
    answers.begin(write("relu", "def relu(x):\n    return x * (x > 0)\n"), cut.cut("relu"))
    assert mine.written()["relu"] == file.with_name("relu.py.old2")
    write("relu", "def relu(x):\n    return x\n")
    assert mine.written()["relu"] == file


def test_the_table_of_a_lab_is_the_same_with_right_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(lab0_mlp, "draw_losses", lambda *_: None)
    few, config = take(digits().train, 32), lab0_mlp.Config(out=tmp_path)
    ours = lab0_mlp.check_gradients(config, few) + lab0_mlp.compare_loops(config, few)
    with stand_in.standing_in(right(*OF_LAB0), lab0_mlp.main) as stand:
        theirs = lab0_mlp.check_gradients(config, few) + lab0_mlp.compare_loops(config, few)
    assert [(c.name, c.target, c.ok) for c in theirs] == [(c.name, c.target, True) for c in ours]
    called = {name for name, calls in stand.calls().items() if calls}
    assert called >= {"linear", "relu", "two_layer_grads", "functional_loop", "classic_loop"}


def test_a_wrong_answer_in_place_fails_the_same_checks(tmp_path):
    text = (ANSWERS / "two_layer_grads.py").read_text() + "\nright = two_layer_grads\n"
    text += "from fn import tree\n"
    text += "def two_layer_grads(params, x, y):\n    return tree.map(lambda g: 2 * g, right(params, x, y))\n"
    few, config = take(digits().train, 32), lab0_mlp.Config(out=tmp_path)
    with stand_in.standing_in({"two_layer_grads": write("two_layer_grads", text)}, lab0_mlp.main):
        checks = lab0_mlp.check_gradients(config, few)
    assert [c.ok for c in checks] == [True, False]


# Which are taken.


def run(monkeypatch, tmp_path, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lab9", "--out", str(tmp_path / "out"), *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(Config, main)
    return int(stop.value.code or 0)


def write_three() -> None:
    write("relu", "def relu(x):\n    return x.masked_fill(x <= 0, 0.0)\n")
    write("softmax", "def softmax(x, dim):\n    return x.exp() / x.exp().sum(dim, keepdim=True)\n")
    write("linear", cut.cut("linear"))


def test_an_answer_that_passes_is_taken_and_another_is_not(monkeypatch, capsys, tmp_path):
    """`linear` is only begun, and so is neither."""
    write_three()
    monkeypatch.setattr(launch, "graded", lambda name, _: Verdict(name == "relu", ["said"]))
    assert run(monkeypatch, tmp_path, "--mine") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Yours: relu; ours: the others. Refused: softmax (just check-drill softmax says why)." in said
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["mine"] == {"calls": {"relu": 1}, "refused": ["softmax"]}
    assert stand_in.FILES not in os.environ


@pytest.mark.slow
def test_the_tests_that_hold_ours_say_which_is_taken(monkeypatch, capsys, tmp_path):
    write_three()
    monkeypatch.setattr(launch, "graded", GRADED)
    assert run(monkeypatch, tmp_path, "--mine") == 0
    assert "Yours: relu; ours: the others. Refused: softmax" in " ".join(capsys.readouterr().out.split())


def test_what_was_graded_is_not_graded_again_until_it_or_ours_changes(monkeypatch, capsys, tmp_path):
    graded: list[str] = []
    grade = lambda name, file: graded.append(name) or Verdict("right" in file.read_text(), ["said"], 1)  # noqa: E731
    monkeypatch.setattr(launch, "graded", grade)
    write("relu", "def relu(x):\n    return x  # right\n")
    write("softmax", "def softmax(x, dim):\n    return x\n")
    for _ in range(2):
        run(monkeypatch, tmp_path, "--mine")
        assert "Refused: softmax" in capsys.readouterr().out
    assert sorted(graded) == ["relu", "softmax"]
    write("softmax", "def softmax(x, dim):\n    return x  # right\n")
    run(monkeypatch, tmp_path, "--mine")
    assert graded[2:] == ["softmax"]
    monkeypatch.setattr(mine, "sources", lambda: "another state of ours")
    run(monkeypatch, tmp_path, "--mine")
    assert sorted(graded[3:]) == ["relu", "softmax"]
    for entry in (tmp_path / "data").rglob("graded/*.json"):
        entry.write_text('{"passed": ')
    run(monkeypatch, tmp_path, "--mine")
    assert sorted(graded[5:]) == ["relu", "softmax"]


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "nothing is written in .* yet; just drill next begins something"),
        ({"linear": cut.cut("linear"), "relu": ""}, "nothing is written in"),
        ({"relu": "def relu(x:"}, r"passes its tests. Refused: relu \(just check-drill relu says why\)"),
    ],
    ids=["no file", "untouched", "refused"],
)
def test_with_nothing_to_take_it_is_a_line_and_exit_2(monkeypatch, capsys, tmp_path, files, complaint):
    for name, text in files.items():
        write(name, text)
    monkeypatch.setattr(launch, "graded", lambda *_: Verdict(False, ["said"]))
    assert run(monkeypatch, tmp_path, "--mine") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: --mine: ")
    assert said.err.count("\n") == 1
    assert re.search(complaint, said.err)


def test_a_process_that_a_lab_starts_has_theirs_too(monkeypatch, capsys, tmp_path):
    """It finds them in its environment, without the flag."""
    with stand_in.standing_in(right("relu"), main):
        started_with = os.environ[stand_in.FILES]
    monkeypatch.setenv(stand_in.FILES, started_with)
    assert run(monkeypatch, tmp_path) == 0
    assert "Yours: relu; ours: the others." in " ".join(capsys.readouterr().out.split())


# The whole of a lab.


@pytest.mark.parametrize("lab", WHOLES)
def test_the_file_of_a_whole_lab_runs_as_it_is_and_is_empty(lab):
    text = cut.cut_whole(WHOLES[lab])
    namespace: dict[str, Any] = {}
    exec(compile(text, lab, "exec"), namespace)
    for of in WHOLES[lab]:
        name = of.partition(":")[2]
        assert cut.is_empty(cut.definition_of(cut.ast.parse(text), name))
        assert cut.ast.get_docstring(cut.source_of(of).node), f"{of}: nothing says what it is to do"
        if inspect.isfunction(namespace[name]):
            assert list(inspect.signature(namespace[name]).parameters) == list(
                inspect.signature(resolve_name(of)).parameters
            )
    assert " _" not in "".join(line for line in text.splitlines() if line.startswith("from"))


@pytest.mark.parametrize("lab", WHOLES)
def test_all_functions_of_a_whole_lab_stand_in_and_leave(lab):
    module = importlib.import_module(f"experiments.{LABS[lab.removeprefix('lab')]}")
    assert cli.parse(module.Config, ["--mine", "--predict"]).mine
    bodies = {of: inspect.unwrap(resolve_name(of)) for of in WHOLES[lab] if not inspect.isclass(resolve_name(of))}
    before = {of: f.__code__ for of, f in bodies.items()}
    file = write(lab, cut.cut_whole(WHOLES[lab]))
    with stand_in.standing_in({lab: file}, module.main) as stand:
        assert list(stand.calls()) == [of.partition(":")[2] for of in WHOLES[lab]]
        assert {f.__code__.co_filename for f in bodies.values()} == {str(file)}
    assert {of: f.__code__ for of, f in bodies.items()} == before


def test_a_whole_lab_is_begun_and_refused_before_it_runs(monkeypatch, capsys):
    monkeypatch.setattr(whole_lab.subprocess, "run", lambda *_, **__: pytest.fail("the lab was run"))
    command = lambda *flags: drill.main(cli.parse_flags(drill.Config, flags))  # noqa: E731
    assert command("lab0") == 0
    assert command("lab0", "--check") == 1
    assert "nothing is written yet below `mlp_loss`, `overfit_few`" in capsys.readouterr().out
    text = (ANSWERS / "lab0.py").read_text()
    for bad, said in [
        (text.replace("def mlp_loss", "def loss_of_mlp"), "lab0.py has no `mlp_loss`"),
        (
            text + "\nfrom experiments.lab0_mlp import classic_loop\n",
            "takes our own `experiments.lab0_mlp.classic_loop`",
        ),
        (text + "\ndef classic_loop(\n", "lab0.py, line"),
    ]:
        write("lab0", bad)
        assert command("lab0", "--check") == 1
        assert said in capsys.readouterr().out
    write("lab0", text)
    monkeypatch.setattr(whole_lab.subprocess, "run", lambda *_, **__: CompletedProcess([], 1))
    assert command("lab0", "--check") == 1
    assert capsys.readouterr().out.startswith("Lab 0 runs with your functions")  # it is silent while it imports torch
    assert command("lab0", "--hint") == 0
    assert "1 of 1: How the lab calls each function" in capsys.readouterr().out
    assert command() == 0
    assert "0 · the whole of it" in capsys.readouterr().out


def test_the_verdict_on_a_whole_lab_is_that_of_its_checks(tmp_path):
    summary = tmp_path / "summary.json"
    said = "the lab ended with status 1, before its checks; it said why above"
    assert whole_lab.verdict(summary, 1) == Verdict(False, [said])
    checks = [{"name": "steps", "value": None, "target": "<= 300", "ok": False}]
    summary.write_text(json.dumps({"checks": checks, "mine": {"calls": {"mlp_loss": 3}}}))
    assert whole_lab.verdict(summary, 1).lines[1] == "  steps: not finite, not <= 300"
    summary.write_text(json.dumps({"checks": [], "mine": {"calls": {"mlp_loss": 3, "classic_loop": 0}}}))
    assert whole_lab.verdict(summary, 0).lines == ["never called: classic_loop"]
    summary.write_text(json.dumps({"checks": [{**checks[0], "ok": True}], "mine": {"calls": {"mlp_loss": 3}}}))
    assert whole_lab.verdict(summary, 0).passed
    assert whole_lab.verdict(summary, 0).star


def test_of_a_whole_lab_that_is_passed_no_edges_are_said_to_be_missing(monkeypatch, capsys):
    monkeypatch.setattr(whole_lab, "check", lambda *_: Verdict(True, ["all 9 checks hold"], 9, star=True))
    drill.main(drill.Config("lab0"))
    drill.main(drill.Config("lab0", check=True))
    said = capsys.readouterr().out
    assert "passed in" in said
    assert "edges" not in said


def test_the_parts_of_a_whole_lab_hold_its_checks(monkeypatch, tmp_path):
    """Those that take a second; the slow test below runs all of it."""
    monkeypatch.setattr(lab0_mlp, "draw_losses", lambda *_: None)
    few, config = take(digits().train, 32), lab0_mlp.Config(out=tmp_path)
    with stand_in.standing_in({"lab0": ANSWERS / "lab0.py"}, lab0_mlp.main) as stand:
        checks = lab0_mlp.check_gradients(config, few) + lab0_mlp.compare_loops(config, few)
    assert all(check.ok for check in checks)
    assert stand.calls().keys() == {"mlp_loss", "overfit_few", "classic_loop", "functional_loop", "train_and_test"}
    assert stand.calls()["classic_loop"] == stand.calls()["functional_loop"] == 1
    assert stand.calls()["mlp_loss"] > 1


@pytest.mark.longest
@pytest.mark.slow
@pytest.mark.parametrize("lab", WHOLES)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_whole_lab_from_memory_holds_its_checks_and_is_called(monkeypatch, tmp_path, lab):
    """With two seeds, and of the long labs those parts that call it."""
    file = ANSWERS / f"{lab}.py"
    whole_lab.require_written(lab, file)
    monkeypatch.setattr(lab6_data, "EXAMPLES", lab_parts.EXAMPLES)  # before the file imports it
    monkeypatch.setattr(show, "failures", [])
    with stand_in.standing_in({lab: file}, main_of(lab)) as stand:
        checks = lab_parts.whole(lab, monkeypatch, tmp_path)
    assert [check for check in checks if not check.ok and not any(word in check.name for word in TIMED)] == []
    assert [name for name, calls in stand.calls().items() if not calls] == []
    assert show.failures == []  # of pictures


WRONG_WHOLES = [
    pytest.param(lab, *wrong, marks=[pytest.mark.slow] if wrong[2] in LONG else [], id=f"{lab}, {label}")
    for lab in WHOLES
    for label, wrong in ast.literal_eval((ANSWERS / f"{lab}.py").read_text().split("\nWRONG = ")[1]).items()
]


@pytest.mark.parametrize(("lab", "old", "new", "part", "said"), WRONG_WHOLES)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_wrong_whole_lab_is_refused_in_words(monkeypatch, tmp_path, lab, old, new, part, said):
    """Before anything runs, or by the checks of a part of the lab; what is said names the check, or the call."""
    text = (ANSWERS / f"{lab}.py").read_text().split("\nWRONG = ")[0]
    assert text.count(old) == 1
    file = write(lab, text.replace(old, new))
    if not part:
        monkeypatch.setattr(whole_lab.subprocess, "run", lambda *_, **__: pytest.fail("the lab was run"))
        assert said in "\n".join(whole_lab.check(lab, file).lines)
        return
    whole_lab.require_written(lab, file)
    monkeypatch.setattr(lab6_data, "EXAMPLES", lab_parts.EXAMPLES)  # before the file imports it
    with stand_in.standing_in({lab: file}, main_of(lab)) as stand:
        lab_parts.make_small(monkeypatch)
        if part == "main":
            checks = lab_parts.whole(lab, monkeypatch, tmp_path)
        else:
            checks = lab_parts.PARTS[lab](part, tmp_path)()
    summary = tmp_path / "summary.json"
    found = [{"name": c.name, "value": c.value, "target": c.target, "ok": c.ok} for c in checks]
    summary.write_text(json.dumps({"checks": found, "mine": stand.as_json()}))
    verdict = whole_lab.verdict(summary, 1)
    assert verdict.lines[0] == "these checks of the lab do not hold:"
    assert said in "\n".join(verdict.lines)


def test_a_call_within_the_file_of_a_whole_lab_is_counted_too():
    with stand_in.standing_in({"lab2": ANSWERS / "lab2.py"}, lab2_training.main) as stand:
        checks = lab2_training.accumulate(lab2_training.Config(), torch.device("cpu"))
    assert checks[0].ok
    assert stand.calls()["accumulated"] == 3
    assert stand.calls()["train_step"] == 1
