"""Metrics: measured, not differentiated. Logits first, targets second.

Of equal scores the lower class ranks first, so that every metric agrees with argmax, which takes the first maximum.
A NaN score never counts as right. A target of -100 (`ignore_index`) counts nowhere; the mean over no targets is NaN.
ValueError for a target that is no class.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from fn.domains import Count, Integer, Natural
from fn.indices import gather_classes, is_counted, require_indices


def accuracy(
    input: Float[Tensor, "batch classes *positions"], target: Int[Tensor, " batch *positions"]
) -> Float[Tensor, ""]:
    """Return the fraction of targets whose class has the largest score; of equal scores the lower class ranks first.

    Targets of -100 do not count, of any number of positions; the mean over no targets is NaN.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    >>> accuracy(logits, torch.tensor([0, 1]))
    tensor(0.5000)
    """
    return top_k_accuracy(input, target, k=1)


def top_k_accuracy(
    input: Float[Tensor, "batch classes *positions"],
    target: Int[Tensor, " batch *positions"],
    k: Count,
    *,
    ignore_index: Integer = -100,
) -> Float[Tensor, ""]:
    """Return the fraction of targets whose class is among the `k` largest scores.

    Ties: of equal scores the lower class ranks first, so that k = 1 agrees with argmax. Targets equal to `ignore_index`
    do not count; the mean over no targets is NaN. ValueError unless 1 <= k <= classes.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    >>> top_k_accuracy(logits, torch.tensor([0, 1]), k=2)
    tensor(1.)
    """
    counted = is_counted(target, ignore_index)
    return (_in_top_k(input, torch.where(counted, target, 0), k) & counted).sum() / counted.sum()


def exact_match(
    input: Float[Tensor, "batch classes *positions"],
    target: Int[Tensor, " batch *positions"],
    *,
    ignore_index: Integer = -100,
) -> Float[Tensor, ""]:
    """Return the fraction of examples in which every target has the largest score.

    Targets equal to `ignore_index` do not count, nor does an example that has no others.

    For a causal model this is the fraction of answers that it generates without a mistake: up to its first mistake it
    reads the same tokens as here.

    >>> logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])  # batch, classes, positions
    >>> exact_match(logits, torch.tensor([[0, 1], [0, 1]]))
    tensor(0.5000)
    """
    counted = is_counted(target, ignore_index)
    right = _in_top_k(input, torch.where(counted, target, 0), 1) | ~counted
    right, counted = (part.unsqueeze(-1).flatten(1) for part in (right, counted))
    return (right.all(dim=1) & counted.any(dim=1)).sum() / counted.any(dim=1).sum()


def _in_top_k(
    input: Float[Tensor, "batch classes *positions"], target: Int[Tensor, " batch *positions"], k: int
) -> Bool[Tensor, " batch *positions"]:
    classes = input.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"top_k_accuracy: k={k} is not between 1 and {classes}, the number of classes")
    score, target = gather_classes(input, target).unsqueeze(1), target.unsqueeze(1)
    later = torch.arange(classes, device=input.device).reshape(-1, *[1] * (input.ndim - 2)) > target
    outranked = (input < score) | ((input == score) & later)
    return outranked.sum(dim=1) >= classes - k


def confusion_matrix(
    input: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"], *, ignore_index: Integer = -100
) -> Int[Tensor, "classes classes"]:
    """Count each pair of target and prediction: a row per target, a column per prediction, as scikit-learn does.

    ValueError for a NaN score, or a target that is no class.

    >>> logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0]])
    >>> confusion_matrix(logits, torch.tensor([0, 0, 1]))
    tensor([[1, 1],
            [0, 1]])
    """
    counted = is_counted(target, ignore_index)
    input, target = input[counted], target[counted]
    if input.isnan().any():
        raise ValueError("confusion_matrix: a score is NaN")
    classes = input.shape[1]
    pairs = require_indices(target, classes, "confusion_matrix: target") * classes + input.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def count_targets(target: Num[Tensor, "batch ..."], *, ignore_index: Integer = -100) -> Int[Tensor, ""]:
    """Return the number of targets that count, over which losses and accuracies are means.

    Where targets are no classes, but boxes say, every example counts.

    >>> count_targets(torch.tensor([[0, 1, 2], [-100, -100, 3]]))
    tensor(4)
    """
    if target.is_floating_point():
        return torch.tensor(len(target), device=target.device)
    return is_counted(target, ignore_index).sum()


def count_examples(target: Int[Tensor, "batch ..."], *, ignore_index: Integer = -100) -> Int[Tensor, ""]:
    """Return the number of examples with a target that counts, over which `exact_match` is a mean.

    >>> count_examples(torch.tensor([[0, 1, 2], [-100, -100, 3], [-100, -100, -100]]))
    tensor(2)
    """
    return is_counted(target, ignore_index).unsqueeze(-1).flatten(1).any(dim=1).sum()


class Metric(NamedTuple):
    """A metric with what it is a mean over: Metric(accuracy, count_targets), Metric(exact_match, count_examples)."""

    mean: Callable
    """mean(logits, targets) of a batch"""
    over: Callable
    """over(targets): how many it is the mean over"""


def add_examples(totals: Mapping[str, Any], metrics: Mapping[str, float], examples: Natural) -> dict[str, Any]:
    """Return the sums over examples after one more batch, {"examples": n, "loss": Σ loss, …}; `metrics` are its means.

    Where an example has several targets, or targets are ignored, `examples` is `count_targets(target)`.

    >>> totals = add_examples({}, {"loss": 2.0}, examples=3)
    >>> add_examples(totals, {"loss": 1.0}, examples=1)
    {'examples': 4, 'loss': 7.0}
    """
    sums = {name: totals.get(name, 0.0) + (value * examples if examples else 0.0) for name, value in metrics.items()}
    return {"examples": totals.get("examples", 0) + examples} | sums


def mean_per_example(totals: Mapping[str, Any]) -> dict[str, float]:
    """Return the means from the sums of `add_examples`; a short last batch counts for the examples that it holds.

    >>> mean_per_example({"examples": 4, "loss": 7.0})
    {'loss': 1.75}
    """
    examples = totals.get("examples", 0)
    return {name: value / examples if examples else math.nan for name, value in totals.items() if name != "examples"}
