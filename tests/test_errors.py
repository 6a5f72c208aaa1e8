"""A model that the reader wrote goes wrong: a sentence, the shapes and their own line, and no page of calls."""

import dataclasses
import importlib
from pathlib import Path
from typing import cast, get_type_hints

import jaxtyping
import pytest
import torch

from experiments.shared import cli, registry
from experiments.shared.errors import explain
from experiments.shared.flags import Between, Config
from experiments.train import config as train
from experiments.train.__main__ import main
from fn.layers import dropout, linear
from fn.models import Model
from fn.optim import adamw
from tests.launch import run_in_process


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


whole = own(lambda logits, state: (logits.long(), state))


def counted(image_shape, classes):
    model = good(image_shape, classes)
    return model._replace(init=lambda rng: (model.init(rng)[0] | {"layers": torch.tensor(3)}, {}))


def negative(step, *, lr, total_steps):
    return -lr


def written_out(step, *, lr, total_steps):
    return str(lr)


def slipped(step, *, lr, total_steps):
    return lr * (1 - step / total_step)  # noqa: F821  # pyright: ignore[reportUndefinedVariable]


def narrow(x, key):
    return x[..., 1:]


def doubled(x, key):
    return x.double()


def params_alone(image_shape, classes):
    model = good(image_shape, classes)
    return model._replace(init=lambda rng: model.init(rng)[0])


def two_params(image_shape, classes):
    """Return two names of a dict are unpacked as if they were params and state."""
    model = good(image_shape, classes)

    def init(rng):
        return {"fc": model.init(rng)[0], "out": {}}

    return Model(init, model.apply)


def without_key(image_shape, classes):
    model = good(image_shape, classes)

    def apply(params, state, x):
        return model.apply(params, state, x, train=True)

    return Model(model.init, apply)


def unpacking(image_shape, classes):
    _, _, height, width = image_shape
    return good((1, height, width), classes)


def no_model(image_shape, classes):
    good(image_shape, classes)


def of_three(image_shape, classes, colours):
    return good(image_shape, classes)


def looks(image_shape, classes):
    """Read a tensor's value, which a step that is compiled has not."""
    model = good(image_shape, classes)

    def apply(params, state, x, *, train, key=None):
        x = x / 2 if train and len(x) == 16 and x.max().item() > 1 else x
        return model.apply(params, state, x, train=train)

    return Model(model.init, apply)


def writes(image_shape, classes):
    """Write to the images, which a compiled step must not."""
    model = good(image_shape, classes)

    def apply(params, state, x, *, train, key=None):
        x -= x.mean()
        return model.apply(params, state, x, train=train)

    return Model(model.init, apply)


def of_sixteen(image_shape, classes):
    """Go wrong on a whole batch, which is compiled, and not on the short one that is tried."""
    model = good(image_shape, classes)

    def apply(params, state, x, *, train, key=None):
        return model.apply(params, state, x[:, :, 1:] if len(x) == 16 else x, train=train)

    return Model(model.init, apply)


def late(image_shape, classes):
    """Go wrong on the six images of the validation, which no trial has met."""
    model = good(image_shape, classes)

    def apply(params, state, x, *, train, key=None):
        return model.apply(params, state, x[:, :, 1:] if len(x) == 6 else x, train=train)

    return Model(model.init, apply)


def evaluated(image_shape, classes):
    """Keep the contract in training alone."""
    model = good(image_shape, classes)

    def apply(params, state, x, *, train, key=None):
        logits, state = model.apply(params, state, x, train=train)
        return (logits if train else logits[:, 1:]), state

    return Model(model.init, apply)


def launch(monkeypatch, capsys, tmp_path, row: str, *flags: str) -> tuple[int, str]:
    """Train with this row for an mlp; return (exit status, stderr)."""
    monkeypatch.setitem(registry.MODELS, "mlp", row)
    given = ("--model", "mlp", "--epochs", "1", "--limit", "64", *flags)
    status, _, err = run_in_process(monkeypatch, capsys, train.Config, main, *given, parse=train.parse)
    return status, err


OWN_LINE, GIVEN = "tests/test_errors.py:", "    weight  f32[10,65] in [0"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            "tests.test_errors:bare",
            ["must return (logits, state), not f32[58,10]", OWN_LINE, "def apply"],
        ),
        (
            "tests.test_errors:nine",
            ["a score for each class, not f32[58,9]", "logits of floats of shape (58, 10)", OWN_LINE],
        ),
        (
            "tests.test_errors:evaluated",
            ["apply of --model mlp with train=False must return", "not f32[58,9]", OWN_LINE],
        ),
        ("tests.test_errors:stateless", ["state a dict, not NoneType", OWN_LINE]),
        (
            "tests.test_errors:params_alone",
            ["init of --model mlp must return (params, state), not dict", OWN_LINE, "lambda rng"],
        ),
        ("tests.test_errors:two_params", ["(params, state), not dict", OWN_LINE, "def init"]),
        ("tests.test_errors:without_key", ["unexpected keyword argument 'train'", OWN_LINE, "def apply"]),
        ("tests.test_errors:unpacking", ["not enough values to unpack", OWN_LINE, "= image_shape"]),
        ("tests.test_errors:no_model", ["must return Model(init, apply), not NoneType", OWN_LINE, "def no_model"]),
        ("tests.test_errors:of_three", ["positional argument: 'colours'", OWN_LINE, "def of_three"]),
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
        ("tests.test_errors:whole", ["logits of floats of shape (58, 10)", "not i64[58,10]", OWN_LINE]),
        ("tests.test_errors:counted", ["must return params of floats, layers too, not i64[] = 3", OWN_LINE]),
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


@pytest.mark.parametrize(
    ("rows", "flag", "own", "said"),
    [
        ("SCHEDULES", "--schedule", "negative", "must return a learning rate, from 0 and finite, not -0.001"),
        ("SCHEDULES", "--schedule", "written_out", "must return a learning rate, from 0 and finite, not '0.001'"),
        ("SCHEDULES", "--schedule", "slipped", "NameError: name 'total_step' is not defined"),
        ("AUGMENTS", "--augment", "narrow", "must return images as it got them, f32[2,1,8,8], not f32[2,1,8,7]"),
        ("AUGMENTS", "--augment", "doubled", "must return images as it got them, f32[2,1,8,8], not f64[2,1,8,8]"),
    ],
)
def test_a_schedule_or_an_augmentation_of_ones_own_that_is_wrong(monkeypatch, capsys, tmp_path, rows, flag, own, said):
    name = next(iter(getattr(registry, rows)))
    monkeypatch.setitem(getattr(registry, rows), name, f"tests.test_errors:{own}")
    row = "tests.test_errors:good"
    status, err = launch(monkeypatch, capsys, tmp_path, row, flag, name, "--lr", "0.001", "--out", str(tmp_path))
    assert status == 2
    assert err.startswith(f"error: {flag} {name}")
    assert said in err
    assert OWN_LINE in err
    assert len(err.splitlines()) <= 3


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


@pytest.mark.parametrize(
    ("row", "said", "line"),
    [
        ("looks", "error: JitError: the step needs the values of a tensor", "x.max().item()"),
        ("writes", "error: JitError: the step writes to an argument", "x -= x.mean()"),
        ("of_sixteen", "error: fn.layers.linear: weight is f32[10,64], not ", "return model.apply("),
    ],
)
def test_a_step_that_cannot_be_compiled_shows_the_line_too(monkeypatch, capsys, tmp_path, row, said, line):
    row = f"tests.test_errors:{row}"
    status, err = launch(monkeypatch, capsys, tmp_path, row, "--compile", "--batch-size", "16", "--out", str(tmp_path))
    complaint, where, *rest = [text for text in err.splitlines() if not text.startswith("mlp")]
    assert (status, complaint[: len(said)]) == (1, said)
    assert OWN_LINE in where
    assert (line in where) or row.endswith("of_sixteen")
    assert len(rest) <= 4


VAST = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(f"{VAST} 120000000000 bytes. Error code 12"), "120000000000 bytes were asked for at once; "),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
            "20.00 GiB were asked for at once; ",
        ),
        (MemoryError(), "out of memory; smaller sizes need less"),
    ],
)
def test_what_does_not_fit_into_memory_is_a_line(error, said):
    status, message = cli.status_and_message(error)
    assert (status, message.count("\n"), said in message) == (2, 0, True)
    assert cli.explain(error) == message
    assert cli.status_and_message(RuntimeError("mat1 and mat2"))[0] == 1


def test_a_refusal_of_ours_is_followed_by_the_readers_line():
    with pytest.raises(ValueError, match="takes no bias") as error:
        linear(torch.ones(3), torch.ones(3), torch.ones(1))
    said, line = explain(error.value).splitlines()
    assert said == "linear: a weight that is a vector takes no bias"
    assert OWN_LINE in line
    assert line.endswith(": linear(torch.ones(3), torch.ones(3), torch.ones(1))")


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


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_target_among_the_flags_is_none_unless_given(script):
    """One of 0 would be a check that every run passes."""
    fields = dataclasses.fields(importlib.import_module(script).Config)
    assert all(field.default is None for field in fields if "target" in field.name)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: dropout(torch.ones(3), p=2), "fn.layers.dropout: p is 2, not float from 0 to 1"),
        (
            lambda: adamw(lr=1e-3, betas=(2, 0.1)),
            "fn.optim.adamw: betas is (2, 0.1), not tuple[float from 0 to below 1, float from 0 to below 1]",
        ),
    ],
    ids=["dropout", "adamw"],
)
def test_a_number_outside_its_domain_is_one_line_of_plain_words(call, said):
    with pytest.raises(jaxtyping.TypeCheckError) as error:
        call()
    assert explain(error.value).splitlines()[0] == said
