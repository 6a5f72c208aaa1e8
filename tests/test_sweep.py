"""Every member of an ensemble ends where it would have ended alone; the sweep reports, saves and refuses as it says."""

import json
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from experiments.shared import cli
from experiments.sweep import __main__ as sweep
from experiments.sweep import run as sweeping
from experiments.sweep import speed as sweep_speed
from experiments.train import build as setup
from experiments.train import config as train
from fn import tree
from fn.data.datasets import Split, take
from fn.ensemble import ensemble_eval, ensemble_fit, ensemble_init, ensemble_step, member
from fn.jit import jit
from fn.models import Model
from fn.models.cnn import cnn
from fn.models.mlp import mlp, mlp_apply
from fn.optim import adam_init, adamw
from fn.rng import generator
from fn.train import TrainState, classification_loss, classifier_step, eval_one_epoch, fit, init

SHAPE, CLASSES = (1, 6, 6), 4
MODELS = {
    "mlp": mlp(SHAPE, CLASSES, hidden=(9,)),
    "mlp with dropout": mlp(SHAPE, CLASSES, hidden=(9, 8), dropout_p=0.4),
    "cnn": cnn(SHAPE, CLASSES, widths=(3, 4)),
}
RATES, SEEDS = (1e-3, 1e-3, 1e-2, 1e-2), (0, 1, 0, 7)
BATCH, EPOCHS = 8, 4


def examples(dtype: torch.dtype = torch.float32) -> Split:
    """37 make four batches of 8 and one of 5: 20 steps in four epochs."""
    rng = generator(0)
    images = torch.randn(37, *SHAPE, generator=rng, dtype=dtype)
    return Split(images, torch.randint(CLASSES, (37,), generator=rng))


def step_of(model: Model):
    return partial(ensemble_step, objective=partial(classification_loss, apply=model.apply), update=adamw)


def fit_all(model: Model, split: Split, *, rates=RATES, step=None, **options) -> TrainState:
    ts = sweeping.in_dtype(ensemble_init(model, adam_init, seeds=SEEDS), split.images.dtype)
    run = partial(ensemble_fit, ts, split, epochs=EPOCHS, batch_size=BATCH, seeds=SEEDS, **options)
    return run(step=step or step_of(model), rates=rates)


def fit_alone(model: Model, split: Split, k: int, **options) -> TrainState:
    step = classifier_step(model, partial(adamw, lr=RATES[k]))
    return fit(model, split, step=step, epochs=EPOCHS, batch_size=BATCH, seed=SEEDS[k], **options)


def largest_gap(ts: TrainState, other: TrainState) -> float:
    """Over every tensor: parameters, batch-norm statistics, step count, both moments."""
    gaps = tree.map(lambda a, b: (a - b).abs().max(), ts._asdict(), other._asdict())
    return max(map(float, tree.leaves(gaps)))


@pytest.mark.parametrize("name", MODELS)
def test_every_member_ends_where_fit_ends_it(name):
    """Twenty steps: states within 1e-5, and the loss, accuracy and gradient norm of every step."""
    model, seen = MODELS[name], []
    together = fit_all(model, examples(), each=lambda ts, metrics: seen.append(metrics))
    assert together.opt_state["step"].tolist() == [20] * len(SEEDS)
    for k in range(len(SEEDS)):
        own = []
        alone = fit_alone(model, examples(), k, each=lambda ts, metrics, totals, own=own: own.append(metrics))
        assert largest_gap(member(together, k), alone) <= 1e-5
        for ensemble, metrics in zip(seen, own, strict=True):
            assert {n: float(x[k]) for n, x in ensemble.items()} == pytest.approx(metrics, abs=1e-5)


def test_members_differ_as_their_seeds_and_rates_do():
    """Also in the masks that dropout draws: the same weights and order under two keys part."""
    ts = fit_all(MODELS["mlp"], examples())
    assert all(largest_gap(member(ts, a), member(ts, b)) > 1e-3 for a, b in ((0, 1), (0, 2), (2, 3)))
    model, split = MODELS["mlp with dropout"], examples()
    start, index = ensemble_init(model, adam_init, seeds=(0, 0, 0)), torch.arange(8).expand(3, -1)
    after, _ = step_of(model)(start, *split, index, torch.full((3,), 1e-2), torch.tensor([5, 5, 6]))
    assert largest_gap(member(after, 0), member(after, 1)) == 0
    assert largest_gap(member(after, 0), member(after, 2)) > 1e-3


@pytest.mark.slow
def test_a_compiled_ensemble_is_the_same():
    """In float64, as at float32 a compiled step rounds otherwise; of whole batches alone, so as to compile once."""
    model, split = MODELS["mlp with dropout"], take(examples(torch.float64), 32)
    assert largest_gap(fit_all(model, split, step=jit(step_of(model))), fit_all(model, split)) <= 1e-10


def test_a_member_that_diverges_takes_none_with_it():
    sound, split = fit_all(MODELS["mlp"], examples()), examples()
    beside = fit_all(MODELS["mlp"], split, rates=(1e30, *RATES[1:]))
    assert not tree.leaves(beside.params)[0][0].isfinite().any()
    assert all(largest_gap(member(beside, k), member(sound, k)) <= 1e-6 for k in (1, 2, 3))
    seen = ensemble_eval(beside.params, beside.state, *split, apply=MODELS["mlp"].apply)
    assert seen["loss"].isfinite().tolist() == [False, True, True, True]


@pytest.mark.parametrize("name", MODELS)
def test_an_ensemble_begins_and_is_evaluated_as_its_members(name):
    model, split = MODELS[name], examples()
    ts = ensemble_init(model, adam_init, seeds=SEEDS)
    seen = ensemble_eval(ts.params, ts.state, *split, apply=model.apply)
    for k, seed in enumerate(SEEDS):
        alone = init(model, adam_init, seed=seed)
        assert largest_gap(member(ts, k), alone) == 0
        expected = eval_one_epoch(alone.params, alone.state, [split], apply=model.apply)
        assert {n: float(x[k]) for n, x in seen.items()} == pytest.approx(expected, abs=1e-6)


def launch(monkeypatch, capsys, *flags: str) -> tuple[object, str, str]:
    """(exit status, stdout, stderr)"""
    monkeypatch.setattr(sys, "argv", ["sweep", *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(sweep.Config, sweep.main, sweep.parse)
    return stop.value.code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--seeds", "0"], "--seeds 0: at least one is needed"),
        (["--epochs", "0"], "--epochs 0: at least one is needed"),
        (["--batch-size", "-1"], "--batch-size -1: at least one is needed"),
        (["--rates"], "--rates takes one learning rate or more"),
        (["--rates", "0.1", "-0.1"], "--rates takes one learning rate or more, each above 0"),
        (["--rates", "nan"], "--rates takes one learning rate or more"),
        (["--rates", "inf"], "--rates takes one learning rate or more"),
        (["--rates", "0.1", "0.01"], "--rates must rise"),
        (["--hidden", "0"], "--hidden takes one size or more"),
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
    code = "import sys, experiments.sweep; sys.exit('torch' in sys.modules or 'fn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def shortened(monkeypatch) -> None:
    monkeypatch.setattr(sweeping, "DESCENT_STEPS", (0, 1, 2))
    monkeypatch.setattr(sweeping, "DESCENT_EXAMPLES", 50)
    monkeypatch.setattr(sweeping, "PROBE", 50)


def accuracy(params: tree.Params, split: Split) -> float:
    return eval_one_epoch(params, {}, [split], apply=mlp_apply)["accuracy"]


@pytest.mark.slow
def test_a_sweep_draws_checks_and_saves_the_best_by_validation(monkeypatch, capsys, tmp_path):
    """What is loaded back has the accuracies that were printed, and is the model that its rate and seed make."""
    shortened(monkeypatch)
    flags = ["--rates", "1e-3", "1e-2", "1e30", "--seeds", "2", "--epochs", "3", "--hidden", "16"]
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
    assert rows["1e+30"] == ("10.00%", "0.00", "10.00", "10.00", "2"), "chance, and said to have diverged"
    data = setup.split_data(train.Config(validation=0.2), cli.load("digits"))
    file = tmp_path / "best.safetensors"
    params = tree.unflatten(load_file(file))
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    most = max(float(row[3]) for row in rows.values())
    assert f"{accuracy(params, data['validation']):.2%}" == f"{most:.2f}%"
    assert f"on the test set {accuracy(params, data['test']):.2%}" in out
    assert f"best on validation: rate {about['rate']}, seed {about['seed']}, {most:.2f}%" in out

    model = mlp((1, 8, 8), 10, hidden=(16,))
    step = classifier_step(model, partial(adamw, lr=float(about["rate"])))
    again = fit(model, data["train"], step=step, epochs=3, batch_size=64, seed=int(about["seed"]))
    tree.map(partial(torch.testing.assert_close, rtol=0, atol=1e-5), params, again.params)


@pytest.mark.slow
def test_a_sweep_of_one_model_and_one_in_which_all_diverge(monkeypatch, capsys, tmp_path):
    shortened(monkeypatch)
    flags = ["--seeds", "1", "--epochs", "1", "--hidden", "4", "--out", str(tmp_path)]
    status, out, _ = launch(monkeypatch, capsys, "--rates", "1e-2", *flags)
    assert status == 0
    assert "% ±" not in out
    assert "edge" not in out
    status, _, err = launch(monkeypatch, capsys, "--rates", "1e30", *flags)
    assert status == 1
    assert err.endswith("error: every model has diverged: try lower --rates\n")


def test_a_wrong_ensemble_fails_the_check(tmp_path):
    """Members that see one another's batches, rates that are off by a thousandth, a member that has become NaN."""
    config = sweep.Config(out=tmp_path, batch_size=BATCH)
    model, grid = MODELS["mlp"], sweeping.Grid(list(RATES), list(SEEDS))
    compare = partial(sweeping.compare_with_separate_runs, config, model, take(examples(), 30), grid)
    right = step_of(model)
    assert compare(right).ok
    assert not compare(lambda ts, x, y, index, lr, key: right(ts, x, y, index.roll(1, 0), lr, key)).ok
    assert not compare(lambda ts, x, y, index, lr, key: right(ts, x, y, index, lr * 1.001, key)).ok
    assert not compare(lambda ts, x, y, index, lr, key: right(broken(ts), x, y, index, lr, key)).ok


def broken(ts: TrainState) -> TrainState:
    """With a NaN in the last member alone."""
    return ts._replace(params=tree.map(lambda x: torch.cat([x[:-1], x[-1:] * torch.nan]), ts.params))


@pytest.mark.slow
def test_the_race_is_against_the_fastest(monkeypatch):
    seconds = {"at once": [1.0] * 3, "torch.nn": [9.0] * 3, "compiled": [4.0, 5.0, 6.0], "product": [1.0] * 3}
    monkeypatch.setattr(sweep_speed, "in_turns", lambda ways, device: dict(seconds))
    _, (agreement, sooner) = sweep_speed._race(examples(), 32, times=6.0)
    assert agreement.ok
    assert sooner.value == 5
    assert not sooner.ok


def test_the_operations_counted_are_those_of_the_products():
    sizes = (36, 9, 8, CLASSES)
    params, _ = mlp(SHAPE, CLASSES, hidden=sizes[1:-1]).init(generator(0))
    module, counter = sweep_speed._module(params), FlopCounterMode(display=False)
    with counter:
        module(torch.zeros(sweep_speed.BATCH, *SHAPE)).sum().backward()
    assert sweep_speed._flops(sizes) == sweep_speed.MODELS * counter.get_total_flops()


def test_the_module_of_the_race_is_our_perceptron():
    model, x = MODELS["mlp"], examples().images
    params, _ = model.init(generator(0))
    torch.testing.assert_close(sweep_speed._module(params)(x), mlp_apply(params, {}, x, train=False)[0])
