"""The functions of ours between a `main` and the model that it trains; `python -m tests.frames` prints them.

A reader who wants to know how a lab reaches its model goes through as many functions. Where the step is compiled, its
one trace goes through those of `fn.jit` too: such a loop has a second line, with the compiler.
"""

import contextlib
import inspect
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import pytest
import torch

import experiments
import fn
import fn.train
from experiments import lab0_mlp, lab1_cnn, lab3_transformer, lab4_pretrained, lab5_detection, overfit
from experiments.lab_helpers.lab4.transfer_task import load_images
from experiments.train import __main__ as trainer
from experiments.train import build
from fn import checks
from fn.data.datasets import Dataset, take
from fn.data.scenes import Scenes, SceneSet
from fn.models import Detector, Model

OURS = tuple(f"{Path(str(package.__file__)).parent}{os.sep}" for package in (fn, experiments))
RACCOON = Scenes(torch.zeros(1, 3, 32, 32), torch.tensor([[[0.0, 0, 9, 9, 0]]]))
RACCOONS = SceneSet(RACCOON, RACCOON, ["raccoon"])


def few_images(dataset: Dataset, *_: torch.Tensor) -> tuple[Dataset, torch.Tensor, torch.Tensor]:
    """Return 60 images for training and 40 others, and all of them, as Lab 4 loads its images."""
    train, test = take(dataset.train, 60), take(dataset.test, 40)
    images, labels = (torch.cat(parts) for parts in zip(train, test, strict=True))
    return dataset._replace(train=train, test=test), images, labels


class Reached(Exception):
    """The names of our functions from `main` to `apply`, both included."""


class Loop(NamedTuple):
    """A training loop, and how to come to it soon."""

    name: str
    """the function that holds it"""
    script: ModuleType
    left_out: tuple[str, ...] = ()
    """functions of the script that run before it"""
    flags: Mapping[str, Any] = MappingProxyType({})
    step: tuple[ModuleType, str] | None = None
    """where the step is made from the model: a module and the name of a function; the script's `classifier_step`"""
    earlier: int = 0
    """models that are trained before this one"""
    replaced: Mapping[str, Any] = MappingProxyType({})
    """attributes of the script that make it fast"""
    compiled_by: Mapping[str, Any] | None = None
    """the flags with which the script compiles its step unless told otherwise; None if it does with none"""


LAB4 = {
    "RECIPES": {
        name: recipe._replace(
            ways={way: row._replace(epochs=1) for way, row in recipe.ways.items()}, shots={3: 1}, timed_epochs=1
        )
        for name, recipe in lab4_pretrained.RECIPES.items()
    },
    "eval_one_epoch": lambda *_, **__: {"accuracy": 0.0},
    "load_images": lambda *flags: few_images(*load_images(*flags)),
}
LAB4_WAYS = {0: "under the frozen backbone", 1: "cached features", 8: "from scratch", 9: "the head", 10: "fine-tuned"}
"""by the number of models that are trained before"""
LAB5 = {
    "load_scenes": lambda *_: RACCOONS,
    "RECIPES": {"digits": lab5_detection.RECIPES["digits"]._replace(batch_size=1)},  # a whole batch is compiled
}
LAB3_LEFT_OUT = ("one_query", "compare_with_torch", "check_untrained", "trace_shapes")
LOOPS = {
    "lab 0, a few digits": Loop("overfit_few", lab0_mlp),
    "lab 0, all digits": Loop(
        "train_and_test", lab0_mlp, ("overfit_few", "check_overfit", "check_gradients", "compare_loops")
    ),
    "lab 1, a few images": Loop("overfit_few", lab1_cnn, ("compare_convolutions",)),
    "lab 1, all images": Loop(
        "train_and_test",
        lab1_cnn,
        ("compare_convolutions", "overfit_few", "check_fit"),
        compiled_by={"dataset": "mnist"},
    ),
    "lab 3": Loop("train", lab3_transformer, LAB3_LEFT_OUT, compiled_by={"task": "text"}),
    **{f"lab 4, {way}": Loop("train_way", lab4_pretrained, earlier=i, replaced=LAB4) for i, way in LAB4_WAYS.items()},
    **{
        f"lab 5, {flavor}, {images} images": Loop(
            loop,
            lab5_detection,
            ("overfit_few",) if images == "all" else (),
            {"flavor": flavor},
            (lab5_detection, "detector_step"),
            replaced=LAB5,
            compiled_by={} if images == "all" else None,
        )
        for flavor in ("anchor", "center")
        for images, loop in (("few", "overfit_few"), ("all", "train_and_test"))
    },
    "overfit, mlp": Loop("overfit_classifiers", overfit, flags={"family": "mlp"}),
    "overfit, ssd": Loop("overfit_detectors", overfit, flags={"family": "ssd"}, step=(overfit, "detector_step")),
    "train": Loop(
        "train",
        trainer,
        flags={"model": "cnn"},
        step=(build, "build_step"),
        compiled_by={"dataset": "mnist", "epochs": 20},
    ),
}
COMPILED = {name: loop for name, loop in LOOPS.items() if loop.compiled_by is not None}


def frames_to(loop: Loop, *, compile: bool = False) -> tuple[str, ...]:
    """Run the script up to the first training step of the loop; return the names of our functions on the way."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as out:
        for name in loop.left_out:
            patch.setattr(loop.script, name, lambda *_, **__: [])
        for name, value in loop.replaced.items():
            patch.setattr(loop.script, name, value)
        module, name = loop.step or (loop.script, "classifier_step")
        patch.setattr(module, name, stopping(getattr(module, name), loop.earlier))
        compiler = {"compile": True} if compile else {}
        config = loop.script.Config(out=Path(out), **loop.flags, **compiler)
        with pytest.raises(Reached) as reached:
            loop.script.main(config, torch.device("cpu"))
    return reached.value.args


def stopping(make_step: Callable, earlier: int) -> Callable:
    """Return `make_step`, whose models stop the script when they are applied, from the model after `earlier` on."""
    counter = iter(range(earlier))

    def stopped(x: Any) -> Any:
        if isinstance(x, Model):
            return stop_at_apply(x)
        return x._replace(model=stop_at_apply(x.model)) if isinstance(x, Detector) else x

    def make(*args: Any, **options: Any) -> Callable:
        if next(counter, None) is None:
            args = tuple(map(stopped, args))
        return make_step(*args, **options)

    return make


def stop_at_apply(model: Model) -> Model:
    """Return `model` with an `apply` that raises Reached in training."""

    def apply(*args: Any, train: bool, **options: Any) -> Any:
        if train:
            frames = [frame for frame in reversed(inspect.stack()) if frame.filename.startswith(OURS)]
            frames = [frame for frame in frames if frame.filename != checks.__file__]
            raise Reached(*(frame.function for frame in frames), "apply")
        return model.apply(*args, train=train, **options)

    return model._replace(apply=apply)


def table() -> Iterator[str]:
    """Yield a line per loop: its name, how many functions, and which; one more line with the compiler."""
    for name, loop in LOOPS.items():
        for compile in (False, True) if name in COMPILED else (False,):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                frames = frames_to(loop, compile=compile)
            yield f"{name + ', compiled' * compile:<34} {len(frames):>2}  {' → '.join(frames)}"


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
