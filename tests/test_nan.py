"""A NaN among the numbers that a check compares fails it, wherever it stands among them."""

import math
from collections.abc import Callable
from functools import partial, wraps
from itertools import permutations
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from experiments import (
    lab0_mlp,
    lab1_cnn,
    lab2_training,
    lab3_transformer,
    lab4_pretrained,
    lab5_detection,
    lab6_data,
    lab7_processes,
    overfit,
)
from experiments.lab_helpers.lab3 import attention_parity
from experiments.lab_helpers.lab3.language_tasks import toy_task
from experiments.lab_helpers.lab4 import transfer_report
from experiments.lab_helpers.lab5.baselines import score_baselines
from experiments.lab_helpers.lab5.detection_task import build_detector
from experiments.lab_helpers.lab6.photographs import write_photographs
from experiments.shared import cli
from experiments.train.config import Config as TrainerConfig
from experiments.train.run import train
from fn import tree
from fn.backbones import BACKBONES, cut, transfer_model
from fn.data import scenes
from fn.data.datasets import digits, take
from fn.detection.boxes import object_table
from fn.detection.train import Detections, predict
from fn.gradcheck import largest, relative_error, smallest
from fn.models.mlp import mlp_init
from fn.optim import adamw
from fn.rng import generator
from fn.train import init_train_state
from fn.transfer import freeze

CPU = torch.device("cpu")
NUMBERS = [math.nan, -math.inf, 2.0, 3.0]


@pytest.mark.parametrize("numbers", list(permutations(NUMBERS)), ids=str)
def test_largest_and_smallest_keep_a_nan_in_every_place(numbers):
    assert math.isnan(largest(numbers))
    assert math.isnan(smallest(map(torch.tensor, numbers)))
    others = [n for n in numbers if not math.isnan(n)]
    assert (largest(others), smallest(map(torch.tensor, others))) == (3.0, -math.inf)


@pytest.mark.parametrize("place", range(6))
@pytest.mark.parametrize("side", [0, 1])
def test_relative_error_keeps_a_nan_in_every_place(place, side):
    trees = [{"a": torch.ones(2), "b": {"c": torch.ones(1), "d": torch.ones(2)}, "e": torch.tensor(1.0)} for _ in "ab"]
    assert relative_error(*trees) == 0
    flat = torch.ones(6)
    flat[place] = math.nan
    parts = dict(zip(tree.flatten(trees[side]), flat.split([2, 1, 2, 1]), strict=True))
    trees[side] = tree.unflatten(parts | {"e": parts["e"].squeeze()})
    assert math.isnan(relative_error(*trees))


def test_a_mean_over_seeds_one_of_which_is_nan_fails_and_says_so():
    check = cli.check_mean("accuracy", [0.9, math.nan, 1.0], ">=", 0.5)
    assert (check.ok, check.spread) == (False, "± nan, 3 seeds")
    assert math.isnan(check.value)


def spoil(x: Any) -> Any:
    """Return `x` with its last number replaced by NaN, in a way that `grad` can follow."""
    if callable(x):
        return lambda *args, **options: spoil(x(*args, **options))
    if isinstance(x, Tensor):
        one = torch.ones(x.numel(), dtype=x.dtype)
        one[-1] = math.nan
        return x * one.reshape(x.shape)
    if isinstance(x, dict):
        *_, last = x
        return x | {last: spoil(x[last])}
    if isinstance(x, list | tuple):
        parts = [*x[:-1], spoil(x[-1])]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return math.nan


def spoil_run(run: Any) -> Any:
    return run._replace(ts=run.ts._replace(params=spoil(run.ts.params)))


def spoil_log(log: Any, split: str) -> Any:
    """Return the log with the last epoch's loss on a split replaced by NaN."""
    lines, history = log
    *_, last = [i for i, entry in enumerate(history) if entry["event"] == "epoch"]
    history = [entry | ({split: {"loss": math.nan}} if i == last else {}) for i, entry in enumerate(history)]
    return lines, history


def spoil_first(result: tuple[Any, ...]) -> tuple[Any, ...]:
    first, *rest = result
    return spoil(first), *rest


def scored_run(accuracy: float) -> Any:
    """Return as much of a run as says how accurate it was on the test split."""
    labels = SimpleNamespace(labels=torch.arange(10))
    return SimpleNamespace(history=[{"test": {"accuracy": accuracy}}], parts=SimpleNamespace(data={"test": labels}))


def train_every_model(out: Path) -> list[cli.Check]:
    return lab2_training.train_every_model(lab2_training.Config(out=out), TrainerConfig(), CPU)


def small_run(out: Path) -> Any:
    config = TrainerConfig(model="mlp", hidden=(8,), epochs=2, limit=150, batch_size=32, out=out, overwrite=True)
    return train(config, CPU)


def check_overfit(out: Path) -> list[cli.Check]:
    params, _ = mlp_init(generator(0), 64, (128,), 10)
    run = [lab0_mlp.Snapshot(params, {"accuracy": 1.0, "loss": 1e-4})]
    return lab0_mlp.check_overfit(lab0_mlp.Config(out=out), FEW, run, [])


def lab3_parts() -> tuple[Any, ...]:
    config, task = lab3_transformer.Config(), toy_task("reverse", seed=0, device=CPU)
    recipe = lab3_transformer.RECIPES["reverse"]
    model = lab3_transformer.build(config, recipe, task)
    return model, task, [init_train_state(model, adamw(lr=0.1), seed=seed, device=CPU) for seed in (0, 1)]


def evaluate_toy(out: Path) -> list[cli.Check]:
    return lab3_transformer.evaluate_toy(lab3_transformer.Config(out=out), *lab3_parts())


def accuracies() -> dict[str, list[float]]:
    return {"scratch": [0.1, 0.2, 0.3], "head": [0.6, 0.7, 0.81], "fine": [0.8, 0.91, 1.0]}


def compare_ways(out: Path) -> list[cli.Check]:
    return transfer_report.compare_ways(lab4_pretrained.Config(out=out), digits(), 10, accuracies())


def check_baselines(out: Path) -> list[cli.Check]:
    return lab5_detection.check_baselines(lab5_detection.Config(out=out), score_baselines(scenes.digits(8, 8), 0))


def cache_few_features(out: Path) -> list[cli.Check]:
    spec = BACKBONES["resnet8"]
    params, state = (cut(spec, part) for part in spec.model(spec.shape, spec.classes).init(generator(0)))
    whole = transfer_model(spec, 10, weights=(params, state))
    head, frozen = freeze(whole, ["head"]).init(generator(0))
    moved = tree.map(lambda p: p + 1, head)
    frozen["state"]["head"] = tree.map(lambda p: p + 1, frozen["state"]["head"])
    return transfer_report.check_cached(whole.init(generator(0)), (moved, frozen), moved["head"], 3.0)


def find_all(objects: Tensor) -> Any:
    """Return a `predict` that finds every object, each once, at its place."""
    boxes, labels, images = object_table(objects)
    return lambda *_: Detections(boxes, torch.ones(len(boxes)), labels, images)


def overfit_detector(out: Path) -> list[cli.Check]:
    data = scenes.digits(8, 1)
    config = lab5_detection.Config(out=out)
    return lab5_detection.overfit_few(config, "anchor", build_detector("anchor", data, None, None), data)


def seeds() -> list[overfit.Run]:
    return [overfit.Run([{"accuracy": 1.0, "loss": 1e-4}])] * 3


def ended() -> list[lab7_processes.Trained]:
    """Return two processes that ended alike."""
    return [lab7_processes.Trained(torch.ones(3), 6, accuracy=0.95, seconds=0.1)] * 2


def few_photographs(root: Path, count: int) -> None:
    write_photographs(root, count // 50)


FEW = take(digits().train, 32)
TRUE = lambda *args, **options: 1.0  # noqa: E731
STOPPED = {"experiments.lab2_training.train_and_stop": lambda *_: [(130, 3), (-9, 3)]}
LAB4 = "experiments.lab_helpers.lab4.transfer_report"
LAB3, LAB5, LAB6 = "experiments.lab3_transformer", "experiments.lab5_detection", "experiments.lab6_data"
SOLVED = {f"{LAB3}.evaluate": lambda *_: {"exact": 1.0}, f"{LAB3}.mirrored_share": TRUE}
FOUND = {f"{LAB5}.predict": find_all(scenes.digits(8, 1).train.objects), f"{LAB5}.FEW_STEPS": 1}


class Case(NamedTuple):
    check: Callable[[Path], list[cli.Check]]
    """runs one lesson of a lab in a folder"""
    spoiled: str
    """the function whose result gets a NaN"""
    fails: set[str]
    """parts of the names of the checks that then fail"""
    first: int = 0
    """the call from which on it does"""
    spoil: Callable = spoil
    of_input: bool = False
    """whether the function's first argument gets it, not its result"""
    given: dict[str, Any] = {}  # noqa: RUF012
    """what is patched with and without the NaN"""


CASES = {
    "lab 0, by hand": Case(
        lambda out: lab0_mlp.check_gradients(lab0_mlp.Config(out=out), FEW),
        "experiments.lab0_mlp.two_layer_grads",
        {"gradient: derived by hand"},
    ),
    "lab 0, central differences": Case(
        lambda out: lab0_mlp.check_gradients(lab0_mlp.Config(out=out), FEW),
        "experiments.lab0_mlp.numerical_grad",
        {"gradient: central differences"},
    ),
    "lab 0, the loops": Case(
        lambda out: lab0_mlp.compare_loops(lab0_mlp.Config(out=out), FEW),
        "experiments.lab0_mlp.functional_loop",
        {"functional and classic loop"},
    ),
    "lab 0, gradient norms": Case(check_overfit, "experiments.lab0_mlp.grad", {"32 digits: least gradient norm"}),
    "lab 1, convolutions": Case(
        lambda out: lab1_cnn.compare_convolutions(lab1_cnn.Config(out=out), CPU),
        "experiments.lab1_cnn.conv2d_unfold",
        {"convolutions: largest relative gap of outputs", "convolutions: largest relative gap of gradients"},
    ),
    "lab 2, resumed": Case(
        lambda out: lab2_training.stop_and_resume(lab2_training.Config(out=out), small_run(out / "whole"), CPU),
        "experiments.lab2_training.train",
        {"resume after SIGINT", "resume after SIGKILL"},
        spoil=spoil_run,
        given=STOPPED | {"experiments.lab2_training.train": lambda config, _: small_run(config.out.parent / "whole")},
    ),
    "lab 2, the log": Case(
        lambda out: lab2_training.recompute_the_log(small_run(out / "whole"), CPU),
        "experiments.train.folder.read_log",
        {"log: epoch's loss"},
        spoil=partial(spoil_log, split="train"),
    ),
    "lab 2, the logged validation loss": Case(
        lambda out: lab2_training.recompute_the_log(small_run(out / "whole"), CPU),
        "experiments.train.folder.read_log",
        {"log: last validation loss"},
        spoil=partial(spoil_log, split="validation"),
    ),
    "lab 2, the saved weights": Case(
        lambda out: lab2_training.recompute_the_log(small_run(out / "whole"), CPU),
        "fn.checkpoint.load_newest",
        {"log: last validation loss"},
        spoil=lambda loaded: (loaded[0] | {"params": spoil(loaded[0]["params"])}, loaded[1]),
    ),
    "lab 2, an epoch of each": Case(
        train_every_model,
        f"{__name__}.scored_run",
        {"swap: pairs"},
        first=1,
        spoil=lambda run: SimpleNamespace(history=[{"test": {"accuracy": math.nan}}], parts=run.parts),
        given={"experiments.lab2_training.train": lambda *_: scored_run(0.9)},
    ),
    "lab 2, top-k": Case(
        lambda out: lab2_training.compare_top_k(lab2_training.Config(out=out)),
        "experiments.lab2_training.top_k_accuracy",
        {"top-k: largest difference", "top-k: of ten equal"},
        first=1,
    ),
    "lab 2, accumulation": Case(
        lambda out: lab2_training.accumulate(lab2_training.Config(out=out), CPU),
        "experiments.lab2_training.relative_error",
        {"accumulation"},
        first=1,
        of_input=True,
    ),
    "lab 3, beside torch": Case(
        lambda out: attention_parity.compare_with_torch(lab3_transformer.Config(out=out), CPU),
        "experiments.lab_helpers.lab3.attention_parity.tiled_attention",
        {"beside torch: largest relative gap of outputs", "beside torch: largest relative gap of gradients"},
    ),
    "lab 3, the worst seed": Case(evaluate_toy, f"{LAB3}.evaluate", {"unseen problems solved"}, first=1, given=SOLVED),
    "lab 3, the worst share": Case(evaluate_toy, f"{LAB3}.mirrored_share", {"reverse: queries"}, first=1, given=SOLVED),
    "lab 3, sums of rows": Case(
        lambda out: lab3_transformer.check_attention(*lab3_parts()),
        f"{LAB3}.attention_of",
        {"attention: largest distance"},
        first=1,
    ),
    "lab 4, a seed": Case(
        compare_ways, f"{__name__}.accuracies", {"fine − head: accuracy", "fine − head: mean over spread"}
    ),
    "lab 4, a seed of the way between": Case(
        compare_ways,
        f"{__name__}.accuracies",
        {"head − scratch: accuracy", "head − scratch: mean over spread", "fine − head: accuracy"},
        spoil=lambda ways: ways | {"head": spoil(ways["head"])},
    ),
    "lab 4, cached features": Case(
        cache_few_features, f"{LAB4}.relative_error", {"cached features: relative gap"}, of_input=True
    ),
    "lab 4, a frozen leaf": Case(
        cache_few_features,
        f"{LAB4}.unfreeze",
        {"head only: leaves that moved"},
        spoil=lambda after: (after[0] | {"backbone": spoil(after[0]["backbone"])}, after[1]),
    ),
    "lab 5, overfitted": Case(
        overfit_detector,
        f"{LAB5}.evaluate_detections",
        {"anchor, 8 images: AP50", "anchor, 8 images: AP50:95"},
        spoil=lambda ap: ap * math.nan,
        given=FOUND,
    ),
    "lab 5, baselines": Case(
        check_baselines,
        "experiments.lab_helpers.lab5.baselines.evaluate_detections",
        {"random boxes: AP50"},
        first=1,
        spoil=lambda ap: ap * math.nan,
    ),
    "lab 6, the cache": Case(
        lambda out: lab6_data.cache_photographs(lab6_data.Config(out=out)),
        f"{LAB6}.photographs",
        {"cache: reads that differ"},
        spoil=lambda images: images * math.nan,
        given={f"{LAB6}.run_at_once": lambda *_: [0, 0], f"{LAB6}.write_photographs": few_photographs},
    ),
    "lab 7, held out": Case(
        lambda out: lab7_processes.compare_results({"MLP, in order": [ended(), ended(), ended()]}),
        f"{__name__}.ended",
        {"held-out accuracy"},
        first=1,
        spoil=lambda group: [group[0]._replace(accuracy=math.nan), *group[1:]],
    ),
    "overfit, the worst seed": Case(
        lambda out: overfit.check_classifiers(overfit.Config(out=out), {"mlp": seeds()}),
        f"{__name__}.seeds",
        {"mlp: loss"},
        spoil=lambda runs: [*runs[:-1], overfit.Run([{"accuracy": 1.0, "loss": math.nan}])],
    ),
}


def spoiled(f: Callable, case: Case) -> Callable:
    calls: list[int] = []

    @wraps(f)
    def with_nan(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) <= case.first:
            return f(*args, **options)
        return f(case.spoil(args[0]), *args[1:], **options) if case.of_input else case.spoil(f(*args, **options))

    return with_nan


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_nan_among_what_a_lab_compares_fails_the_check(monkeypatch, tmp_path, case):
    """The same checks hold without it."""
    for name, stand_in in case.given.items():
        monkeypatch.setattr(name, stand_in)
    named = lambda checks: {name: [c for c in checks if name in c.name] for name in case.fails}  # noqa: E731
    sound = named(case.check(tmp_path))
    assert all(found and all(check.ok for check in found) for found in sound.values()), sound
    original = resolve_name(case.spoiled)
    monkeypatch.setattr(case.spoiled, spoiled(original, case))
    bad = named(case.check(tmp_path))
    assert not any(check.ok for found in bad.values() for check in found), bad


@pytest.mark.parametrize("column", ["boxes", "scores"])
def test_a_detection_with_a_nan_is_refused_by_lab_5(monkeypatch, tmp_path, column):
    """A class without objects has NaN for its average precision: that of a detection must not pass for one."""
    for name, stand_in in FOUND.items():
        monkeypatch.setattr(name, stand_in)
    found = FOUND[f"{LAB5}.predict"]()
    monkeypatch.setattr(f"{LAB5}.predict", lambda *_: found._replace(**{column: spoil(getattr(found, column))}))
    with pytest.raises(ValueError, match=r"average_precision: a .* NaN"):
        overfit_detector(tmp_path)


@pytest.mark.parametrize("flavor", lab5_detection.FLAVORS)
def test_a_detector_whose_weights_are_nan_is_refused_by_lab_5(flavor):
    few = scenes.digits(8, 1).train
    detector = build_detector(flavor, scenes.digits(8, 1), None, None)
    params, state = detector.model.init(generator(0))
    with pytest.raises(FloatingPointError, match="an output of the model is not finite"):
        predict(detector, tree.map(lambda p: p * math.nan, params), state, few.images)
