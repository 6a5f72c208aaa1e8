"""cross_entropy with a one-hot product in place of a gather."""

import torch
import torch.nn.functional as F


def cross_entropy(input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    classes = input.shape[1]
    top = input.detach().amax(1, keepdim=True)
    log_p = input - top - torch.log(torch.exp(input - top).sum(1, keepdim=True))
    counted = target != ignore_index
    wanted = F.one_hot(torch.where(counted, target, 0), classes).movedim(-1, 1).bool()
    loss = -torch.where(wanted, log_p, 0.0).sum(1)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing / classes * log_p.sum(1)
    loss = loss.masked_fill(~counted, 0.0)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / counted.sum()


def torchs(input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return F.cross_entropy(
        input, target, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


WRONG = {
    "mean over the ignored too": ("loss.sum() / counted.sum()", "loss.mean()", 'with `reduction="mean"`'),
    "classes in the last axis": (
        "torch.exp(input - top).sum(1, keepdim=True)",
        "torch.exp(input - top).sum(-1, keepdim=True)",
        "wrong",
    ),
    "sign": ("loss = -torch.where", "loss = torch.where", "sign"),
    "smoothing not shared out": (
        "label_smoothing / classes * log_p.sum(1)",
        "label_smoothing * log_p.sum(1)",
        "`label_smoothing`",
    ),
    "ignored targets count": ("loss = loss.masked_fill(~counted, 0.0)", "", "wrong"),
    "probabilities for logits": (
        "classes = input.shape[1]",
        "classes = input.shape[1]\n    input = input.exp() / input.exp().sum(1, keepdim=True)",
        "wrong",
    ),
}
