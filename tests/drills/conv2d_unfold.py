"""conv2d_unfold with torch's unfold."""

import torch
import torch.nn.functional as F

from fn.conv import output_size, pair, resolve_padding


def conv2d_unfold(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    _, _, kh, kw = weight.shape
    (top, bottom), (left, right) = resolve_padding(padding, (kh, kw), stride, dilation)
    x = F.pad(x, (left, right, top, bottom))
    height = output_size(x.shape[2], kh, pair(stride)[0], 0, pair(dilation)[0])
    columns = F.unfold(x, (kh, kw), dilation=dilation, stride=stride)
    columns = columns.unflatten(1, (groups, -1))
    kernels = weight.flatten(1).unflatten(0, (groups, -1))
    y = torch.einsum("gok,bgkn->bgon", kernels, columns).flatten(1, 2)
    y = y.unflatten(2, (height, -1))
    return y if bias is None else y + bias[:, None, None]


def torchs(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return F.conv2d(x.contiguous(), weight.contiguous(), bias, stride, padding, dilation, groups)


WRONG = {
    "kernel axes swapped": ("weight.flatten(1).unflatten", "weight.mT.flatten(1).unflatten", "differ"),
    "height and width swapped": ("y = y.unflatten(2, (height, -1))", "y = y.unflatten(2, (-1, height))", "swapped"),
    "bias along the width": ("y + bias[:, None, None]", "y + bias", "size of tensor"),
    "stride forgotten": ("stride=stride)", "stride=1)", "unflatten"),
    "padding forgotten": ("x = F.pad(x, (left, right, top, bottom))", "", "padding=(0, 0)"),
    "groups merged": (
        "columns.unflatten(1, (groups, -1))",
        "columns.unflatten(1, (-1, groups)).transpose(1, 2)",
        "`groups`",
    ),
}
