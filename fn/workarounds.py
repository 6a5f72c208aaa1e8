"""Workarounds: where torch's own kernels and tensors need care, in a file apart from the lessons."""

from collections.abc import Sequence
from typing import no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor


@no_type_check  # `conv2d` has checked the shapes
def torch_conv2d(
    x: Float[Tensor, "*batch channels height width"],
    weight: Float[Tensor, "out_channels channels//{groups} kernel_height kernel_width"],
    bias: Float[Tensor, " out_channels"] | None,
    stride: tuple[int, int],
    pads: Sequence[tuple[int, int]],
    dilation: tuple[int, int],
    groups: int,
) -> Float[Tensor, "*batch out_channels out_height out_width"]:
    """Return F.conv2d for any number of batch axes; `pads` is (before, after) of each axis, as in "same".

    In channels last torch's kernel for strides writes past its memory where the window is one pixel and the channels
    are below 16, github.com/uxlfoundation/oneDNN/issues/6035: then the pixels are selected first.

    >>> x, weight = torch.ones(2, 3, 4, 8, 8), torch.ones(5, 4, 1, 1)
    >>> torch_conv2d(x, weight, None, stride=(2, 2), pads=[(0, 0), (0, 0)], dilation=(1, 1), groups=1).shape
    torch.Size([2, 3, 5, 4, 4])
    """
    if x.ndim > 4:  # torch's kernel knows one axis of the batch
        y = torch_conv2d(x.flatten(0, 1), weight, bias, stride, pads, dilation, groups)
        return y.unflatten(0, x.shape[:2])
    padding = [before for before, _ in pads] if all(a == b for a, b in pads) else "same"
    if weight.shape[2:] == (1, 1) and x.shape[-3] < 16 and stride != (1, 1) and padding == [0, 0]:
        x, stride = x[..., :: stride[0], :: stride[1]], (1, 1)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def unwrap(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*whole"]:
    """Return the tensor inside those of `grad` and `vmap`: its numbers can be looked at.

    >>> torch.vmap(lambda x: unwrap(x).sum() + 0 * x)(torch.tensor([1.0, 2.0]))  # the whole batch
    tensor([3., 3.])
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(x):  # pyright: ignore[reportAttributeAccessIssue]
        x = torch._C._functorch.get_unwrapped(x)  # pyright: ignore[reportAttributeAccessIssue]
    return x
