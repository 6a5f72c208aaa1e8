"""top_k_accuracy with a stable sort."""

import torch


def top_k_accuracy(input, target, k, *, ignore_index=-100):
    if not 1 <= k <= input.shape[1]:
        raise ValueError(f"top_k_accuracy: k={k} is not between 1 and {input.shape[1]}")
    counted = target != ignore_index
    best = input.sort(dim=1, descending=True, stable=True).indices[:, :k]
    found = (best == target.unsqueeze(1)).any(dim=1)
    return (found & counted).sum() / counted.sum()


WRONG = {
    "the kth alone": ("[:, :k]", "[:, k - 1 : k]", "wrong in"),
    "one too many": ("[:, :k]", "[:, : k + 1]", "differ"),
    "the ignored divide too": ("/ counted.sum()", "/ counted.numel()", "a number where NaN"),
    "of equal scores the higher class": (
        "input.sort(dim=1, descending=True, stable=True).indices[:, :k]",
        "input.sort(dim=1, stable=True).indices.flip(1)[:, :k]",
        "wrong in",
    ),
    "any k": ("if not 1 <= k <= input.shape[1]:", "if False:", "refused"),
    "a sum": ("/ counted.sum()", "", "dtype"),
    "the least": ("descending=True, ", "", "differ"),
}
