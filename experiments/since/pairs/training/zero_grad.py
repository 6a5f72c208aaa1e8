"""zero_grad drops the gradients, it no longer fills them with zeros

Old: p.grad.data.zero_()

New: optimizer.zero_grad()

Since: 2.0

Today: is wrong, silently: a head that no loss has used moves all the same

Why: A gradient of zeros is a gradient: weight decay and momentum go on to
move that parameter. None says that there is none, is skipped, and
takes no memory between steps.

Read: torch.optim.Optimizer.zero_grad

Gone: .grad.data  zero_()  set_to_none=False
"""

import torch
from torch import Tensor


def given(seed: int) -> tuple[Tensor, Tensor]:
    used = torch.full((2,), 1.0 + seed % 5, requires_grad=True)
    return used, torch.full((2,), 1.0 + seed % 5, requires_grad=True)


def old(used: Tensor, head: Tensor) -> Tensor:
    parameters = [used, head]
    optimizer = torch.optim.SGD(parameters, lr=0.1, weight_decay=0.5)
    (used + head).sum().backward()
    for p in parameters:
        p.grad.data.zero_()
    used.sum().backward()  # a batch of another task, without the head
    optimizer.step()
    return head.detach()


def new(used: Tensor, head: Tensor) -> Tensor:
    parameters = [used, head]
    optimizer = torch.optim.SGD(parameters, lr=0.1, weight_decay=0.5)
    (used + head).sum().backward()
    optimizer.zero_grad()
    used.sum().backward()  # a batch of another task, without the head
    optimizer.step()
    return head.detach()


def wanted(used: Tensor, head: Tensor) -> Tensor:
    return head.detach().clone()
