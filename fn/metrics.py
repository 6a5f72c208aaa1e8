"""What is measured but not differentiated. Logits first, targets second.

Ties are settled as if the lower class had scored a little more, so that every metric agrees with the first maximum.
A NaN score never counts as right.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def accuracy(
    input: Float[Tensor, "batch classes *positions"], target: Int[Tensor, " batch *positions"]
) -> Float[Tensor, ""]:
    """The share of targets whose score is the largest of its classes; those of -100 do not count."""
    return top_k_accuracy(input, target, k=1)


def top_k_accuracy(
    input: Float[Tensor, "batch classes *positions"],
    target: Int[Tensor, " batch *positions"],
    k: int,
    *,
    ignore_index: int = -100,
) -> Float[Tensor, ""]:
    """The share of targets that fewer than `k` classes outrank; those equal to `ignore_index` do not count.

    ValueError unless 1 <= k <= classes.
    """
    counted = target != ignore_index
    return (_in_top_k(input, torch.where(counted, target, 0), k) & counted).sum() / counted.sum()


def exact_match(
    input: Float[Tensor, "batch classes *positions"],
    target: Int[Tensor, " batch *positions"],
    *,
    ignore_index: int = -100,
) -> Float[Tensor, ""]:
    """The share of examples of which every target has the largest score.

    Of a causal model this is the share of answers that it writes, token by token, without a mistake: as long as it has
    made none, it reads what it reads here.
    """
    counted = target != ignore_index
    right = _in_top_k(input, torch.where(counted, target, 0), 1) | ~counted
    return right.reshape(len(target), -1).all(dim=1).float().mean()


def _in_top_k(
    input: Float[Tensor, "batch classes *positions"], target: Int[Tensor, " batch *positions"], k: int
) -> Bool[Tensor, " batch *positions"]:
    classes = input.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"top_k_accuracy: k={k} is not between 1 and {classes}, the number of classes")
    target = target.unsqueeze(1)
    score = input.gather(1, target)
    later = torch.arange(classes, device=input.device).reshape(-1, *[1] * (input.ndim - 2)) > target
    outranked = (input < score) | ((input == score) & later)
    return outranked.sum(dim=1) >= classes - k


def confusion_matrix(
    input: Float[Tensor, "batch classes"], target: Int[Tensor, " batch"]
) -> Int[Tensor, "classes classes"]:
    """Counts: row = target, column = prediction, as scikit-learn has them. ValueError for a NaN score."""
    if input.isnan().any():
        raise ValueError("confusion_matrix: a score is NaN")
    classes = input.shape[1]
    pairs = target * classes + input.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def add_examples(totals: Mapping[str, Any], metrics: Mapping[str, float], examples: int) -> dict[str, Any]:
    """The sums over examples after one more batch, whose `metrics` are means: {"examples": n, "loss": Σ loss, …}"""
    sums = {name: totals.get(name, 0.0) + value * examples for name, value in metrics.items()}
    return {"examples": totals.get("examples", 0) + examples} | sums


def mean_per_example(totals: Mapping[str, Any]) -> dict[str, float]:
    """The means that the sums of `add_examples` make: a short last batch counts for what it holds."""
    return {name: value / totals["examples"] for name, value in totals.items() if name != "examples"}
