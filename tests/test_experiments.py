"""The command line of every experiment: exit status, one-line errors, summary.json, pictures; the labs end to end."""

import ast
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from experiments import (
    lab0_mlp,
    lab1_cnn,
    lab2_training,
    lab3_transformer,
    lab5_detection,
    lab6_data,
    lab7_processes,
    overfit,
)
from experiments.lab import LABS
from experiments.lab_helpers.lab0.tables import show_lines, tagged_lines
from experiments.lab_helpers.lab5 import detection_task
from experiments.shared import cli, show
from experiments.shared.registry import MODELS
from experiments.train import config as train
from fn.data import scenes
from fn.data.datasets import Dataset, digits, take
from fn.files import write_atomic
from fn.gradcheck import numerical_grad, relative_error
from fn.models import Model
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from tests.launch import run_in_process

CPU = torch.device("cpu")
MODULES = {
    "lab0": lab0_mlp,
    "lab1": lab1_cnn,
    "lab2": lab2_training,
    "lab3": lab3_transformer,
    "lab5": lab5_detection,
    "lab6": lab6_data,
    "lab7": lab7_processes,
    "overfit": overfit,
}


def launch(monkeypatch, capsys, name: str, *flags: str) -> tuple[Any, str, str]:
    """Return (exit status, stdout, stderr) of an experiment run in this process."""
    return run_in_process(monkeypatch, capsys, MODULES[name].Config, MODULES[name].main, *flags)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--family", "cnm"], "Expected one of ('all', 'mlp', 'cnn', 'transformer', 'resnet', 'ssd', 'centernet')"),
        (["--dataset", "imagenet"], "Expected one of ('digits', 'mnist', 'fashion_mnist', 'cifar10', 'folder')"),
        (["--device", "tpu"], "Expected one of ('auto', 'cpu', 'cuda', 'mps')"),
        (["--stepz", "3"], "Perhaps you meant: --steps"),
        (["--steps", "1e30"], "error: Error parsing --steps: '1e30' is no INT\n"),
        (["--lr", "small"], "error: Error parsing --lr: 'small' is no FLOAT\n"),
        (["--steps", "0"], "--steps 0 is not between 1 and 1000000000"),
        (["--lr", "nan"], "--lr nan is not between 0.0 and 1e+38"),
        (["--lr", "-1"], "--lr -1.0 is not between 0.0"),
        (["--seed", "-1"], "--seed -1 is not between"),
        (["--out", __file__], "cannot be written to: File exists"),
        (["--out", f"{__file__}/below"], "cannot be written to: Not a directory"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(monkeypatch, capsys, flags, complaint):
    status, out, err = launch(monkeypatch, capsys, "overfit", *flags)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "flags", "compile"),
    [
        (train.Config, [], False),
        (train.Config, ["--dataset", "mnist"], True),
        (train.Config, ["--dataset", "mnist", "--no-compile"], False),
        (train.Config, ["--dataset", "mnist", "--limit", "500"], False),
        (train.Config, ["--dataset", "mnist", "--epochs", "3", "--model", "mlp"], False),
        (train.Config, ["--dataset", "mnist", "--epochs", "3", "--model", "cnn"], True),
        (train.Config, ["--compile"], True),
        (lab1_cnn.Config, [], False),
        (lab1_cnn.Config, ["--dataset", "mnist"], True),
        (lab0_mlp.Config, ["--compile"], True),
        (overfit.Config, ["--compile"], True),
    ],
)
def test_the_step_is_compiled_where_that_pays_or_as_said(config, flags, compile):
    assert cli.parse(config, flags).compile == compile


@pytest.mark.slow
def test_a_compiled_step_overfits_as_well(monkeypatch, capsys, tmp_path):
    status, out, _ = launch(
        monkeypatch, capsys, "overfit", "--family", "mlp", "--compile", "--out", str(tmp_path / "out")
    )
    assert status == 0, out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_says_so(monkeypatch, capsys):
    status, _, err = launch(monkeypatch, capsys, "overfit", "--device", "cuda")
    assert (status, err) == (2, "error: --device cuda: there is none here; use cpu\n")


def test_a_missing_dataset_says_where_it_looked(monkeypatch, capsys, tmp_path):
    def no_network(*_, **__):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setenv("FN_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.MNIST.download", no_network)
    status, _, err = launch(monkeypatch, capsys, "overfit", "--dataset", "mnist")
    assert status == 2
    assert str(tmp_path / "MNIST" / "raw") in err
    assert "FN_DATA" in err


def test_summary_and_exit_status(monkeypatch, capsys, tmp_path):
    flags = ["--family", "mlp", "--out", str(tmp_path)]
    status, out, _ = launch(monkeypatch, capsys, "overfit", *flags)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert status == 0
    assert summary.keys() >= {"name", "checks", "seconds", "config", "versions"}
    assert summary["name"] == "overfit"
    assert summary["config"]["family"] == "mlp"
    assert all(check.keys() >= {"name", "value", "target", "ok"} and check["ok"] for check in summary["checks"])
    assert "mlp: accuracy" in out

    status, out, _ = launch(monkeypatch, capsys, "overfit", *flags, "--steps", "1")
    assert status == 1
    assert "FAILED" in out
    assert not all(check["ok"] for check in json.loads((tmp_path / "summary.json").read_text())["checks"])


def test_a_learning_rate_of_zero_is_obeyed(monkeypatch, capsys, tmp_path):
    losses = []
    for steps in ("1", "3"):
        launch(monkeypatch, capsys, "overfit", "--family", "mlp", "--lr", "0", "--steps", steps, "--out", str(tmp_path))
        losses.append(json.loads((tmp_path / "summary.json").read_text())["checks"][0]["value"])
    assert losses[0] == losses[1]


def test_a_value_that_is_not_finite_is_null_in_the_summary(capsys, tmp_path):
    cli.report([cli.check("steps", math.inf, "<=", 300)], overfit.Config(out=tmp_path), 0.0)
    [check] = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)["checks"]
    assert check["value"] is None
    assert not check["ok"]


def test_a_table_of_seven_columns_cuts_no_word_of_its_head_at_60_columns(monkeypatch, capsys):
    monkeypatch.setattr(show.console, "_width", 60)
    names = ("step", "accuracy", "loss", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    show.table("Gradients", names, [("19", "100%", *["8.7e-04"] * 5)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert [line.split().count("8.7e-04") for line in lines if "19" in line] == [5]
    assert show.at_dots("-0.123456789012345", 4) == "-0.123456789012345"
    assert "fc1. fc1. fc2. fc2. step accuracy loss weight bias weight bias" in " ".join(" ".join(lines).split())


def test_a_dotted_name_in_a_table_is_broken_at_its_dots_at_60_columns(monkeypatch, capsys):
    monkeypatch.setattr(show.console, "_width", 60)
    show_lines(lab0_mlp.classic_loop, lab0_mlp.functional_loop)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 60
    assert {"torch.nn.functional.", "cross_entropy(logits,"} <= {*out.split()}


def test_a_loss_that_diverges_stops_the_run(monkeypatch, capsys, tmp_path):
    status, _, err = launch(monkeypatch, capsys, "overfit", "--family", "mlp", "--lr", "1e30", "--out", str(tmp_path))
    assert status == 1
    assert "error: training diverged at step 1: loss" in err
    assert "first non-finite update in fc1.weight" in err


def test_checks_compare_as_they_say():
    assert cli.check("", 0.97, ">=", 0.97).ok
    assert not cli.check("", 0.001, "<", 0.001).ok
    assert not cli.check("", math.nan, "<=", 1).ok
    assert not cli.check("", math.nan, ">=", 1).ok
    mean = cli.check_mean("", [0.9, 1.0], ">=", 0.95)
    assert mean.ok
    assert mean.spread == "± 0.071, 2 seeds"


@pytest.mark.parametrize(
    ("relation", "bound"), [(">=", 0), (">=", -1), (">", -0.1), ("<=", math.inf), (">=", -math.inf)]
)
def test_a_check_that_cannot_fail_is_none(relation, bound):
    with pytest.raises(ValueError, match=f"accuracy: {relation} .* is a check that cannot fail"):
        cli.check("accuracy", 0.5, relation, bound)
    with pytest.raises(ValueError, match="cannot fail"):
        cli.check_mean("accuracy", [0.5, 0.6], relation, bound)


def written_checks() -> list[ast.Call]:
    """Return every call of `check` and of `check_mean` in the experiments."""
    paths = (Path(__file__).parents[1] / "experiments").rglob("*.py")
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) in ("cli.check", "cli.check_mean")]


def test_no_check_of_an_experiment_is_one_that_every_value_passes():
    """Of those whose target stands in the code; other targets meet the refusal above as they are checked."""
    calls, tried = written_checks(), 0
    for call in calls:
        *_, relation, bound = call.args  # the last two may stand in one tuple
        if isinstance(relation, ast.Constant) and isinstance(bound, ast.Constant):
            cli.check(ast.unparse(call), 1, cast(str, relation.value), cast(float, bound.value))
            tried += 1
    assert (len(calls) > 60, tried > 45) == (True, True)


OF_THE_MACHINE = {"loaders: processor time by example / by batch"}
"""the check of a time, which holds on a machine that does nothing else; the next test proves what it is about"""


def test_by_example_every_image_is_a_call_and_by_batch_every_batch(monkeypatch):
    """Lab 6 measures this as time: the same shifts take 128 times as many calls."""
    calls: list[int] = []
    crop = lab6_data.random_crop
    monkeypatch.setattr(lab6_data, "random_crop", lambda x, key: calls.append(len(x)) or crop(x, key))
    monkeypatch.setattr(lab6_data, "EXAMPLES", 256)
    loaders = lab6_data.make_loaders(lab6_data.Config(), take(digits().train, 256))
    for name, sizes in {lab6_data.OURS: [128] * 2, lab6_data.SAME: [1] * 256}.items():
        calls.clear()
        assert len(list(loaders[name, 0]())) == 2
        assert calls == sizes


@pytest.mark.parametrize(("by_example", "ok"), [(20.0, True), (19.9, False)])
def test_by_example_has_to_take_twenty_times_as_long(monkeypatch, by_example, ok):
    def time_loaders(loaders, rounds):
        busy = {n: [by_example if n == (lab6_data.SAME, 0) else 1.0, 99.0] for n in loaders}
        return busy, busy, dict.fromkeys(loaders, (torch.zeros(1), torch.zeros(1)))

    monkeypatch.setattr(lab6_data, "time_loaders", time_loaders)
    *_, check = lab6_data.compare_loaders(lab6_data.Config())
    assert {check.name} == OF_THE_MACHINE
    assert check.ok == ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "where", "pictures"),
    [
        ("lab0", "*.png", 2),
        ("lab1", "*.png", 6),
        ("lab2", "*/curves.png", 3 + len(MODELS)),
        ("lab3", "*.png", 3),
        ("lab6", "*/curves.png", 2),
    ],
)
def test_labs_hold(monkeypatch, capsys, tmp_path, name, where, pictures):
    """With two seeds and one round of the loaders, to save minutes; `just labs` takes all."""
    monkeypatch.setattr(cli, "seeds", lambda config, n: range(min(n, 2)))
    time_loaders = lab6_data.time_loaders
    monkeypatch.setattr(lab6_data, "time_loaders", lambda loaders, rounds: time_loaders(loaders, rounds=1))
    module = MODULES[name]
    checks = module.main(module.Config(out=tmp_path), CPU)
    assert {check.name for check in checks if not check.ok} <= OF_THE_MACHINE
    drawn = list(tmp_path.glob(where))
    assert len(drawn) == pictures
    for png in drawn:
        with Image.open(png) as picture:
            assert len(picture.convert("L").getcolors(256) or []) > 2


@pytest.mark.parametrize("lab", [lab0_mlp, lab1_cnn])
def test_the_accuracy_of_a_lab_is_that_on_held_out_images(monkeypatch, tmp_path, lab):
    """With wrong labels on those it is small, however well the training images are known."""
    monkeypatch.setattr(cli, "seeds", lambda config, n: range(1))
    monkeypatch.setattr(lab0_mlp, "EPOCHS", 3)
    monkeypatch.setitem(lab1_cnn.RECIPES, "digits", lab1_cnn.RECIPES["digits"]._replace(epochs=1))
    data, config = digits(), lab.Config(out=tmp_path)
    wrong = data._replace(test=data.test._replace(labels=(data.test.labels + 1) % 10))
    [right], [mistaken] = (lab.train_and_test(config, lab_model(lab, data), given) for given in (data, wrong))
    assert getattr(right, "accuracy", right) > 0.7
    assert getattr(mistaken, "accuracy", mistaken) < 0.1


def lab_model(lab: Any, data: Dataset) -> Model:
    return (mlp if lab is lab0_mlp else cnn)(data.shape, 10)


@pytest.mark.slow
def test_lab5_on_a_handful_of_canvases_draws_and_evaluates(monkeypatch, tmp_path):
    """Its real size takes minutes; here nothing is learned but that every part of it runs."""
    few = partial(scenes.digits, 32, 20)
    monkeypatch.setattr(detection_task, "digits", few)
    monkeypatch.setattr(lab5_detection, "FEW_STEPS", 2)
    recipes = {"digits": lab5_detection.RECIPES["digits"]._replace(epochs={"anchor": 1, "center": 1})}
    monkeypatch.setattr(lab5_detection, "RECIPES", recipes)
    config = lab5_detection.Config(out=tmp_path, compile=False)
    checks = {check.name: check for check in lab5_detection.main(config, CPU)}
    for flavor in ("anchor", "center"):
        assert not checks[f"{flavor}, held out: AP50"].ok
        assert not checks[f"{flavor}, 8 images: AP50"].ok
    assert checks["all background: AP50"].value == 0
    assert 0 <= checks["random boxes: AP50"].value <= 0.05
    drawn = list(tmp_path.glob("*.png"))
    assert len(drawn) == 10
    for png in drawn:
        with Image.open(png) as picture:
            assert len(picture.convert("L").getcolors(256) or []) > 2


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--flavor", "corner"], "Expected one of ('anchor', 'center', 'both')"),
        (["--dataset", "voc"], "--dataset voc needs --root"),
        (["--root", "."], "--dataset digits takes no --root"),
        (["--dataset", "voc", "--root", "{tmp}"], "there is no folder"),
    ],
)
def test_bad_flags_of_lab5(monkeypatch, capsys, tmp_path, flags, complaint):
    flags = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]
    status, _, err = launch(monkeypatch, capsys, "lab5", *flags, "--out", str(tmp_path / "out"))
    assert status == 2
    assert complaint in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_which_line_became_which_names_real_lines():
    classic, functional = map(tagged_lines, (lab0_mlp.classic_loop, lab0_mlp.functional_loop))
    assert list(classic) == ["forward", "loss", "backward", "step", "zero_grad"]
    assert functional.keys() == classic.keys() - {"zero_grad"}
    assert classic["backward"] == "loss.backward()"


def quiz(monkeypatch, answers: list[str]) -> None:
    given = iter(answers)

    def answer(_: str) -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    assert lab1_cnn.main(lab1_cnn.Config(quiz=True), CPU) == []


def test_quiz_grades(monkeypatch, capsys):
    right = ["32 8 8", "32, 4, 4", "32×4×4", "32 4 4", "64 4 4", "64 2 2", "64 2 2", "64 2 2"]
    right += ["64 2 2", "64 2 2", "64 2 2", "256", "10"]
    quiz(monkeypatch, right)
    assert "13 of 13 right" in capsys.readouterr().out
    quiz(monkeypatch, ["32 7 7", *right[1:]])
    out = capsys.readouterr().out
    assert "no, 32 8 8: ⌊(8 + 2·1 − 3)/1⌋ + 1 = 8" in out
    assert "12 of 13 right" in out
    with pytest.raises(cli.UsageError, match="after 2 of 13"):
        quiz(monkeypatch, right[:2])


def test_lab_by_number_refuses_an_unknown_one():
    done = subprocess.run([sys.executable, "-m", "experiments.lab", "99"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: there is no lab '99'; the labs are {', '.join(LABS)}\n")


INTERRUPTED_IN_TRAINING = """
import os, signal, sys
from fn.data import loader

def interrupted(*args, **options):
    for i, batch in enumerate(batches(*args, **options)):
        if i == 3:
            os.kill(os.getpid(), signal.SIGINT)
        yield batch

batches, loader.batches = loader.batches, interrupted
from experiments.lab import main
sys.argv = ["lab", "0", "--out", {out!r}]
main()
"""


@pytest.mark.slow
def test_ctrl_c_exits_130_and_leaves_no_broken_file(tmp_path):
    """The lab sends it to itself before its fourth batch, so no clock decides where it stops."""
    code = INTERRUPTED_IN_TRAINING.format(out=str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (tmp_path / "overfit.png").exists()
    assert ran.returncode == 130
    assert ran.stderr.endswith("error: interrupted\n")
    assert not (tmp_path / "summary.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_write_atomic_leaves_the_old_file_or_the_new(monkeypatch, tmp_path):
    path = tmp_path / "new folder" / "file"
    write_atomic(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_numerical_grad_of_a_cubic():
    params = {"a": {"b": torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)}, "c": torch.ones(1).double()}
    slopes = numerical_grad(lambda p: (p["a"]["b"] ** 3).sum() + p["c"].sum(), params, chunk_size=4)
    exact = {"c": torch.ones(1).double(), "a": {"b": 3 * params["a"]["b"] ** 2}}
    assert relative_error(slopes, exact) < 1e-9
    assert relative_error({"c": slopes["c"], "a": {"b": -slopes["a"]["b"]}}, exact) > 1


INTERRUPTED = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
from experiments.lab import main
sys.argv = ["lab", "0", "--out", {out!r}]
main()
"""


@pytest.mark.parametrize("module", ["numpy", "torch.nn", "einops"])
def test_ctrl_c_while_a_library_loads_ends_the_lab(tmp_path, module):
    code = INTERRUPTED.format(module=module, out=str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (130, "")
    assert not list(tmp_path.iterdir())
