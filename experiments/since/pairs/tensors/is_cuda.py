"""Code that asks for CUDA does not run on any other accelerator

Old: if x.is_cuda: mask = mask.cuda()

New: torch.ones(n, n, device=x.device)

Since: 0.4

Today: raises RuntimeError "device"

Why: A tensor made inside goes where its input is, be that cuda, mps, xpu
or meta, the device without numbers that stands in for them here. To
choose one at the start, 2.6 has torch.accelerator.current_accelerator().

Read: torch.device, torch.accelerator.current_accelerator

Gone: .cuda(  is_cuda
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor]:
    return (torch.ones(4 + seed % 5, 4 + seed % 5, device="meta"),)


def old(scores: Tensor) -> Tensor:
    mask = torch.ones(scores.shape).tril()
    if scores.is_cuda:
        mask = mask.cuda()
    return scores * mask


def new(scores: Tensor) -> Tensor:
    mask = torch.ones(scores.shape, device=scores.device).tril()
    return scores * mask


def wanted(scores: Tensor) -> Tensor:
    return torch.empty_like(scores)
