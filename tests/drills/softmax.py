"""softmax through a logarithm."""

import torch
import torch.nn.functional as F


def softmax(x, dim, *, dtype=None):
    x = x.to(dtype=dtype)
    top = x.max(dim, keepdim=True).values.detach()
    e = torch.exp(x - top)
    return e * e.sum(dim, keepdim=True).reciprocal()


def torchs(x, dim, *, dtype=None):
    return F.softmax(x, dim, dtype=dtype)


WRONG = {
    "by our log_softmax": (
        "    top =",
        "    from fn.layers import log_softmax\n\n    return log_softmax(x, dim).exp()\n    top =",
        "this calls `fn.layers.log_softmax`",
    ),
    "over the wrong axis": ("e.sum(dim, keepdim=True)", "e.sum(0, keepdim=True)", "axis"),
    "not shifted": ("x - top", "x", "NaN"),
    "in the dtype of x": ("    x = x.to(dtype=dtype)\n", "", "dtype"),
    "not normalised": ("e * e.sum(dim, keepdim=True).reciprocal()", "e", "sums to one"),
    "shifted by the mean": ("x.max(dim, keepdim=True).values.detach()", "x.mean(dim, keepdim=True)", "NaN"),
}
