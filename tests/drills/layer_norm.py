"""layer_norm with var."""

import torch
import torch.nn.functional as F


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    axes = [-1 - i for i in range(len(normalized_shape))]
    mean, var = x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True)
    y = (x - mean) / torch.sqrt(var + eps)
    if weight is not None:
        y = weight * y
    if bias is not None:
        y = y + bias
    return y


def torchs(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    return F.layer_norm(x, normalized_shape, weight, bias, eps)


WRONG = {
    "unbiased variance": ("correction=0", "correction=1", "√(("),
    "eps outside the root": ("torch.sqrt(var + eps)", "(torch.sqrt(var) + eps)", "eps"),
    "over the batch": ("axes = [-1 - i for i in range(len(normalized_shape))]", "axes = [0]", "differ"),
    "over the last axis alone": ("range(len(normalized_shape))", "range(1)", "axes"),
    "bias forgotten": ("y = y + bias", "pass", "the term `bias` is missing"),
    "not centred": ("(x - mean)", "x", "differ"),
}
