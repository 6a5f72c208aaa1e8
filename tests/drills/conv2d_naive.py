"""conv2d_naive entry by entry of the kernel, in place of position by position of the output."""

import torch
import torch.nn.functional as F

from fn.conv import pair, resolve_padding


def conv2d_naive(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    out, _, kh, kw = weight.shape
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    (top, bottom), (left, right) = resolve_padding(padding, (kh, kw), stride, dilation)
    x = F.pad(x, (left, right, top, bottom))
    x = x.unflatten(1, (groups, -1))
    kernels = weight.unflatten(0, (groups, -1))
    rows, columns = x.shape[-2] - dh * (kh - 1), x.shape[-1] - dw * (kw - 1)
    y = torch.zeros(())
    for u in range(kh):
        for v in range(kw):
            seen = x[..., dh * u : dh * u + rows : sh, dw * v : dw * v + columns : sw]
            y = y + (kernels[None, ..., u, v, None, None] * seen[:, :, None]).sum(3)
    y = y.flatten(1, 2)
    return y if bias is None else y + bias.view(1, out, 1, 1)


def torchs(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return F.conv2d(x.contiguous(), weight.contiguous(), bias, stride, padding, dilation, groups)


WRONG = {
    "by our conv2d_unfold": (
        "    out, _, kh, kw = weight.shape",
        "    from fn.conv import conv2d_unfold\n\n    return conv2d_unfold(x, weight, bias, stride, padding, dilation, groups)\n"
        "    out, _, kh, kw = weight.shape",
        "this calls `fn.conv.conv2d_unfold`",
    ),
    "kernel flipped": (
        "kernels[None, ..., u, v, None, None]",
        "kernels.flip(-1, -2)[None, ..., u, v, None, None]",
        "differ",
    ),
    "kernel axes swapped": (
        "out, _, kh, kw = weight.shape",
        "weight = weight.mT\n    out, _, kh, kw = weight.shape",
        "differ",
    ),
    "stride axes swapped": ("(sh, sw), (dh, dw)", "(sw, sh), (dh, dw)", "axis"),
    "bias forgotten": ("y if bias is None else y + bias.view(1, out, 1, 1)", "y", "the term `bias` is missing"),
    "padding on one side": ("(left, right, top, bottom)", "(left, 0, top, 0)", "axis"),
    "dilation ignored": ("(dh, dw) = pair(stride), pair(dilation)", "(dh, dw) = pair(stride), (1, 1)", "`dilation`"),
    "groups dealt in turn": (
        "x.unflatten(1, (groups, -1))",
        "x.unflatten(1, (-1, groups)).transpose(1, 2)",
        "`groups`",
    ),
}
