"""Losses, in the names and order of torch.nn.functional and torchvision.ops.

Each is the mean over its entries, their sum, or with "none" the entries themselves, as `reduction` says.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from fn.domains import Integer, NonNegative, Probability, ProbabilityOrOff
from fn.indices import gather_classes, is_counted
from fn.layers import log_softmax
from fn.precision import half_in_float32

Reduction = Literal["mean", "sum", "none"]


@half_in_float32("input")
def cross_entropy(
    input: Float[Tensor, "batch classes *positions"],
    target: Float[Tensor, "batch classes *positions"] | Int[Tensor, " batch *positions"],
    weight: Float[Tensor, " classes"] | None = None,
    *,
    ignore_index: Integer = -100,
    reduction: Reduction = "mean",
    label_smoothing: Probability = 0.0,
) -> Float[Tensor, "..."]:
    """Return -(1 - ε) log p[target] - ε/C Σ_c log p[c], p = softmax(input): the input is logits, not probabilities.

    A target equal to `ignore_index` counts neither in the sum nor in the mean; the mean over no targets is NaN.
    Label smoothing ε: Szegedy et al. 2016. With a `weight` w per class log p[c] counts w[c] times, and the mean divides
    by the sum of w[target]. A target may be a probability q per class instead: -Σ_c q[c] log p[c], over the examples.
    A target that is neither a class nor `ignore_index` is refused.

    >>> cross_entropy(torch.zeros(4, 10), torch.tensor([3, 1, 4, 1]))  # log 10
    tensor(2.3026)
    >>> cross_entropy(torch.zeros(4, 10), torch.tensor([3, 1, 4, -100]), reduction="none")
    tensor([2.3026, 2.3026, 2.3026, 0.0000])
    """
    log_p = log_softmax(input, dim=1)
    if weight is not None:
        weight = rearrange(weight, "classes -> classes" + " 1" * (input.ndim - 2)).expand_as(log_p)
        log_p = log_p * weight
    if target.is_floating_point():
        target = (1 - label_smoothing) * target + label_smoothing / input.shape[1]
        loss = -(target * log_p).sum(dim=1)
        return _reduce(loss, reduction, loss.numel())
    counted = is_counted(target, ignore_index)
    index = torch.where(counted, target, 0)
    loss = -gather_classes(log_p, index, "cross_entropy: target")
    if label_smoothing:  # else a class of probability 0 would give 0 · ∞
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(dim=1)
    count = counted.sum() if weight is None else torch.where(counted, gather_classes(weight, index), 0.0).sum()
    return _reduce(torch.where(counted, loss, 0.0), reduction, count)


@half_in_float32("input", "target")
def mse_loss(
    input: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], *, reduction: Reduction = "mean"
) -> Float[Tensor, "..."]:
    """Return (input - target)², averaged by default.

    The shapes must be equal: a (B, 1) beside a (B,) would broadcast to (B, B) unseen.

    >>> mse_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(2.)
    """
    return _reduce((input - target).square(), reduction, target.numel())


@half_in_float32("input", "target")
def smooth_l1_loss(
    input: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    reduction: Reduction = "mean",
    beta: NonNegative = 1.0,
) -> Float[Tensor, "..."]:
    """Return d²/2β where d = |input - target| is below β, else d - β/2. Girshick 2015.

    It is quadratic near 0, and its slope is bounded: outliers do not dominate the gradient.

    >>> smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.zeros(2), reduction="none")
    tensor([0.1250, 2.5000])
    """
    difference = (input - target).abs()
    near = 0.5 * difference.square() / beta if beta else difference
    return _reduce(torch.where(difference < beta, near, difference - 0.5 * beta), reduction, target.numel())


def _cross_entropies(
    input: Float[Tensor, "*shape"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return (-log p, -log(1 - p)), p = sigmoid(input), for any size of the logits"""
    zero = torch.zeros_like(input)
    return torch.logaddexp(zero, -input), torch.logaddexp(zero, input)


@half_in_float32("inputs", "targets")
def sigmoid_focal_loss(
    inputs: Float[Tensor, "*shape"],
    targets: Float[Tensor, "*shape"],
    alpha: ProbabilityOrOff = 0.25,
    gamma: NonNegative = 2.0,
    reduction: Reduction = "none",
) -> Float[Tensor, "..."]:
    """Return the focal loss α_t (1 - p_t)^γ · (-log p_t), p = sigmoid(inputs). Lin et al. 2017, as in torchvision.ops.

    p_t and α_t are p and α for a target of 1, and 1 - p and 1 - α for a target of 0. The factor (1 - p_t)^γ gives
    easy examples little weight, so that many of them do not outweigh the few hard ones. An α of -1 turns α_t off.

    >>> sigmoid_focal_loss(torch.tensor([-1.0, 0.0, 1.0]), torch.ones(3))
    tensor([0.1755, 0.0433, 0.0057])
    """
    p = torch.sigmoid(inputs)
    if_one, if_zero = _cross_entropies(inputs)
    loss = targets * if_one + (1 - targets) * if_zero
    loss = loss * (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return _reduce(loss, reduction, targets.numel())


@half_in_float32("inputs", "targets")
def penalty_reduced_focal_loss(
    inputs: Float[Tensor, "*shape"],
    targets: Float[Tensor, "*shape"],
    alpha: NonNegative = 2.0,
    beta: NonNegative = 4.0,
    reduction: Reduction = "none",
) -> Float[Tensor, "..."]:
    """Return -(1 - p)^α log p where the target is 1, -(1 - target)^β p^α log(1 - p) elsewhere, p = sigmoid(inputs).

    CenterNet's focal loss on heat maps: (1 - target)^β lowers the penalty near a centre. Law and Deng 2018, equation 1;
    they divide the sum by the number of centres.

    >>> penalty_reduced_focal_loss(torch.zeros(3), torch.tensor([1.0, 0.5, 0.0]))
    tensor([0.1733, 0.0108, 0.1733])
    """
    p = torch.sigmoid(inputs)
    if_one, if_zero = _cross_entropies(inputs)
    away = (1 - targets) ** beta * p**alpha * if_zero
    return _reduce(torch.where(targets == 1, (1 - p) ** alpha * if_one, away), reduction, targets.numel())


def _reduce(
    loss: Float[Tensor, "*shape"], reduction: Reduction, count: int | Int[Tensor, ""] | Float[Tensor, ""]
) -> Float[Tensor, "..."]:
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.sum() / count
