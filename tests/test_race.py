"""The race: its rules, its tables, and recipes of the reader's, on a few digits enlarged to 28×28."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from scipy import stats
from torch.utils.data import TensorDataset
from torchvision.datasets import MNIST

from experiments.race import __main__ as race
from experiments.race import modules, ours, rules
from experiments.race.rules import Run
from experiments.shared import cli, show
from fn.data.datasets import Dataset, Split, digits, take
from fn.jit.compiler import flatten_call
from fn.jit.fingerprint import fingerprint
from fn.train import init_train_state, run_key
from tests.launch import run_in_process
from tests.test_readers import idx_of, write_mnist

README = (Path(race.__file__).parent / "README.md").read_text()
[STARTER] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def data() -> Dataset:
    found = digits()
    train, test = (
        Split(F.pad(F.interpolate(split.images, scale_factor=3.0), (2, 2, 2, 2)), split.labels)
        for split in (take(found.train, 600), take(found.test, 100))
    )
    return Dataset(train, test, found.classes)


@pytest.fixture
def launch(monkeypatch, capsys, tmp_path, data):
    def run(*flags: str) -> tuple[Any, str, str]:
        given = ("--no-compile", "--out", str(tmp_path / "out"), *flags)
        return run_in_process(monkeypatch, capsys, race.Config, race.main, *given)

    monkeypatch.setattr(cli, "load", lambda *_: data)
    return run


def test_ours_and_the_modules_run_in_turns_and_each_clock_is_said(launch, monkeypatch, tmp_path, data):
    monkeypatch.setattr(modules, "Pictures", lambda *_: TensorDataset(*take(data.train, 64)))
    monkeypatch.setattr(modules, "RECIPE_EPOCHS", 2)
    monkeypatch.setattr(show, "console", Console(highlight=False, width=60))
    status, out, err = launch("--seeds", "2", "--seed", "5")
    turns = re.findall(r"^(.+), seed (\d): ", err, re.MULTILINE)
    turns = [turn for turn in turns if "epoch" not in turn[0] and "step" not in turn[0]]
    assert [turn for turn in turns if turn[0] != race.PUBLISHED] == [
        ("ours", "5"), ("fast module", "5"), ("ours", "6"), ("fast module", "6")
    ]  # fmt: skip
    assert (race.PUBLISHED, "5") in turns
    for word in ("deviation", "training", "evaluation", "compiling", "in all"):
        assert word in " ".join(out.split())
    assert all(len(line) <= 60 for line in out.splitlines() if line[:1] == " ")
    names = [check["name"] for check in json.loads((tmp_path / "out" / "summary.json").read_text())["checks"]]
    assert names[0] == "ours: mean accuracy"
    assert names[1].startswith("ours: p of")
    assert names[2].startswith("times faster")
    assert status == 1  # two steps are too few


def test_the_published_recipe_reads_mnist_as_torchvision_does_from_the_archives_too(monkeypatch, tmp_path):
    raw = write_mnist(tmp_path / "MNIST" / "raw")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28))
    (raw / "train-images-idx3-ubyte").write_bytes(idx_of(pixels))
    monkeypatch.setenv("FN_DATA", str(tmp_path))
    theirs = MNIST(tmp_path, transform=modules.PREPARE)
    for file in raw.glob("*-ubyte"):
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    ours = modules.Pictures()
    assert len(ours) == len(theirs) == 20
    for (x, y), (expected, label) in ((ours[i], theirs[i]) for i in range(20)):
        assert torch.equal(x, expected)
        assert y == label
    monkeypatch.setattr(modules, "RECIPE_EPOCHS", 1)
    [predict] = modules.published(torch.device("cpu"), 0)
    assert predict(torch.ones(2, 1, 28, 28)).shape == (2, 10)


def test_a_recipe_ends_at_the_goal_and_its_clocks_leave_each_other_out(monkeypatch, data):
    test = take(data.test, 50)
    right = F.one_hot(test.labels, 10).float()
    clock = iter([0.0, 1.0, 11.0, 20.0, 23.0, 63.0])  # begun; trained, scored; begun; trained, scored
    monkeypatch.setattr(rules, "_now", lambda _: next(clock))
    taken = []
    predicts = (taken.append(i) or (lambda x, sign=sign: sign * right[: len(x)]) for i, sign in enumerate((-1, 1, -1)))
    assert rules.run("a recipe", predicts, test) == Run(1.0, training=1.0 + 3.0, evaluation=10.0 + 40.0)
    assert taken == [0, 1]


def test_the_step_of_the_record_is_one_that_the_next_race_finds_compiled():
    assert fingerprint(ours.prepared(234, compiled=False)[1])


def test_one_seed_has_no_p_and_that_is_said(launch, tmp_path):
    _, out, _ = launch("--seeds", "1", "--recipe-seeds", "0")
    assert "one seed has none" in out
    assert "a single run cannot tell" in out
    [only] = json.loads((tmp_path / "out" / "summary.json").read_text())["checks"]
    assert only["name"] == "ours: accuracy"


def test_the_starter_of_the_readme_races(launch, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(STARTER)
    status, out, err = launch("--mine", str(file), "--seeds", "2", "--recipe-seeds", "0")
    assert status in (0, 1)
    assert err.startswith("yours, seed 0: ")
    assert re.search(r"^ *yours ", out, re.MULTILINE)
    checks = json.loads((tmp_path / "out" / "summary.json").read_text())["checks"]
    assert [check["name"].split(":")[0] for check in checks] == ["yours", "yours", "ours", "ours"]


def test_a_recipe_may_return_classes_and_spoils_no_other(data):
    def train(split, seed):
        split.images.zero_()
        return lambda images: images.zero_().flatten(1).argmax(1)

    before = data.train.images.clone(), data.test.images.clone()
    run = rules.run("mine", rules.once(train, data, 0), data.test)
    assert run.accuracy == (data.test.labels == 0).double().mean().item()
    assert torch.equal(before[0], data.train.images)
    assert torch.equal(before[1], data.test.images)


BAD = {
    "def train(split):\n    pass\n": "cannot be called as train(split, seed)",
    "train = 3\n": "train is a int, not a function",
    "other = 3\n": "has no function train(split, seed)",
    "def train(split, seed)\n": ", line 1: expected ':'",
    "import nowhere_at_all\n": "fails when it is imported: ModuleNotFoundError",
    "raise SystemExit('a\\nb')\n": "fails when it is imported: SystemExit: a",
    "def train(split, seed):\n    return 3\n": "train returned a int, not a function predict(images)",
    "def train(split, seed):\n    return lambda x: 3\n": "predict returned a int, not a tensor",
    "def train(split, seed):\n    return lambda x: x\n": "not logits (100, 10) or whole numbers (100,)",
    "def train(split, seed):\n    return lambda x: x[:, 0, 0, 0]\n": "predict returned torch.float32 of shape (100,)",
}


@pytest.mark.parametrize("text", BAD, ids=list(BAD.values()))
def test_a_file_that_is_no_recipe_is_refused_in_one_line(launch, tmp_path, text):
    file = tmp_path / "mine.py"
    file.write_text(text)
    status, out, err = launch("--mine", str(file))
    assert (status, out) == (2, "")
    assert err.startswith(f"error: --mine {file}")
    assert BAD[text] in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_there_is_refused_in_one_line(launch, tmp_path):
    status, _, err = launch("--mine", str(tmp_path / "none.py"))
    assert (status, err) == (2, f"error: --mine {tmp_path / 'none.py'} cannot be read: No such file or directory\n")


def test_ctrl_c_ends_the_race(launch, monkeypatch):
    def train(split, seed):
        raise KeyboardInterrupt

    monkeypatch.setattr(modules, "fast", train)
    assert launch("--recipe-seeds", "0")[0] == 130


@pytest.mark.parametrize("accuracies", [[0.991, 0.9905, 0.9912], [0.989, 0.9892], [0.9899, 0.9903, 0.9901, 0.9904]])
def test_p_is_that_of_the_t_test_and_falls_with_the_mean(accuracies):
    n = len(accuracies)
    sample = torch.tensor(accuracies, dtype=torch.float64)
    t = (sample.mean() - rules.GOAL) / (sample.std() / n**0.5)
    assert rules.p_value(accuracies) == pytest.approx(stats.t.sf(t.item(), n - 1), rel=1e-6)
    assert rules.p_value(accuracies) == stats.ttest_1samp(accuracies, 0.99, alternative="greater")[1]


def test_p_without_a_spread():
    assert rules.p_value([0.991, 0.991]) == 0
    assert rules.p_value([0.99, 0.99]) == 1
    assert rules.p_value([0.991]) != rules.p_value([0.991])  # NaN


def test_compiling_is_what_the_first_run_takes_beyond_the_others():
    clocks = rules.summarize([Run(0.99, 20.0, 3.0), Run(0.99, 4.0, 1.0), Run(0.99, 6.0, 1.0)])
    assert clocks == (5.0, 1.0, 17.0, 35.0)
    assert rules.summarize([Run(0.99, 20.0, 3.0)]) == (20.0, 3.0, None, 23.0)


def test_muon_turns_all_directions_alike():
    """Each singular value of what is subtracted lies near 1, whatever those of the gradient."""
    for shape in ((16, 4, 3, 3), (64, 4, 3, 3)):
        g = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(ours.orthogonalize(g).flatten(1))
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_a_step_of_ours_returns_the_tree_that_it_was_given(data):
    """In the same order too, as `jit` would compile it once more otherwise."""
    optimizer, step = ours.prepared(2, compiled=False)
    ts = init_train_state(ours.model, optimizer, seed=0)
    after, _ = step(ts, *take(data.train, 8), key=run_key(0))
    signatures: list[list] = [[], []]
    for tree, signature in zip((ts, after), signatures, strict=True):
        flatten_call(tree, [], signature)
    assert signatures[0] == signatures[1]
