"""A lab reaches its model through few functions of ours, so that a reader finds the way from `main` to `apply`."""

import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import experiments
import fn
from experiments import lab0_mlp, lab1_cnn, lab3_transformer, overfit
from experiments.train import __main__ as trainer
from experiments.train import build
from experiments.train.config import Config as TrainerConfig
from fn.models import Detector, Model, mlp, ssd

OURS = tuple(f"{Path(str(package.__file__)).parent}{os.sep}" for package in (fn, experiments))


class Reached(Exception):
    """The functions of ours from `main` to `apply`, both included."""


def stop_at_apply(model: Model) -> Model:
    """`model`, whose `apply` raises Reached in training."""

    def apply(*args: Any, train: bool, **options: Any) -> Any:
        if train:
            frames = [frame for frame in reversed(inspect.stack()) if frame.filename.startswith(OURS)]
            raise Reached(*(frame.function for frame in frames), "apply")
        return model.apply(*args, train=train, **options)

    return model._replace(apply=apply)


@pytest.mark.parametrize(
    ("lab", "factory", "left_out", "loop"),
    [
        (lab0_mlp, "mlp", [], "overfit_few"),
        (lab0_mlp, "mlp", ["overfit_few", "check_overfit", "check_gradients", "compare_loops"], "train_and_test"),
        (lab1_cnn, "cnn", ["compare_convolutions"], "overfit_few"),
        (lab1_cnn, "cnn", ["compare_convolutions", "overfit_few", "check_overfit"], "train_and_test"),
        (
            lab3_transformer,
            "transformer",
            ["one_query", "compare_with_torch", "check_untrained", "trace_shapes"],
            "train",
        ),
    ],
)
def test_a_lab_reaches_its_model_in_six_frames(
    monkeypatch, tmp_path, lab: ModuleType, factory: str, left_out: list[str], loop: str
):
    family = getattr(lab, factory)
    monkeypatch.setattr(lab, factory, lambda *shape, **options: stop_at_apply(family(*shape, **options)))
    for lesson in left_out:
        monkeypatch.setattr(lab, lesson, lambda *_, **__: [])
    with pytest.raises(Reached) as reached:
        lab.main(lab.Config(out=tmp_path), torch.device("cpu"))
    frames = reached.value.args
    assert frames[:2] == ("main", loop)
    assert len(frames) <= 6, " → ".join(frames)


def test_the_trainer_reaches_its_model_in_six_frames(monkeypatch, tmp_path):
    build_model = build.build_model
    monkeypatch.setattr(build, "build_model", lambda *args: stop_at_apply(build_model(*args)))
    with pytest.raises(Reached) as reached:
        trainer.main(TrainerConfig(model="cnn", out=tmp_path), torch.device("cpu"))
    frames = reached.value.args
    assert frames[:2] == ("main", "train")
    assert len(frames) <= 6, " → ".join(frames)


def stop_detector_at_apply(detector: Detector) -> Detector:
    return detector._replace(model=stop_at_apply(detector.model))


@pytest.mark.parametrize(
    ("family", "stop", "loop"),
    [(mlp, stop_at_apply, "overfit_classifiers"), (ssd, stop_detector_at_apply, "overfit_detectors")],
    ids=["mlp", "ssd"],
)
def test_overfit_reaches_its_model_in_six_frames(monkeypatch, tmp_path, family: ModuleType, stop, loop: str):
    name = family.__name__.rpartition(".")[2]
    factory = getattr(family, name)
    monkeypatch.setattr(family, name, lambda shape, classes: stop(factory(shape, classes)))
    with pytest.raises(Reached) as reached:
        overfit.main(overfit.Config(out=tmp_path, family=name, compile=False), torch.device("cpu"))
    frames = reached.value.args
    assert frames[:2] == ("main", loop)
    assert len(frames) <= 6, " → ".join(frames)
