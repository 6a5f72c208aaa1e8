"""The scheduler steps after the optimizer

Old: scheduler.step(); optimizer.step()

New: optimizer.step(); scheduler.step()

Since: 1.1

Today: warns "Detected call of `lr_scheduler.step()` before"

Why: Before 1.1 the first call set the first rate. Now the scheduler sets
it when it is made, and each call moves on: called first, it skips the
first rate of the schedule.

Read: torch.optim.lr_scheduler.LRScheduler

Gone: nothing
"""

import torch
from torch import Tensor
from torch.optim.lr_scheduler import StepLR


def given(seed: int) -> tuple[Tensor]:
    return (torch.full((1,), 10.0 + seed % 5, requires_grad=True),)


def old(x: Tensor) -> Tensor:
    optimizer = torch.optim.SGD([x], lr=1.0)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.1)
    for _ in range(3):
        scheduler.step()
        optimizer.zero_grad()
        x.sum().backward()
        optimizer.step()
    return x.detach()


def new(x: Tensor) -> Tensor:
    optimizer = torch.optim.SGD([x], lr=1.0)
    scheduler = StepLR(optimizer, step_size=1, gamma=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        x.sum().backward()
        optimizer.step()
        scheduler.step()
    return x.detach()


def wanted(x: Tensor) -> Tensor:
    """Steps of 1, 0.1 and 0.01 along a gradient of 1"""
    return x.detach() - 1.11
