"""linear with einsum."""

import torch
import torch.nn.functional as F


def linear(x, weight, bias=None):
    y = torch.einsum("...i,oi->...o", x, weight)
    return y if bias is None else y + bias


def torchs(x, weight, bias=None):
    return F.linear(x, weight, bias)


WRONG = {
    "weight not transposed": ('torch.einsum("...i,oi->...o", x, weight)', "x @ weight", "mat1 and mat2 shapes"),
    "bias forgotten": ("y if bias is None else y + bias", "y", "the term `bias` is missing"),
    "bias subtracted": ("y + bias", "y - bias", "the term `bias` has the wrong sign"),
    "detached": ("y + bias", "y + bias.detach()", "no gradient reaches `bias`"),
}
