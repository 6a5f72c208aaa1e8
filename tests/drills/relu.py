"""relu as a product with a mask."""

import torch
import torch.nn.functional as F


def relu(x):
    return x.masked_fill(x <= 0, 0.0)


def torchs(x):
    return F.relu(x)


WRONG = {
    "slope one half at 0": ("x.masked_fill(x <= 0, 0.0)", "torch.maximum(x, torch.zeros_like(x))", "gradient"),
    "leaky": ("x.masked_fill(x <= 0, 0.0)", "torch.where(x <= 0, 0.01 * x, x)", "just where `x` is negative"),
    "absolute value": ("x.masked_fill(x <= 0, 0.0)", "x.abs()", "just where `x` is negative"),
    "in place": ("x.masked_fill(x <= 0, 0.0)", "x.clamp_(min=0)", "in-place"),
    "NaN becomes 0": ("x.masked_fill(x <= 0, 0.0)", "torch.where(x > 0, x, 0.0)", "a number where NaN is expected"),
}
