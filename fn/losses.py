"""Losses, in the names and order of torch.nn.functional."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fn.layers import log_softmax

Reduction = Literal["mean", "sum", "none"]


def cross_entropy(
    input: Float[Tensor, "batch classes *positions"],
    target: Int[Tensor, " batch *positions"],
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Float[Tensor, "..."]:
    """-(1 - ε) log p[target] - ε/C Σ_c log p[c], p = softmax(input): logits in, not probabilities.

    A target equal to `ignore_index` counts neither in the sum nor in the mean; the mean over no targets is NaN.
    Label smoothing ε: Szegedy et al. 2016.
    """
    log_p = log_softmax(input, dim=1)
    counted = target != ignore_index
    index = torch.where(counted, target, 0).unsqueeze(1)
    loss = -log_p.gather(1, index).squeeze(1)
    if label_smoothing:  # else a class of probability 0 would give 0 · ∞
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(dim=1)
    return _reduce(torch.where(counted, loss, 0.0), reduction, counted.sum())


def mse_loss(
    input: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """(input - target)². The shapes must be equal: a (B, 1) beside a (B,) would broadcast to (B, B) unseen."""
    return _reduce((input - target).square(), reduction, target.numel())


def _reduce(loss: Float[Tensor, "*shape"], reduction: Reduction, count: int | Int[Tensor, ""]) -> Float[Tensor, "..."]:
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.sum() / count
