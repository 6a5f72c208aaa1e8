"""The kernel of attention is chosen by name

Old: with torch.backends.cuda.sdp_kernel(enable_flash=False):

New: with sdpa_kernel(SDPBackend.MATH):

Since: 2.3

Today: warns "`torch.backends.cuda.sdp_kernel()` is deprecated"

Why: Not only CUDA has kernels to choose from. torch.nn.attention holds the
choice, and since 2.5 flex_attention: any change of the scores as a
function, compiled into one kernel.

Read: torch.nn.attention.sdpa_kernel, torch.nn.attention.SDPBackend

Gone: sdp_kernel
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def given(seed: int) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    return torch.randn(3, 1, 2, 5, 4).unbind()


def old(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.backends.cuda.sdp_kernel(
        enable_flash=False, enable_mem_efficient=False
    ):
        return F.scaled_dot_product_attention(q, k, v)


def new(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v)


def wanted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ k.mT / 2).exp()
    return e / e.sum(dim=-1, keepdim=True) @ v
