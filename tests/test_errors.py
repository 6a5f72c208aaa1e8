"""A model that the reader wrote goes wrong: a sentence, the shapes and their own line, and no page of calls."""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import cast, get_type_hints

import pytest
import torch

from experiments.shared import cli, registry
from experiments.shared.flags import Between, Config
from experiments.train import config as train
from experiments.train.__main__ import main
from fn.layers import linear
from fn.models import Model


def own(give, shape=(10, 64)):
    """Return the factory of a linear model with a weight of this shape; `give` makes its result of logits and state."""

    def factory(image_shape, classes):
        def init(rng):
            return {"fc": {"weight": torch.rand(shape, generator=rng), "bias": torch.zeros(shape[0])}}, {}

        def apply(params, state, x, *, train, key=None):
            logits = linear(x.flatten(1), **params["fc"])
            return give(logits, state)

        return Model(init, apply)

    return factory


good = own(lambda logits, state: (logits, state))
bare = own(lambda logits, state: logits)
nine = own(lambda logits, state: (logits, state), shape=(9, 64))
wide = own(lambda logits, state: (logits, state), shape=(10, 65))
stateless = own(lambda logits, state: (logits, None))
slip = own(lambda logits, state: (logits.shap, state))


def late(image_shape, classes):
    """Go wrong in evaluation, which no trial has met."""
    model = good(image_shape, classes)

    def apply(params, state, x, *, train, key=None):
        return model.apply(params, state, x if train else x[:, :, 1:], train=train)

    return Model(model.init, apply)


def launch(monkeypatch, capsys, tmp_path, row: str, *flags: str) -> tuple[int, str]:
    """Train with this row for an mlp; return (exit status, stderr)."""
    monkeypatch.setitem(registry.MODELS, "mlp", row)
    monkeypatch.setattr(sys, "argv", ["train", "--model", "mlp", "--epochs", "1", "--limit", "64", *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(train.Config, main, train.parse)
    return int(stop.value.code or 0), capsys.readouterr().err


OWN_LINE, GIVEN = "tests/test_errors.py:", "    weight  f32[10,65] in [0"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("tests.test_errors:bare", ["must return (logits, state), not Tensor"]),
        ("tests.test_errors:nine", ["logits of shape (58, 10), a score for each class, not (58, 9)"]),
        ("tests.test_errors:stateless", ["state a dict, not NoneType"]),
        (
            "tests.test_errors:wide",
            [
                "fn.layers.linear: weight is f32[10,65], not ",
                "Float[Tensor, 'd_out d_in']",
                "d_in=64",
                OWN_LINE,
                "fc",
                GIVEN,
            ],
        ),
        (
            "tests.test_errors:slip",
            ["AttributeError: 'Tensor' object has no attribute 'shap'", OWN_LINE, "logits.shap"],
        ),
        ("tests.test_errors:god", ["registry.py names 'tests.test_errors:god'", "has no attribute 'god'"]),
        ("tests.test_erors:good", ["registry.py names 'tests.test_erors:good'", "No module named"]),
    ],
)
def test_a_model_of_ones_own_that_is_wrong(monkeypatch, capsys, tmp_path, row, said):
    status, err = launch(monkeypatch, capsys, tmp_path, row, "--out", str(tmp_path))
    assert status == 2
    assert all(part in err for part in said), err
    assert len(err.splitlines()) <= 6
    status, whole = launch(monkeypatch, capsys, tmp_path, row, "--out", str(tmp_path), "--traceback")
    assert status == 2
    assert whole.endswith(err)
    assert "Traceback (most recent call last)" in whole


def test_a_model_without_an_option_is_not_asked_for_it(monkeypatch, capsys, tmp_path):
    row = "tests.test_errors:good"
    assert launch(monkeypatch, capsys, tmp_path, row, "--out", str(tmp_path / "a"))[0] == 0
    status, err = launch(monkeypatch, capsys, tmp_path, row, "--out", str(tmp_path / "b"), "--dropout-p", "0.1")
    assert (status, err) == (2, "error: mlp takes no --dropout-p\n")


def test_an_error_after_the_first_step_is_as_short(monkeypatch, capsys, tmp_path):
    status, err = launch(monkeypatch, capsys, tmp_path, "tests.test_errors:late", "--out", str(tmp_path))
    complaint, line, *given, hint = [text for text in err.splitlines() if not text.startswith(("epoch", "mlp"))]
    assert status == 1
    assert complaint.startswith("error: fn.layers.linear: weight is f32[10,64], not ")
    assert OWN_LINE in line
    assert [text.split()[:2] for text in given] == [["x", "f32[6,56]"], ["weight", "f32[10,64]"], ["bias", "f32[10]"]]
    assert "--traceback" in hint


SCRIPTS = sorted(
    path.relative_to(Path(__file__).parents[1]).with_suffix("").as_posix().replace("/", ".")
    for path in (Path(__file__).parents[1] / "experiments").rglob("*.py")
    if "cli.run(Config" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_among_the_flags_has_bounds(script):
    config_type = importlib.import_module(script).Config
    assert issubclass(config_type, Config)
    for name, hint in get_type_hints(config_type, include_extras=True).items():
        plain = get_type_hints(config_type)[name]
        if any(number in str(plain) for number in ("int", "float")) and "dict" not in str(plain):
            [bounds] = [b for b in getattr(hint, "__metadata__", ()) if isinstance(b, Between)]
            default = {field.name: field.default for field in dataclasses.fields(config_type)}[name]
            for value in default if isinstance(default, tuple) else [default]:
                assert value is None or bounds.least <= cast(float, value) <= bounds.greatest, name
