"""layer_norm with var."""

import torch
import torch.nn.functional as F


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    ends = tuple(normalized_shape)
    if any(t is not None and t.shape[-len(ends) :] != ends for t in (x, weight, bias)):
        raise ValueError("a shape that does not end in normalized_shape")
    axes = [-1 - i for i in range(len(normalized_shape))]
    mean, var = x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)
    y = (x - mean) / torch.sqrt(var + eps)
    if weight is not None:
        y = weight * y
    if bias is not None:
        y = y + bias
    return y


def torchs(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    try:
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    except RuntimeError as error:  # another shape
        raise ValueError(str(error)) from None


WRONG = {
    "unbiased variance": ("correction=0", "correction=1", "√(("),
    "eps outside the root": ("torch.sqrt(var + eps)", "(torch.sqrt(var) + eps)", "eps"),
    "over the batch": ("axes = [-1 - i for i in range(len(normalized_shape))]", "axes = [0]", "differ"),
    "over the last axis alone": ("range(len(normalized_shape))", "range(1)", "axes"),
    "bias forgotten": ("y = y + bias", "pass", "the term `bias` is missing"),
    "another shape is taken": ("if any(", "if False and any(", "refused"),
    "the mean of squares less the square of the mean": (
        "x.var(axes, correction=0, keepdim=True)",
        "(x * x).mean(axes, keepdim=True) - x.mean(axes, keepdim=True) ** 2",
        "far from zero",
    ),
    "no weight without a bias": ("if weight is not None:", "if weight is not None and bias is not None:", "`weight"),
    "not centred": ("(x - mean)", "x", "differ"),
}
