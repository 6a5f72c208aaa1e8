"""A change through .data is hidden from the backward pass

Expect: Sigmoids are cut off at 0.8 through .data. Is the slope that
autograd gives the slope that one measures?

Cause: .data is the same memory without its history: neither the cut nor
that the memory has changed is recorded. Where the cut holds, the slope is
0; autograd has that of a sigmoid, computed from the cut value as if it
were the sigmoid's own.

Find: Compare with (f(x + ε) - f(x - ε)) / 2ε in float64, or
torch.autograd.gradcheck. And search for .data: it has no use any more.

Fix: h = h.clamp(…), a new tensor. detach() where history is to end,
no_grad() where none is to begin; both notice a change in place, and raise.

Checks: blind: a wrong gradient has the shape of the right one.
"""

import torch
from experiments.gallery.failures import Seen
from fn.rng import generator
from torch import Tensor


def gate(x: Tensor) -> Tensor:
    h = torch.sigmoid(x)
    h.data.clamp_(max=0.8)
    return h


def clamped(x: Tensor) -> Tensor:
    return torch.sigmoid(x).clamp(max=0.8)


def broken(seed: int) -> Seen:
    x = 3 * torch.randn(64, generator=generator(seed)).double()
    x.requires_grad_()
    [slopes] = torch.autograd.grad(gate(x).sum(), x)
    with torch.no_grad():
        greatest = gate(x).max()
        measured = (gate(x + 1e-6) - gate(x - 1e-6)) / 2e-6
    return {
        "greatest": greatest.item(),
        "slopes, autograd": slopes.sum().item(),
        "slopes, measured": measured.sum().item(),
    }


def fixed(seed: int) -> Seen:
    x = 3 * torch.randn(64, generator=generator(seed)).double()
    x.requires_grad_()
    [slopes] = torch.autograd.grad(clamped(x).sum(), x)
    with torch.no_grad():
        greatest = clamped(x).max()
        measured = (clamped(x + 1e-6) - clamped(x - 1e-6)) / 2e-6
    return {
        "greatest": greatest.item(),
        "slopes, autograd": slopes.sum().item(),
        "slopes, measured": measured.sum().item(),
    }


def shows(seen: Seen) -> bool:
    """No error, and values that are right; but the slopes of autograd are
    not those that one measures with a small step to either side."""
    return abs(seen["slopes, autograd"] - seen["slopes, measured"]) > 0.5


def solves(seen: Seen) -> bool:
    """Compute sigmoids that are cut off at 0.8; autograd gives their slopes
    as they are measured."""
    if abs(seen["greatest"] - 0.8) > 1e-9:
        return False
    return abs(seen["slopes, autograd"] - seen["slopes, measured"]) < 1e-3
