"""The trainer: every model on every data set, logs that can be recomputed, runs that repeat and resume bit for bit."""

import dataclasses
import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiments.shared import cli
from experiments.shared.registry import AUGMENTS, DATASETS, MODELS, OPTIMIZERS, SCHEDULES, resolve
from experiments.train import folder
from experiments.train import run as training
from experiments.train.__main__ import main
from experiments.train.config import Config, parse
from experiments.train.report import draw_curves
from fn import checkpoint, rng, tree
from fn.data.datasets import Dataset, Split, digits
from fn.data.loader import batches, epoch_order
from fn.losses import cross_entropy
from fn.metrics import top_k_accuracy
from fn.models.mlp import mlp
from fn.optim import Optimizer, adamw, one_cycle_schedule
from fn.train import init_train_state

MODULE = [sys.executable, "-m", "experiments.train"]
SMALL = ["--model", "mlp", "--hidden", "8", "--epochs", "2", "--batch-size", "32", "--limit", "150"]
NEEDS_DATA = pytest.mark.skipif("FN_DATA" not in os.environ, reason="FN_DATA is not set, so there is no real data")


@pytest.fixture
def run_trainer(monkeypatch, capsys, tmp_path):
    """Run the trainer in this process: run_trainer(*flags) -> (exit status, stdout, stderr)

    The picture of the curves, two thirds of the time of a small run, is drawn on demand.
    """

    def run_trainer(*flags: str, out: str = "run", draw: bool = False) -> tuple[Any, str, str]:
        monkeypatch.setattr(training, "draw_curves", draw_curves if draw else lambda *_: None)
        where = [] if "--resume" in flags else ["--out", str(tmp_path / out)]
        monkeypatch.setattr(sys, "argv", ["train", *where, *flags])
        with pytest.raises(SystemExit) as stop:
            cli.run(Config, main, parse)
        return stop.value.code, *capsys.readouterr()

    return run_trainer


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the entries of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def load_last(run: Path, hidden: int = 8, optimizer: str = "adamw") -> tuple[dict[str, Any], checkpoint.Progress]:
    """Return the newest checkpoint of a run of an mlp: (tensors, progress)."""
    ts = init_train_state(mlp((1, 8, 8), 10, hidden=(hidden,)), resolve(OPTIMIZERS[optimizer])(lr=0.1), seed=0)
    return checkpoint.load_newest(run / "checkpoints", ts._asdict())


def assert_same_run(run: Path, other: Path, **options: Any) -> None:
    """Assert that logs are equal byte for byte, newest checkpoints to the bit, and the best of the same step."""
    assert (run / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    (tensors, progress), (other_tensors, other_progress) = (load_last(r, **options) for r in (run, other))
    assert progress._replace(generators={}) == other_progress._replace(generators={})
    steps = [[checkpoint.step_of(path) for path in checkpoint.find(r / "checkpoints", "best")] for r in (run, other)]
    assert steps[0] == steps[1]
    flat, other_flat = tree.flatten(tensors), tree.flatten(other_tensors)
    assert flat.keys() == other_flat.keys()
    assert all(torch.equal(flat[name], other_flat[name]) for name in flat)


def write_photographs(root: Path) -> Path:
    """Write ten pictures of each of two classes, dark and light, and return `root`."""
    for name, colour in {"dark": (40, 20, 0), "light": (250, 200, 220)}.items():
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20 + i, 30 - i), tuple(c // (1 + i % 3) for c in colour)).save(root / name / f"{i}.png")
    return root


def fake_cifar10() -> Dataset:
    """Random images in the shape of CIFAR-10: the tests download nothing."""
    split = Split(torch.randn(40, 3, 32, 32, generator=rng.generator(0)), torch.arange(40) % 10)
    return Dataset(split, split, list("abcdefghij"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dataset", [pytest.param(d, marks=NEEDS_DATA) if "mnist" in d else d for d in DATASETS])
def test_every_model_trains_an_epoch_on_every_dataset(run_trainer, monkeypatch, tmp_path, model, dataset):
    monkeypatch.setattr("fn.data.datasets.cifar10", fake_cifar10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = (
        ["--root", str(write_photographs(tmp_path / "photographs")), "--image-size", "16"]
        if dataset == "folder"
        else []
    )
    flags = ["--model", model, "--dataset", dataset, "--epochs", "1", "--limit", "40", *root]
    status, out, err = run_trainer(*flags, draw=dataset == "digits")
    assert status == 0, err
    assert f"{model} on {dataset} after 1 epochs" in " ".join(out.split())
    assert {entry["event"] for entry in read_log(tmp_path / "run")} == {"step", "epoch", "end"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *(".lock", "config.json", "metrics.jsonl", "checkpoints", "summary.json", "report.html"),
        *(["curves.png"] if dataset == "digits" else []),
    }


def test_rows_name_functions_and_new_ones_need_no_more():
    for rows in (MODELS, DATASETS, OPTIMIZERS, SCHEDULES, AUGMENTS):
        assert all(callable(resolve(where)) for where in rows.values())
    assert all(isinstance(resolve(where)(lr=0.1), Optimizer) for where in OPTIMIZERS.values())


@pytest.mark.parametrize(
    "flags",
    [
        ["--optimizer", "sgd", "--momentum", "0.9", "--lr", "0.1", "--schedule", "cosine", "--warmup-steps", "3"],
        ["--optimizer", "adam", "--schedule", "constant", "--label-smoothing", "0.1", "--clip-norm", "0.5"],
        ["--augment", *AUGMENTS, "--accumulate", "3", "--weight-decay", "0", "--keep", "1"],
        ["--precision", "bf16", "--dropout-p", "0.5", "--validation", "0"],
    ],
)
def test_settings_together_train(run_trainer, tmp_path, flags):
    status, _, err = run_trainer(*SMALL, *flags, "--epochs", "12")
    assert status == 0, err
    first, *_, end = [entry["train"]["loss"] for entry in read_log(tmp_path / "run") if entry["event"] == "epoch"]
    assert end < first


def test_each_setting_is_obeyed(run_trainer, tmp_path):
    """It changes the loss of the last step, or, where it should not, leaves it alone."""

    def end(*flags: str) -> float:
        assert run_trainer(*SMALL, *flags, "--overwrite")[0] == 0
        return read_log(tmp_path / "run")[-3]["loss"]

    base = end()
    for name in ("optimizer sgd", "schedule cosine", "lr 0.01", "warmup-steps 3", "weight-decay 0.5", "clip-norm 0.1"):
        assert end(*f"--{name}".split()) != pytest.approx(base, rel=1e-6), name
    for name in ("label-smoothing 0.1", "dropout-p 0.2", "precision bf16", "validation 0.2", "seed 1", "hidden 9"):
        assert end(*f"--{name}".split()) != pytest.approx(base, rel=1e-6), name
    for name in AUGMENTS:
        assert end("--augment", name) != pytest.approx(base, rel=1e-6), name
    sgd = end("--optimizer", "sgd")
    assert end("--optimizer", "sgd", "--momentum", "0.9") != pytest.approx(sgd, rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "called"),
    [
        (["--accumulate", "4"], "fn.train_variants.accumulated"),
        (["--workers", "1"], "fn.data.loader.DataLoader"),
        (["--deterministic"], "torch.use_deterministic_algorithms"),
        (["--checkpoint-every", "2"], "fn.checkpoint.write_digested"),
    ],
)
def test_what_changes_no_value_is_obeyed_too(run_trainer, monkeypatch, tmp_path, flags, called):
    calls: list[Any] = []
    original = resolve(called[::-1].replace(".", ":", 1)[::-1])
    monkeypatch.setattr(called, lambda *args, **options: calls.append(args) or original(*args, **options))
    assert run_trainer(*SMALL, out="base")[0] == 0
    before = list(calls)
    calls.clear()
    assert run_trainer(*SMALL, *flags)[0] == 0
    losses = [[e["loss"] for e in read_log(tmp_path / out) if e["event"] == "step"] for out in ("base", "run")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    if "--deterministic" in flags:
        assert (before, calls) == ([(False,)], [(True,)])
    elif "--checkpoint-every" in flags:
        assert [int(stem[5:]) for _, stem, *_ in calls if stem.startswith("step")] == [0, 2, 4, 5, 6, 8, 10]
    else:
        assert (len(before), len(calls) > 0) == (0, True)
    torch.use_deterministic_algorithms(False)


def test_a_target_that_is_missed_is_exit_1(run_trainer):
    assert run_trainer(*SMALL, "--target-accuracy", "0.999")[0] == 1


@pytest.mark.parametrize("flags", [[], ["--target-accuracy", "0"]])
def test_without_a_target_only_a_loss_that_is_not_finite_can_fail_a_run(run_trainer, lose, tmp_path, flags):
    for steps, status in ((), 0), ((10,), 1):
        lose("test", *steps)
        assert run_trainer(*SMALL, *flags, "--overwrite")[0] == status
        [check] = json.loads((tmp_path / "run" / "summary.json").read_text())["checks"]
        assert (check["name"], check["target"], check["ok"]) == ("digits: test loss", "< inf", not status)


def test_the_log_is_right(run_trainer, tmp_path):
    """Every line recomputed: sizes, rates, means over examples, and the metrics of saved parameters on both splits."""
    batch_size, epochs, held_out = 32, 3, 14
    assert run_trainer(*SMALL, "--epochs", "3", "--keep", "9", "--limit", "137")[0] == 0
    log, data = read_log(tmp_path / "run"), digits()
    train_split, test = (Split(*(x[torch.arange(137) * len(x) // 137] for x in split)) for split in data[:2])
    order = epoch_order(137, seed=0, epoch=2**62)
    validation, kept = (Split(*(x[i] for x in train_split)) for i in (order[:held_out], order[held_out:]))
    model, per_epoch = mlp(data.shape, 10, hidden=(8,)), [32, 32, 32, 27]
    ts = init_train_state(model, adamw(lr=0.1), seed=0)

    saved = {}
    for path in checkpoint.find(tmp_path / "run" / "checkpoints"):
        tensors, progress = checkpoint.load(path, ts._asdict())
        saved[progress.step] = tensors["params"]

    def evaluate(step: int, split: Split) -> dict[str, float]:
        logits, _ = model.apply(saved[step], {}, split.images, train=False)
        right = (logits.argmax(1) == split.labels).double().mean()
        return {
            "loss": float(torch.nn.functional.cross_entropy(logits, split.labels)),
            "accuracy": float(right),
            "top_5_accuracy": float(top_k_accuracy(logits, split.labels, k=5)),
        }

    steps = [entry for entry in log if entry["event"] == "step"]
    assert [entry["step"] for entry in steps] == list(range(1, 13))
    assert [entry["epoch"] for entry in steps] == [1] * 4 + [2] * 4 + [3] * 4
    assert [entry["examples"] for entry in steps] == per_epoch * epochs
    assert [entry["lr"] for entry in steps] == pytest.approx(
        [float(one_cycle_schedule(step, lr=5e-3, total_steps=12)) for step in range(12)]
    )
    x, y = next(iter(batches(kept, batch_size, seed=0, epoch=0)))
    first = cross_entropy(model.apply(saved[0], {}, x, train=True)[0], y)
    assert steps[0]["loss"] == pytest.approx(float(first), rel=1e-6)

    ends = [entry for entry in log if entry["event"] == "epoch"]
    for epoch, entry in enumerate(ends, start=1):
        of_epoch = [s for s in steps if s["epoch"] == epoch]
        for name in ("loss", "accuracy", "grad_norm"):
            mean = sum(s[name] * s["examples"] for s in of_epoch) / len(kept.labels)
            assert entry["train"][name] == pytest.approx(mean, rel=1e-12)
            assert mean != pytest.approx(sum(s[name] for s in of_epoch) / 4, rel=1e-4), "nothing short was weighted"
        assert (entry["epoch"], entry["step"]) == (epoch, 4 * epoch)
        assert entry["validation"] == pytest.approx(evaluate(4 * epoch, validation), rel=1e-5)
    best = min(ends, key=lambda entry: entry["validation"]["loss"])
    assert log[-1]["event"] == "end"
    assert log[-1]["best_epoch"] == best["epoch"]
    assert log[-1]["test"] == pytest.approx(evaluate(best["step"], test), rel=1e-5)


def test_patience_stops_and_the_best_epoch_is_tested_not_the_last(run_trainer, tmp_path):
    assert run_trainer(*SMALL, "--epochs", "50", "--patience", "2", "--lr", "0.3", "--schedule", "constant")[0] == 0
    log = read_log(tmp_path / "run")
    ends = [entry for entry in log if entry["event"] == "epoch"]
    losses = [entry["validation"]["loss"] for entry in ends]
    assert len(losses) < 50
    assert losses.index(min(losses)) == len(losses) - 3
    [best] = checkpoint.find(tmp_path / "run" / "checkpoints", "best")
    assert checkpoint.step_of(best) == ends[-3]["step"]
    images, labels = (x[torch.arange(150) * len(x) // 150] for x in digits().test)
    model = mlp((1, 8, 8), 10, hidden=(8,))
    like = init_train_state(model, adamw(lr=0.1), seed=0)._asdict()

    def evaluate(path: Path) -> float:
        logits, _ = model.apply(checkpoint.load(path, like)[0]["params"], {}, images, train=False)
        return float(torch.nn.functional.cross_entropy(logits, labels))

    of_best, of_last = evaluate(best), evaluate(checkpoint.find(tmp_path / "run" / "checkpoints")[-1])
    assert log[-1]["test"]["loss"] == pytest.approx(of_best, rel=1e-5)
    assert of_last != pytest.approx(of_best, rel=1e-3)


def reject(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("losses", list(itertools.permutations([math.nan, math.inf, 2.0, 1.0], 3)), ids=str)
@pytest.mark.parametrize("before", [None, math.nan])
def test_a_loss_that_is_not_finite_is_never_the_best(before, losses):
    """Nor does it stay the best where an earlier version of the trainer has saved it as such."""
    progress = checkpoint.Progress(best=before, epoch=1, best_epoch=0 if before is None else 1)
    for loss in losses:
        progress = training.after_epoch(progress, {"loss": loss})
    best = min(filter(math.isfinite, losses))
    assert (progress.best, progress.best_epoch) == (best, 2 + losses.index(best))


@pytest.fixture
def lose(monkeypatch):
    """lose(split, *steps) makes the loss on a split NaN or infinite after those steps."""

    def lose(split: str, *steps: int) -> None:
        original = training.evaluate

        def evaluate(parts: Any, ts: Any, name: str, device: Any) -> dict[str, float]:
            metrics, step = original(parts, ts, name, device), int(ts.opt_state["step"])
            lost = name == split and step in steps
            return metrics | ({"loss": (math.nan, math.inf)[step // 5 % 2]} if lost else {})

        monkeypatch.setattr(training, "evaluate", evaluate)

    return lose


@pytest.mark.parametrize(
    ("lost", "status", "best", "said"),
    [
        ([("validation", 5)], 0, 3, "the test is of epoch 3, the best in validation"),
        ([("validation", 5, 15)], 0, 2, "the test is of epoch 2, the best in validation"),
        ([("validation", 5, 10, 15)], 1, 0, "none had a finite validation loss, and the test is of the last"),
        ([("test", 15)], 1, 3, "the test is of epoch 3, the best in validation"),
        ([("validation", 5, 10, 15), ("test", 15)], 1, 0, "none had a finite validation loss"),
    ],
)
def test_an_epoch_whose_loss_is_not_finite_is_not_tested(run_trainer, lose, tmp_path, lost, status, best, said):
    """If none is finite, the run fails and says so, with all results in place; log and summary are JSON."""
    for split, *steps in lost:
        lose(split, *steps)
    ended, out, err = run_trainer(*SMALL, "--epochs", "3", draw=True)
    assert (ended, best) == (status, read_log(tmp_path / "run")[-1]["best_epoch"]), err
    assert said in " ".join(out.split())
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=reject)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=reject)
    assert all(check["ok"] for check in summary["checks"]) == (status == 0)
    assert (tmp_path / "run" / "curves.png").exists()


def test_a_log_with_losses_that_are_not_finite_reads_back_as_it_was_and_resumes(lose, tmp_path):
    lose("validation", 5, 10)
    config = cli.parse(Config, [*SMALL, "--epochs", "3", "--keep", "9", "--out", str(tmp_path / "run")])
    run = training.train(config, torch.device("cpu"))
    assert [e["validation"]["loss"] for e in run.history if e["event"] == "epoch"][:2] == [math.nan, math.nan]
    assert folder.read_log(config.out, len(run.history))[1] == run.history
    for step in (0, 5, 10):
        out = tmp_path / f"from {step}"
        shutil.copytree(config.out, out)
        [path] = [p for p in checkpoint.find(out / "checkpoints") if checkpoint.step_of(p) == step]
        again = training.train(dataclasses.replace(config, out=out, resume=path), torch.device("cpu"))
        assert again.history == run.history
        assert_same_run(out, config.out)


def test_a_config_file_repeats_its_run_and_flags_win(run_trainer, tmp_path):
    flags = [*SMALL, "--augment", "flip", "crop", "--clip-norm", "1", "--seed", "3", "--deterministic"]
    assert run_trainer(*flags, out="one")[0] == 0
    assert run_trainer("--config", str(tmp_path / "one" / "config.json"), out="two")[0] == 0
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert (
        run_trainer(
            "--config", str(tmp_path / "one" / "config.json"), "--epochs", "1", "--no-deterministic", out="three"
        )[0]
        == 0
    )
    assert len(read_log(tmp_path / "three")) < len(read_log(tmp_path / "two"))
    assert not torch.are_deterministic_algorithms_enabled()
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config == json.loads((tmp_path / "one" / "config.json").read_text()) | {"out": str(tmp_path / "two")}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"epocs": 3}', "there is no 'epocs'; the nearest is 'epochs'"),
        ('{"qqq": 3}', "there is no 'qqq'; the nearest is '"),
        ('{"epochs": "many"}', "--epochs"),
        ('{"epochs": 1.5}', "--epochs"),
        ('{"epochs": NaN}', "is not a readable JSON file (it holds NaN or Infinity, which is no JSON)"),
        ('{"lr": 1e999}', "it holds NaN or Infinity"),
        ('{"lr": "nan"}', "--lr nan is not between 0.0 and 1e+38"),
        ('{"model": "--help"}', "'--help' is no value for 'model'"),
        ('{"augment": ["crop", "spin"]}', "Expected one of ('crop', 'resized_crop', 'flip', 'affine', 'cutout')"),
        ('{"epochs": {"a": 1}}', "--epochs"),
        ("[1]", "is not a JSON object"),
        ("{", "is not a readable JSON file"),
        ("[" * 100_000, "is not a readable JSON file"),
    ],
)
def test_a_config_file_that_is_no_good_is_refused(run_trainer, tmp_path, content, complaint):
    (tmp_path / "config.json").write_text(content)
    assert_refused(run_trainer("--config", str(tmp_path / "config.json")), complaint)


def assert_refused(result: tuple[Any, str, str], complaint: str, status: int = 2) -> None:
    """Assert that a run ended with that status, one line on stderr with the complaint in it, and no output."""
    assert result[:2] == (status, "")
    assert complaint in result[2]
    assert result[2].startswith("error: ")
    assert result[2].count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--config", "/nowhere.json"], "/nowhere.json is not a readable JSON file (No such file or directory"),
        (["--model", "rnn"], "Expected one of ('mlp', 'cnn', 'transformer', 'resnet')"),
        (["--epochs", "0"], "--epochs 0 is not between 1 and 1000000000"),
        (["--accumulate", "65"], "--accumulate 65 cannot part a batch of 64"),
        (["--hidden", "0"], "--hidden 0 is not between 1 and 100000"),
        (["--hidden", "8"], "cnn takes no --hidden"),
        (["--depth", "20"], "cnn takes no --depth"),
        (["--model", "resnet", "--depth", "19"], "the depth is one of 18, 34, 50, 101, 152, or 6n + 2, not 19"),
        (["--model", "mlp", "--widths", "8"], "mlp takes no --widths"),
        (["--momentum", "0.9"], "adamw takes no --momentum"),
        (["--root", "."], "digits takes no --root"),
        (["--image-size", "32"], "digits takes no --image-size"),
        (["--dataset", "folder"], "folder needs --root"),
        (["--dataset", "folder", "--root", "/nowhere"], "folder: /nowhere is no directory of images per class"),
        (["--widths", *"12345"], "--model cnn does not suit --dataset digits: cnn: halved 4 times, an image of 8×8"),
        (["--validation", "0", "--patience", "2"], "--patience: --validation 0.0 leaves no loss to watch"),
        (["--limit", "12", "--validation", "0.04", "--patience", "1"], "leaves no loss to watch"),
        (["--widths", *"8888", "--batch-size", "1293"], "batch_norm: training needs more than one value per channel"),
        (["--model", "mlp", "--hidden", "100000000000"], "--hidden 100000000000 is not between 1 and 100000"),
        (["--batch-size", "1e20"], "--batch-size"),
        (["--limit", "1", "--validation", "0.9"], "leave nothing to train on"),
        (["--resume", "/nowhere"], "--resume /nowhere: there is no such folder or checkpoint"),
        (["--resume", str(Path(__file__).parent)], "holds no run, as there is no config.json in it"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(run_trainer, flags, complaint):
    assert_refused(run_trainer(*flags), complaint)


def test_a_folder_with_a_run_is_not_overwritten_unasked(run_trainer, tmp_path):
    run = tmp_path / "run"
    assert run_trainer(*SMALL)[0] == 0
    log = read_log(run)
    assert_refused(
        run_trainer(*SMALL, "--seed", "1"), f"{run} holds a run: --resume {run} continues it, --overwrite starts anew"
    )
    assert read_log(run) == log
    assert run_trainer(*SMALL, "--seed", "1", "--overwrite", "--epochs", "1")[0] == 0
    assert len(read_log(run)) < len(log)
    assert {checkpoint.step_of(path) for path in (run / "checkpoints").iterdir()} == {0, 5}


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_what_is_not_ours_is_not_overwritten_unasked(run_trainer, tmp_path, name):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / name).write_text('{"of": "another program"}')
    (tmp_path / "run" / "checkpoints" / "weights.pt").touch()
    assert_refused(run_trainer(*SMALL), "holds a run")
    assert run_trainer(*SMALL, "--overwrite")[0] == 0
    assert (tmp_path / "run" / "checkpoints" / "weights.pt").exists()


def test_a_run_belongs_to_one_process(run_trainer, tmp_path):
    (tmp_path / "run").mkdir()
    code = "import filelock, sys; held = filelock.FileLock(sys.argv[1]).acquire(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert_refused(run_trainer(*SMALL), f"another process is training in {tmp_path / 'run'}")
        other.kill()
    assert run_trainer(*SMALL)[0] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_the_lock_ends_with_its_process_though_a_forked_worker_lives_on(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from experiments.train import folder\n"
        "with folder.lock(Path(sys.argv[1])):\n"
        "    os.write(1, b'worker\\n' if os.fork() == 0 else b'trainer\\n'); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        assert {trainer.stdout.readline(), trainer.stdout.readline()} == {"worker\n", "trainer\n"}
        with pytest.raises(cli.UsageError, match="another process is training in"):
            folder.lock(tmp_path)
        trainer.kill()
        trainer.wait()
        with folder.lock(tmp_path):  # the worker reads on: its stdin is still open
            pass


def test_photographs_that_came_later_are_not_trained_on(run_trainer, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_photographs(tmp_path / "photographs")
    flags = ["--model", "mlp", "--dataset", "folder", "--image-size", "8", "--epochs", "2"]
    monkeypatch.chdir(tmp_path)
    assert run_trainer(*flags, "--root", "photographs")[0] == 0
    monkeypatch.chdir("/")
    assert run_trainer("--resume", str(tmp_path / "run"))[0] == 0
    shutil.copy(root / "dark" / "1.png", root / "light" / "9.png")
    assert_refused(run_trainer("--resume", str(tmp_path / "run")), "was trained on other data than folder now holds")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [(Path.unlink, "has lost the checkpoint of the best epoch"), (lambda path: path.write_bytes(b"1"), "is damaged")],
)
def test_a_best_checkpoint_that_is_lost_is_not_replaced_by_another(run_trainer, tmp_path, damage, complaint):
    assert run_trainer(*SMALL)[0] == 0
    damage(checkpoint.find(tmp_path / "run" / "checkpoints", "best")[0])
    status, _, err = run_trainer("--resume", str(tmp_path / "run"))
    assert (status, err.count("error: ")) == (2, 1)
    assert complaint in err


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are looked up in /proc")
def test_what_a_checkpoint_counts_on_is_on_the_disk_before_it(run_trainer, monkeypatch):
    """The log, then the best, then the checkpoint that speaks of both; each file, then the folder that names it."""
    flushed, fsync = [], os.fsync

    def record(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    assert run_trainer(*SMALL, "--epochs", "1")[0] == 0
    start = flushed.index("metrics.jsonl", flushed.index("checkpoints"))
    kinds = [name.lstrip(".").partition("-")[0] for name in flushed[start : start + 5]]
    assert kinds == ["metrics.jsonl", "best", "checkpoints", "step", "checkpoints"]


def test_a_second_ctrl_c_does_not_wait_and_the_handlers_are_put_back(run_trainer, monkeypatch, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    press_ctrl_c(monkeypatch, step=4, times=2)
    status, _, err = run_trainer(*SMALL)
    assert (status, load_last(tmp_path / "run")[1].step) == (130, 0)
    assert f"error: interrupted; --resume {tmp_path / 'run'} continues from the last checkpoint" in err
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_takes_no_other_flag_and_a_run_that_is_done_stays_so(run_trainer, tmp_path):
    assert run_trainer(*SMALL)[0] == 0
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    assert_refused(
        run_trainer("--resume", str(tmp_path / "run"), "--epochs", "9"), "and no flag beside it but --device"
    )
    assert run_trainer("--resume", str(tmp_path / "run"))[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "before")


def press_ctrl_c(monkeypatch, step: int, times: int = 1) -> None:
    """Send SIGINT to this process while the trainer is in that step, counted from 1."""
    build = training.build

    def build_pressing(*args: Any) -> Any:
        parts = build(*args)

        def pressing(ts: Any, x: Any, y: Any, *, key: Any) -> Any:
            if ts.opt_state["step"] + 1 == step:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return parts.step(ts, x, y, key=key)

        return parts._replace(step=pressing)

    monkeypatch.setattr(training, "build", build_pressing)


EAGER = [
    ["--dropout-p", "0.3", "--augment", "crop", "affine", "--optimizer", "adamw"],
    ["--optimizer", "sgd", "--momentum", "0.9", "--accumulate", "2", "--checkpoint-every", "3"],
    ["--lr", "0.3", "--schedule", "constant", "--precision", "bf16", "--warmup-steps", "2", "--clip-norm", "1"],
]
LONGER = [
    ["--dropout-p", "0.3", "--augment", "crop", "flip", "--workers", "2"],
    ["--compile", "--dropout-p", "0.2", "--clip-norm", "1"],
]
STOPS = [(flags, step) for flags in EAGER for step in (1, 4, 5, 7)]


@pytest.mark.parametrize(
    ("flags", "step"),
    [*STOPS, *(pytest.param(flags, step, marks=pytest.mark.slow) for flags in LONGER for step in (4, 7))],
)
def test_n_steps_stop_resume_and_n_more_are_2n_steps(run_trainer, monkeypatch, tmp_path, flags, step):
    """Stopped within the first epoch of four batches, at its end, and in the second."""
    limit = ["--limit", "140", "--epochs", "3"]
    assert run_trainer(*SMALL, *limit, *flags, out="whole")[0] == 0
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, step)
        message = f"interrupted at step {step}; --resume {tmp_path / 'run'} continues"
        status, _, err = run_trainer(*SMALL, *limit, *flags)
        assert (status, err.splitlines()[-1]) == (130, f"error: {message}")
        assert load_last(tmp_path / "run", optimizer="sgd" if "sgd" in flags else "adamw")[1].step == step
    assert run_trainer("--resume", str(tmp_path / "run"))[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole", optimizer="sgd" if "sgd" in flags else "adamw")


def test_the_best_so_far_is_remembered_across_a_stop(run_trainer, monkeypatch, tmp_path):
    """Stopped in the last of two epochs that are worse than the best."""
    worse = [*SMALL, "--epochs", "50", "--patience", "2", "--lr", "0.3", "--schedule", "constant"]
    assert run_trainer(*worse, out="whole")[0] == 0
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, load_last(tmp_path / "whole")[1].step - 2)
        assert run_trainer(*worse)[0] == 130
    assert run_trainer("--resume", str(tmp_path / "run"))[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_model_that_draws_from_the_global_generator_resumes_too(run_trainer, monkeypatch, tmp_path):
    @wraps(mlp)
    def noisy(*args: Any, **options: Any) -> Any:
        model = mlp(*args, **options)

        def apply(params: Any, state: Any, x: torch.Tensor, **rest: Any) -> Any:
            return model.apply(params, state, x + torch.randn(x.shape), **rest)

        return model._replace(apply=apply)

    monkeypatch.setattr("fn.models.mlp.mlp", noisy)
    assert run_trainer(*SMALL, out="whole")[0] == 0
    with monkeypatch.context() as patch:
        press_ctrl_c(patch, 3)
        assert run_trainer(*SMALL)[0] == 130
    torch.rand(5)
    assert run_trainer("--resume", str(tmp_path / "run"))[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_damaged_checkpoint_is_refused_and_an_older_one_resumes(run_trainer, tmp_path):
    flags = [*SMALL, "--checkpoint-every", "1", "--keep", "4"]
    assert run_trainer(*flags, out="whole")[0] == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    *_, sound, newest = checkpoint.find(tmp_path / "run" / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-3])
    (tmp_path / "run" / "checkpoints" / f".{newest.name}.abcdefgh").touch()
    assert_refused(run_trainer("--resume", str(tmp_path / "run")), f"{newest} is damaged")
    assert_refused(run_trainer("--resume", str(tmp_path / "run")), f"the newest sound one is {sound}")
    assert run_trainer("--resume", str(sound))[0] == 0
    (tmp_path / "run" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_another_models_run_is_refused(run_trainer, tmp_path):
    assert run_trainer(*SMALL)[0] == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"hidden": [9]}))
    assert_refused(
        run_trainer("--resume", str(tmp_path / "run")),
        "is of another model: opt_state.mean.fc1.bias is float32[8] in it",
    )


@pytest.mark.parametrize(
    "damage", [lambda log: log.unlink(), lambda log: log.write_text("{"), lambda log: log.write_text("")]
)
def test_a_log_that_is_lost_is_refused(run_trainer, tmp_path, damage):
    assert run_trainer(*SMALL)[0] == 0
    damage(tmp_path / "run" / "metrics.jsonl")
    assert_refused(run_trainer("--resume", str(tmp_path / "run")), str(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.longest
def test_fifty_kills_at_random_instants_change_nothing(tmp_path):
    flags = ["--model", "mlp", "--hidden", "8", "--epochs", "16", "--checkpoint-every", "1"]
    flags += ["--augment", "crop", "--dropout-p", "0.1"]
    command = [sys.executable, "tests/kill_trainer.py", "50", "0", str(tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr
    kills, steps, in_the_midst = map(int, re.findall(r"\d+", done.stdout))
    assert kills == 50
    assert steps >= 10
    assert in_the_midst >= 1
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("room", [3_000, pytest.param(40_000, marks=pytest.mark.longest)])
def test_a_full_disk_stops_the_run_and_damages_nothing(run_trainer, tmp_path, room):
    """No file may grow beyond `room` bytes: at first no checkpoint fits, then the log outgrows it."""
    flags = ["--model", "mlp", "--hidden", "4", "--epochs", "16"]
    assert run_trainer(*flags, out="whole")[0] == 0
    done = subprocess.run(
        [*MODULE, *flags, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("error: a checkpoint" if room == 3_000 else "error: the log")
    assert f"could not be written to {tmp_path / 'run'} (" in message
    assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == [".lock"]
    if room == 3_000:
        assert run_trainer(*flags)[0] == 0
    else:
        assert f"make room, then --resume {tmp_path / 'run'}" in message
        assert run_trainer("--resume", str(tmp_path / "run"))[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole", hidden=4)


def test_tensorboard_is_given_what_the_log_says(run_trainer, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run_trainer(*SMALL, "--tensorboard")[0] == 0
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [(entry["step"], entry["loss"]) for entry in read_log(tmp_path / "run") if entry["event"] == "step"]
    shown = [(event.step, event.value) for event in events.Scalars("step/loss")]
    assert shown == [(step, pytest.approx(loss)) for step, loss in logged]
    assert {"epoch/validation/accuracy", "end/test/loss"} <= set(events.Tags()["scalars"])


def test_tensorboard_missing_says_how_to_get_it(run_trainer, monkeypatch):
    monkeypatch.setattr("experiments.train.run.find_spec", lambda _: None)
    assert_refused(run_trainer(*SMALL, "--tensorboard"), "--tensorboard needs its package: uv run --extra tensorboard")


def test_help_reads_well_and_imports_no_torch():
    command = [sys.executable, "-X", "importtime", "-m", "experiments.train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "60"})
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "experiments.shared.cli" in imported
    assert not imported & {"torch", "numpy", "fn"}
    text = done.stdout.splitlines()
    assert text[0] == "usage: python -m experiments.train [-h] [OPTIONS]"
    assert "passes over the training examples (default: 10)" in " ".join(line.strip("│ ") for line in text)
    assert max(len(line) for line in text if line.startswith("│")) <= 60


def test_progress_is_lines_in_a_pipe_and_a_bar_on_a_terminal(run_trainer, monkeypatch):
    _, _, err = run_trainer(*SMALL)
    assert "mlp on digits: step 2 of 10, loss " in err
    assert " images/s" in err
    assert "epoch 1 of 2: train loss " in err
    assert "\x1b" not in err
    monkeypatch.setattr("experiments.shared.show.log", show_on_terminal())
    _, _, err = run_trainer(*SMALL, out="other")
    assert "\x1b" in err


def show_on_terminal() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False, force_terminal=True, width=60)
