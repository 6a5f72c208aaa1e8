"""Measures of attention in Lab 3: where the heads look, and whether the model sees the future."""

from collections.abc import Callable

import torch
from torch import Tensor


def mirrored_share(weights: Tensor, digits: int) -> float:
    """Return the share of the answer's queries that look most at the mirrored digit, of the best head.

    `weights` are (layers, batch, heads, queries, keys). Digit j of a reversed answer is written at query `digits` + j,
    and is digit `digits` - 1 - j of the question.
    """
    looked_at = weights[..., digits:, :].argmax(dim=-1)
    wanted = torch.arange(digits - 1, -1, -1, device=weights.device)
    return float((looked_at == wanted).float().mean(dim=(1, 3)).max())


@torch.no_grad()
def causal_leaks(read: Callable[[Tensor], Tensor], inputs: Tensor, classes: int) -> int:
    """Count the positions whose past logits change when all tokens from there on do; 0 of a causal model."""
    before, leaks = read(inputs), 0
    for t in range(1, inputs.shape[1]):
        other_future = torch.cat([inputs[:, :t], (inputs[:, t:] + 1) % classes], dim=1)
        leaks += not torch.equal(before[..., :t], read(other_future)[..., :t])
    return leaks
