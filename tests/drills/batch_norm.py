"""batch_norm with the channels moved to the end."""

import torch
import torch.nn.functional as F


def batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    moved = x.movedim(1, -1)
    mean, var = running_mean, running_var
    state = {"running_mean": running_mean, "running_var": running_var}
    rows = moved.flatten(0, -2)
    if training:
        if len(rows) < 2:
            raise ValueError("batch_norm: training needs more than one value per channel")
        mean, var = rows.mean(0), rows.var(0, correction=0)
        state = {
            "running_mean": (1 - momentum) * running_mean + momentum * mean.detach(),
            "running_var": (1 - momentum) * running_var + momentum * rows.detach().var(0, correction=1),
        }
    y = (moved - mean) / torch.sqrt(var + eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.movedim(-1, 1), state


def torchs(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    mean, var = running_mean.clone(), running_var.clone()
    weight = None if weight is None else weight.contiguous()
    y = F.batch_norm(x, mean, var, weight, bias, training, momentum, eps or 1e-300)
    return y, {"running_mean": mean, "running_var": var}


WRONG = {
    "trains on one value per channel": ("if len(rows) < 2:", "if len(rows) < 1:", "refused"),
    "biased running variance": ("rows.detach().var(0, correction=1)", "var.detach()", "result[1].running_var"),
    "unbiased in the normalisation": ("rows.var(0, correction=0)", "rows.var(0, correction=1)", "result[0]"),
    "momentum the wrong way round": (
        "(1 - momentum) * running_mean + momentum * mean.detach()",
        "momentum * running_mean + (1 - momentum) * mean.detach()",
        "result[1].running_mean",
    ),
    "statistics of the batch in evaluation": (
        "y = (moved - mean)",
        "mean, var = rows.mean(0), rows.var(0, correction=0)\n    y = (moved - mean)",
        "result[0]",
    ),
    "running statistics in training": (
        "mean, var = rows.mean(0), rows.var(0, correction=0)",
        "pass",
        "comes back as it was",
    ),
    "the mean of squares less the square of the mean": (
        "rows.mean(0), rows.var(0, correction=0)",
        "rows.mean(0), (rows * rows).mean(0) - rows.mean(0) ** 2",
        "far from zero",
    ),
    "no weight without a bias": ("if weight is not None:", "if weight is not None and bias is not None:", "`weight"),
    "statistics keep their graph": ("momentum * mean.detach()", "momentum * mean", "detach it"),
    "over the batch alone": (
        "rows.mean(0), rows.var",
        "moved[:, :1].flatten(0, -2).mean(0) if moved.ndim > 2 else rows.mean(0), rows.var",
        "has more than two axes",
    ),
}
