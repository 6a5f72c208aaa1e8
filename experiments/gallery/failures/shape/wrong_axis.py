"""Attention wants the sequence first, and gets the batch

Expect: Two sentences go through attention together. One is replaced. How
much does what comes out for the other change?

Cause: nn.MultiheadAttention, nn.Transformer and nn.LSTM want (seq, batch,
d_model) unless told batch_first=True. Given the batch first, they take it
for the sequence: the examples attend to each other, or an LSTM reads on
from one to the next.

Find: Change one example of a batch: only its own output may change. Or
give each axis a size of its own, and count what comes back.

Fix: nn.MultiheadAttention(…, batch_first=True).

Checks: blind: both orders are "*batch queries d_model", as an axis has no
name that the tensor carries.
"""

import torch
from experiments.gallery.failures import Seen
from fn.attention import multi_head_attention, multi_head_attention_init
from fn.rng import generator
from torch import nn


def broken(seed: int) -> Seen:
    torch.manual_seed(seed)
    attention = nn.MultiheadAttention(16, num_heads=2)
    sentences = torch.randn(2, 5, 16)  # batch seq d_model
    others = torch.stack([sentences[0], torch.randn(5, 16)])
    before, after = (attention(x, x, x)[0] for x in (sentences, others))
    first, second = (after - before).abs().amax(dim=(1, 2))
    return {
        "change of the first": first.item(),
        "change of the second": second.item(),
    }


def fixed(seed: int) -> Seen:
    torch.manual_seed(seed)
    attention = nn.MultiheadAttention(16, num_heads=2, batch_first=True)
    sentences = torch.randn(2, 5, 16)  # batch seq d_model
    others = torch.stack([sentences[0], torch.randn(5, 16)])
    before, after = (attention(x, x, x)[0] for x in (sentences, others))
    first, second = (after - before).abs().amax(dim=(1, 2))
    return {
        "change of the first": first.item(),
        "change of the second": second.item(),
    }


def shows(seen: Seen) -> bool:
    """Two sentences go through attention together. When the second is
    replaced, what comes out for the first changes."""
    return seen["change of the first"] > 1e-3


def solves(seen: Seen) -> bool:
    """Let the words of a sentence look at each other, in two sentences at
    once. If the second is replaced, its own output changes, no other."""
    return seen["change of the first"] < 1e-6 < seen["change of the second"]


def checked(seed: int) -> None:
    x = torch.randn(2, 5, 16).transpose(0, 1)
    params = multi_head_attention_init(generator(seed), 16)
    multi_head_attention(x, x, x, heads=2, **params)
