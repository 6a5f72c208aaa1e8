"""max_pool2d over the views of Tensor.unfold."""

import math

import torch.nn.functional as F

from fn.conv import pair, pool_padding


def max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    stride = kernel_size if stride is None else stride
    (top, bottom), (left, right) = pool_padding(x.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    x = F.pad(x, (left, right, top, bottom), value=-math.inf)
    (kh, kw), (sh, sw), (dh, dw) = pair(kernel_size), pair(stride), pair(dilation)
    windows = x.unfold(2, dh * (kh - 1) + 1, sh).unfold(3, dw * (kw - 1) + 1, sw)
    return windows[..., ::dh, ::dw].flatten(-2).max(-1).values


def torchs(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)


WRONG = {
    "padded with zeros": ("value=-math.inf", "value=0.0", "wrong at one index"),
    "a stride of 1": ("kernel_size if stride is None", "1 if stride is None", "without `stride`"),
    "the mean": (".max(-1).values", ".mean(-1)", "wrong"),
    "kernel axes swapped": ("(kh, kw), (sh, sw)", "(kw, kh), (sh, sw)", "size"),
    "ties share the gradient": (".max(-1).values", ".amax(-1)", "gradient of `x`"),
    "dilation ignored": ("pair(stride), pair(dilation)", "pair(stride), (1, 1)", "`dilation`"),
}
