"""The rules of the race: what a recipe is, what the clocks count, when its accuracy is enough.

A recipe is a function train(split, seed) -> predict. It is given normalized training images with their labels, and no
test image. predict(images) returns logits or classes, and sees no label.

Three clocks: training, from the call of `train` to its return; evaluation, of `predict` on all test images; compiling,
what the first run of a recipe takes beyond the mean of its later runs. So a step compiled once is not counted again.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from experiments.shared.errors import first_line
from experiments.shared.flags import UsageError
from experiments.shared.source import run_file
from fn.data.datasets import Dataset, Split

GOAL = 0.99
EVAL_BATCH = 1000


class Run(NamedTuple):
    accuracy: float
    training: float
    """seconds"""
    evaluation: float
    """seconds"""


class Clocks(NamedTuple):
    """Seconds of a recipe: of one run, and of all of its runs."""

    training: float
    evaluation: float
    compiling: float | None
    """None of a single run, which cannot tell it from training"""
    in_all: float


def once(train: Callable[..., Any], data: Dataset, seed: int) -> Iterator[Callable]:
    """Yield the one predict of a recipe, trained on images of its own: what it writes there, no other recipe reads."""
    yield train(Split(*(part.clone() for part in data.train)), seed)


def run(name: str, predicts: Iterable[Callable], test: Split) -> Run:
    """Train and score until the goal is reached, or the recipe is at its end; an iterator trains when it is asked."""
    accuracy = training = evaluation = 0.0
    began = _now(test)
    for predict in predicts:
        trained = _now(test)
        accuracy = score(name, predict, test)
        training, evaluation = training + trained - began, evaluation + _now(test) - trained
        if accuracy >= GOAL:
            break
        began = _now(test)
    return Run(accuracy, training, evaluation)


def _now(split: Split) -> float:
    """Return the clock's time once the device has done what it was asked for."""
    if split.images.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


@torch.no_grad()
def score(name: str, predict: Callable[[Tensor], Tensor], test: Split) -> float:
    """Return the share of test images whose class is right; UsageError unless `predict` gives logits or classes."""
    if not callable(predict):
        raise UsageError(f"{name}: train returned a {type(predict).__name__}, not a function predict(images)")
    hits = 0
    for images, labels in zip(*(part.split(EVAL_BATCH) for part in test), strict=True):
        said = predict(images.clone())
        hits += int((_classes(name, said, len(labels)) == labels).sum())
    return hits / len(test.labels)


def _classes(name: str, said: Any, examples: int) -> Tensor:
    """Return the class of each image; UsageError for what is neither logits nor classes."""
    if not isinstance(said, Tensor):
        raise UsageError(f"{name}: predict returned a {type(said).__name__}, not a tensor")
    if said.shape == (examples, 10):
        return said.argmax(1)
    if said.shape == (examples,) and not said.is_floating_point():
        return said
    raise UsageError(
        f"{name}: predict returned {said.dtype} of shape {tuple(said.shape)} for {examples} images, "
        f"not logits ({examples}, 10) or whole numbers ({examples},)"
    )


def summarize(runs: Sequence[Run]) -> Clocks:
    """Return the clocks of a recipe's runs, in their order."""
    first, later = runs[0], runs[1:]
    training, evaluation = mean(r.training for r in later or runs), mean(r.evaluation for r in later or runs)
    compiling = max(0.0, first.training + first.evaluation - training - evaluation) if later else None
    return Clocks(training, evaluation, compiling, sum(r.training + r.evaluation for r in runs))


def p_value(accuracies: Sequence[float]) -> float:
    """Return how likely a mean this far above the goal is where the true one is the goal; NaN for a single accuracy.

    A one-sided t-test. Student 1908.
    """
    from scipy import stats  # here, not above: it takes a second, which a refusal need not wait for

    if len(set(accuracies)) == 1:  # no spread, for which t is infinite
        return float("nan") if len(accuracies) == 1 else float(accuracies[0] <= GOAL)
    test: Any = stats.ttest_1samp(accuracies, GOAL, alternative="greater")
    return float(test.pvalue)


def load(file: Path) -> Callable[..., Any]:
    """Return the function `train` of a file; UsageError, in one line, if it has none that takes (split, seed)."""
    try:
        train = vars(run_file(file, "race_mine")).get("train")
    except OSError as error:
        raise UsageError(f"--mine {file} cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        raise UsageError(f"--mine {file}, line {error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        raise UsageError(f"--mine {file} fails when it is imported: {first_line(error)}") from None
    if train is None:
        raise UsageError(f"--mine {file} has no function train(split, seed)")
    if not callable(train):
        raise UsageError(f"--mine {file}: train is a {type(train).__name__}, not a function train(split, seed)")
    try:
        inspect.signature(train).bind("split", "seed")
    except TypeError as error:
        raise UsageError(f"--mine {file}: train cannot be called as train(split, seed): {error}") from None
    return train
