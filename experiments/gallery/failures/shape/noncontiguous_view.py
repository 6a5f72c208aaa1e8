"""A transposed tensor is not contiguous: view cannot cut it

Expect: Attention ends with (batch, heads, seq, d_head), and the heads of a
token are to stand side by side. Does transpose, then view, do it?

Cause: transpose moves no number, it only walks the memory in another order.
view moves none either, and joins two axes only if they lie one after the
other in memory; seq and heads no longer do.

Find: print(x.is_contiguous(), x.shape, x.stride()) before the line.

Fix: reshape, which copies where it must; or say it: rearrange(x, "b h s d
-> b s (h d)"). Leaving out the transpose also stops the error, and mixes
the tokens up.

Checks: blind: an annotation tells shape and dtype, never the strides. The
error is torch's own.
"""

import torch
from einops import rearrange
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import message
from fn.rng import generator
from torch import Tensor


def merge(heads: Tensor) -> Tensor:
    """(batch heads seq d_head) to (batch seq d_model)"""
    return heads.transpose(1, 2).view(2, 5, 32)


def merge_by_name(heads: Tensor) -> Tensor:
    """(batch heads seq d_head) to (batch seq d_model)"""
    return rearrange(heads, "b h s d -> b s (h d)")


def broken(seed: int) -> Seen:
    heads, merged = torch.randn(2, 4, 5, 8, generator=generator(seed)), []
    error = message(lambda: merged.append(merge(heads)))
    wanted = torch.cat(heads.unbind(dim=1), dim=-1)
    right = [(x == wanted).all(dim=-1).sum().item() for x in merged]
    return {"error": error, "tokens that are right, of 10": sum(right)}


def fixed(seed: int) -> Seen:
    heads, merged = torch.randn(2, 4, 5, 8, generator=generator(seed)), []
    error = message(lambda: merged.append(merge_by_name(heads)))
    wanted = torch.cat(heads.unbind(dim=1), dim=-1)
    right = [(x == wanted).all(dim=-1).sum().item() for x in merged]
    return {"error": error, "tokens that are right, of 10": sum(right)}


def shows(seen: Seen) -> bool:
    """The sizes fit, 4 heads of 8 are 32, and yet an error says that size
    and stride do not."""
    return "RuntimeError" in seen["error"] and "stride" in seen["error"]


def solves(seen: Seen) -> bool:
    """Join the four heads of each token side by side, for 2 sentences of
    5 tokens."""
    return seen["tokens that are right, of 10"] == 10
