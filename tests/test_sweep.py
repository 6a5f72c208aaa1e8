"""Every member of an ensemble ends where it ends alone; the sweep checks, reports, saves and refuses as documented."""

import json
import re
import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from experiments.shared import cli
from experiments.sweep import curvature, speed
from experiments.sweep.__main__ import main
from experiments.sweep.compare import compare_with_separate_runs, in_dtype
from experiments.sweep.config import Config, Grid, parse
from experiments.train.build import split_data
from experiments.train.config import Config as TrainerConfig
from fn import tree
from fn.data.datasets import Split, take
from fn.data.loader import batches
from fn.ensemble import ensemble_batches, ensemble_eval, ensemble_init, ensemble_key, ensemble_step, member
from fn.gradcheck import largest
from fn.jit import jit
from fn.models import Model
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.optim import adamw
from fn.rng import generator
from fn.train import (
    Metrics,
    TrainState,
    check_finite,
    classification_loss,
    classifier_step,
    eval_one_epoch,
    init_train_state,
    run_key,
)
from tests.launch import run_in_process

SHAPE, CLASSES = (1, 6, 6), 4
MODELS = {
    "mlp": mlp(SHAPE, CLASSES, hidden=(9,)),
    "mlp with dropout": mlp(SHAPE, CLASSES, hidden=(9, 8), dropout_p=0.4),
    "cnn": cnn(SHAPE, CLASSES, widths=(3, 4)),
}
LRS, SEEDS = (1e-3, 1e-3, 1e-2, 1e-2), (0, 1, 0, 7)
BATCH, EPOCHS = 8, 4


def examples(dtype: torch.dtype = torch.float32) -> Split:
    """Return 37 random examples, which are four batches of 8 and one of 5: 20 steps in four epochs."""
    rng = generator(0)
    images = torch.randn(37, *SHAPE, generator=rng, dtype=dtype)
    return Split(images, torch.randint(CLASSES, (37,), generator=rng))


def step_of(model: Model):
    """Return the ensemble's step with AdamW."""
    return partial(ensemble_step, objective=partial(classification_loss, apply=model.apply), optimizer=adamw)


def train_together(model: Model, split: Split, *, lrs=LRS, step=None) -> tuple[TrainState, list[Metrics]]:
    """Return (the ensemble after EPOCHS, the metrics of every step)"""
    ts = in_dtype(ensemble_init(model, adamw, seeds=SEEDS), split.images.dtype)
    step, lr, key, history = step or step_of(model), torch.tensor(lrs).to(split.images), ensemble_key(SEEDS), []
    for epoch in range(EPOCHS):
        for index in ensemble_batches(len(split.labels), BATCH, seeds=SEEDS, epoch=epoch):
            ts, metrics = step(ts, *split, index, lr, key)
            history.append(metrics)
    return ts, history


def train_alone(
    model: Model, split: Split, *, lr: float, seed: int, epochs: int = EPOCHS, batch_size: int = BATCH
) -> tuple[TrainState, list[Metrics]]:
    """Return (one model trained without others, the metrics of every step)"""
    optimizer, history = adamw(lr=lr), []
    ts, key = init_train_state(model, optimizer, seed=seed), run_key(seed)
    step = check_finite(classifier_step(model, optimizer))
    for epoch in range(epochs):
        for x, y in batches(split, batch_size, seed=seed, epoch=epoch):
            ts, metrics = step(ts, x, y, key=key)
            history.append(metrics)
    return ts, history


def largest_gap(ts: TrainState, other: TrainState) -> float:
    """Return the largest difference of any tensor: parameters, batch-norm statistics, step count, both moments."""
    gaps = tree.map(lambda a, b: (a - b).abs().max(), ts._asdict(), other._asdict())
    return largest(tree.leaves(gaps))


@pytest.mark.parametrize("name", MODELS)
def test_every_member_ends_where_it_ends_alone(name):
    """Twenty steps: states within 1e-5, and the loss, accuracy and gradient norm of every step."""
    model = MODELS[name]
    together, history = train_together(model, examples())
    assert together.opt_state["step"].tolist() == [20] * len(SEEDS)
    for k in range(len(SEEDS)):
        alone, own_history = train_alone(model, examples(), lr=LRS[k], seed=SEEDS[k])
        assert largest_gap(member(together, k), alone) <= 1e-5
        for metrics, own_metrics in zip(history, own_history, strict=True):
            assert {n: float(x[k]) for n, x in metrics.items()} == pytest.approx(own_metrics, abs=1e-5)


def test_members_differ_as_their_seeds_and_rates_do():
    """Also in the masks that dropout draws: the same weights and batches under two keys."""
    ts, _ = train_together(MODELS["mlp"], examples())
    assert all(largest_gap(member(ts, a), member(ts, b)) > 1e-3 for a, b in ((0, 1), (0, 2), (2, 3)))
    model, split = MODELS["mlp with dropout"], examples()
    start, index = ensemble_init(model, adamw, seeds=(0, 0, 0)), torch.arange(8).expand(3, -1)
    after, _ = step_of(model)(start, *split, index, torch.full((3,), 1e-2), torch.tensor([5, 5, 6]))
    assert largest_gap(member(after, 0), member(after, 1)) == 0
    assert largest_gap(member(after, 0), member(after, 2)) > 1e-3


@pytest.mark.slow
@pytest.mark.longest
def test_a_compiled_ensemble_is_the_same():
    """In float64, as in float32 a compiled step rounds differently; in whole batches only, to compile once."""
    model, split = MODELS["mlp with dropout"], take(examples(torch.float64), 32)
    (compiled, _), (eager, _) = train_together(model, split, step=jit(step_of(model))), train_together(model, split)
    assert largest_gap(compiled, eager) <= 1e-10


def test_a_member_that_diverges_does_not_affect_the_others():
    split = examples()
    sound, _ = train_together(MODELS["mlp"], split)
    diverged, _ = train_together(MODELS["mlp"], split, lrs=(1e30, *LRS[1:]))
    assert not tree.leaves(diverged.params)[0][0].isfinite().any()
    assert all(largest_gap(member(diverged, k), member(sound, k)) <= 1e-6 for k in (1, 2, 3))
    metrics = ensemble_eval(diverged.params, diverged.state, *split, apply=MODELS["mlp"].apply)
    assert metrics["loss"].isfinite().tolist() == [False, True, True, True]


@pytest.mark.parametrize("name", MODELS)
def test_an_ensemble_begins_and_is_evaluated_as_its_members(name):
    model, split = MODELS[name], examples()
    ts = ensemble_init(model, adamw, seeds=SEEDS)
    metrics = ensemble_eval(ts.params, ts.state, *split, apply=model.apply)
    for k, seed in enumerate(SEEDS):
        alone = init_train_state(model, adamw(lr=LRS[k]), seed=seed)
        assert largest_gap(member(ts, k), alone) == 0
        expected = eval_one_epoch(alone.params, alone.state, [split], apply=model.apply)
        assert {n: float(x[k]) for n, x in metrics.items()} == pytest.approx(expected, abs=1e-6)


def launch(monkeypatch, capsys, *flags: str) -> tuple[object, str, str]:
    """Run the command: (exit status, stdout, stderr)."""
    return run_in_process(monkeypatch, capsys, Config, main, *flags, parse=parse)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--seeds", "0"], "--seeds 0 is not between 1 and"),
        (["--epochs", "0"], "--epochs 0 is not between 1 and"),
        (["--batch-size", "-1"], "--batch-size -1 is not between 1 and"),
        (["--lrs"], "--lrs takes one value or more"),
        (["--lrs", "0.1", "-0.1"], "--lrs -0.1 is not between"),
        (["--lrs", "nan"], "--lrs nan is not between"),
        (["--lrs", "inf"], "--lrs inf is not between"),
        (["--lrs", "0.1", "0.01"], "--lrs must rise"),
        (["--hidden", "0"], "--hidden 0 is not between 1 and"),
        (["--validation", "1"], "--validation 1.0 is not between"),
        (["--validation", "nan"], "--validation nan is not between"),
        (["--out", __file__], "cannot be written to: File exists"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(monkeypatch, capsys, flags, complaint):
    status, out, err = launch(monkeypatch, capsys, *flags)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_the_flags_are_read_without_torch():
    code = "import sys, experiments.sweep.__main__; sys.exit('torch' in sys.modules or 'fn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def shorten_curvature(monkeypatch) -> None:
    """Reduce the steps and the examples of the two looks at curvature."""
    monkeypatch.setattr(curvature, "DESCENT_STEPS", (0, 1, 2))
    monkeypatch.setattr(curvature, "DESCENT_EXAMPLES", 50)
    monkeypatch.setattr(curvature, "PROBE", 50)


@pytest.mark.slow
def test_a_sweep_draws_checks_and_saves_the_best_by_validation(monkeypatch, capsys, tmp_path):
    """The saved model has the printed accuracies, and a run with its learning rate and seed ends in the same model."""
    shorten_curvature(monkeypatch)
    flags = ["--lrs", "1e-3", "1e-2", "1e30", "--seeds", "2", "--epochs", "3", "--hidden", "16"]
    status, out, _ = launch(monkeypatch, capsys, *flags, "--out", str(tmp_path))
    assert status == 0
    assert [check["ok"] for check in json.loads((tmp_path / "summary.json").read_text())["checks"]] == [True]
    pictures = sorted(tmp_path.glob("*.png"))
    assert [png.name for png in pictures] == ["noise.png", "sharpness.png", "sweep.png"]
    for png in pictures:
        with Image.open(png) as picture:
            assert len(picture.convert("L").getcolors(256) or []) > 2

    rows = {
        row[0]: row[1:] for row in re.findall(r"(?m)^ (1e\+30|0\.\d+) +(.*?) ± (.*?)%? +(\S+)% +(\S+)% +(\d*)", out)
    }
    assert rows["1e+30"] == ("10.00%", "0.00", "10.00", "10.00", "2"), "the accuracy of chance, and two diverged"
    data = split_data(TrainerConfig(validation=0.2), cli.load("digits"))
    file = tmp_path / "best.safetensors"
    params = tree.unflatten(load_file(file))
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    highest = max(float(row[3]) for row in rows.values())
    model = mlp((1, 8, 8), 10, hidden=(16,))
    validation, test = (
        eval_one_epoch(params, {}, [data[part]], apply=model.apply)["accuracy"] for part in ("validation", "test")
    )
    assert f"{validation:.2%}" == f"{highest:.2f}%"
    assert f"on the test set {test:.2%}" in out
    assert f"best on validation: lr {metadata['lr']}, seed {metadata['seed']}, {highest:.2f}%" in out

    options = {"lr": float(metadata["lr"]), "seed": int(metadata["seed"])}
    again, _ = train_alone(model, data["train"], **options, epochs=3, batch_size=64)
    tree.map(partial(torch.testing.assert_close, rtol=0, atol=1e-5), params, again.params)


@pytest.mark.slow
def test_a_sweep_of_one_model_and_one_in_which_all_diverge(monkeypatch, capsys, tmp_path):
    shorten_curvature(monkeypatch)
    flags = ["--seeds", "1", "--epochs", "1", "--hidden", "4", "--out", str(tmp_path)]
    status, out, _ = launch(monkeypatch, capsys, "--lrs", "1e-2", *flags)
    assert status == 0
    assert "% ±" not in out
    assert "edge" not in out
    status, _, err = launch(monkeypatch, capsys, "--lrs", "1e30", *flags)
    assert status == 1
    assert err.endswith("error: every model has diverged: try lower --lrs\n")


@pytest.mark.slow
def test_a_wrong_ensemble_fails_the_check(tmp_path):
    """With batches of other members, learning rates off by a thousandth, and a member that has become NaN."""
    config = Config(out=tmp_path, batch_size=BATCH)
    model, grid = MODELS["mlp"], Grid(list(LRS), list(SEEDS))
    compare = partial(compare_with_separate_runs, config, model, take(examples(), 30), grid)
    step = step_of(model)
    assert compare(step).ok
    assert not compare(lambda ts, x, y, index, lr, key: step(ts, x, y, index.roll(1, 0), lr, key)).ok
    assert not compare(lambda ts, x, y, index, lr, key: step(ts, x, y, index, lr * 1.001, key)).ok
    assert not compare(lambda ts, x, y, index, lr, key: step(with_nan(ts), x, y, index, lr, key)).ok


def with_nan(ts: TrainState) -> TrainState:
    """Return the ensemble with the last member's parameters replaced by NaN."""
    return ts._replace(params=tree.map(lambda x: torch.cat([x[:-1], x[-1:] * torch.nan]), ts.params))


@pytest.mark.slow
def test_the_speed_is_compared_with_the_fastest_of_torch(monkeypatch):
    seconds = {"at once": [1.0] * 3, "torch.nn": [9.0] * 3, "compiled": [4.0, 5.0, 6.0], "product": [1.0] * 3}
    monkeypatch.setattr(speed, "in_turns", lambda ways, device: dict(seconds))
    _, (agreement, speedup) = speed._race(examples(), 32, times=6.0)
    assert agreement.ok
    assert speedup.value == 5
    assert not speedup.ok


def test_the_operations_of_an_ensemble_are_those_of_its_products():
    """By hand: forward, by the weights, and by every layer's input but the first; and as counted for torch.nn."""
    model, sizes = mlp(SHAPE, CLASSES, hidden=(9, 8)), (36, 9, 8, CLASSES)
    products = [d_in * d_out for d_in, d_out in pairwise(sizes)]
    counted = speed.flop(step_of(model), model, examples())
    assert counted == speed.MODELS * 2 * speed.BATCH * (3 * sum(products) - products[0])
    module = speed._module(model.init(generator(0))[0])
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(speed.BATCH, *SHAPE)).sum().backward()
    assert counted == speed.MODELS * counter.get_total_flops()


def test_the_module_of_the_comparison_is_our_perceptron():
    model, x = MODELS["mlp"], examples().images
    params, _ = model.init(generator(0))
    torch.testing.assert_close(speed._module(params)(x), model.apply(params, {}, x, train=False)[0])
