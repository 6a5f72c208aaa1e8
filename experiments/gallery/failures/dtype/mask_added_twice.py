"""A mask of the lowest float, added twice, is -infinity

Expect: Masked scores get the lowest float32, -3.4e38, in two places, to be
sure. Padding stands on the left, and is left out of the loss. What does
one step of descent do?

Cause: The lowest float plus itself is -infinity. The first token of padding
has nothing else to look at: a softmax over -infinity alone is 0 / 0. The
loss does not count that row, but its gradient, 0 times NaN, is NaN.

Find: isfinite() of the scores, row by row, before the softmax; and of the
gradients, after a loss that was finite.

Fix: Add it in one place. Or keep the mask boolean as long as it is one, and
fill it in: True twice is True.

Checks: blind: a sum of two masks has the shape of one. With a boolean mask
fn.attention gives zeros to a query that sees nothing.
"""

import math

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import descend
from fn import tree
from fn.layers import linear, linear_init, softmax
from fn.losses import cross_entropy
from fn.rng import generator
from fn.tree import Params
from torch import Tensor


def sentences(seed: int) -> tuple[Tensor, Tensor]:
    """Tokens that count up, 1 to 8 and round again, and the next ones; 0
    fills up short sentences on the left"""
    first = torch.randint(8, (12, 1), generator=generator(seed))
    tokens = 1 + (first + torch.arange(7)) % 8
    short = torch.arange(7) < torch.arange(12).remainder(3).unsqueeze(1)
    tokens = tokens.masked_fill(short, 0)
    return tokens[:, :-1], tokens[:, 1:]


def bias(tokens: Tensor) -> Tensor:
    """(batch queries keys): the lowest float where a key is later than the
    query, or fills up; else 0"""
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    unseen = later | (tokens == 0).unsqueeze(1)
    return unseen * torch.finfo(torch.float32).min


def attend(x: Tensor, tokens: Tensor) -> Tensor:
    scores = x @ x.mT / 4 + bias(tokens)
    return softmax(scores + bias(tokens), dim=-1) @ x


def masked(x: Tensor, tokens: Tensor) -> Tensor:
    scores = x @ x.mT / 4
    return softmax(scores + bias(tokens), dim=-1) @ x


def start(seed: int) -> Params:
    table = torch.randn(9, 16, generator=generator(seed, 1))
    return {"table": table, "out": linear_init(generator(seed, 2), 16, 9)}


def broken(seed: int) -> Seen:
    tokens, following = sentences(seed)
    words = tokens != 0
    params, losses = descend(
        lambda p: cross_entropy(
            linear(attend(p["table"][tokens], tokens)[words], **p["out"]),
            following[words],
        ),
        start(seed),
        lr=0.5,
    )
    lost = sum(x.isnan().sum().item() for x in tree.leaves(params))
    return {"loss": losses, "parameters that are NaN": lost}


def fixed(seed: int) -> Seen:
    tokens, following = sentences(seed)
    words = tokens != 0
    params, losses = descend(
        lambda p: cross_entropy(
            linear(masked(p["table"][tokens], tokens)[words], **p["out"]),
            following[words],
        ),
        start(seed),
        lr=0.5,
    )
    lost = sum(x.isnan().sum().item() for x in tree.leaves(params))
    return {"loss": losses, "parameters that are NaN": lost}


def shows(seen: Seen) -> bool:
    """The first loss is an ordinary number. After one step parameters are
    NaN, and every loss that follows."""
    lost = seen["parameters that are NaN"] > 0
    return lost and math.isfinite(seen["loss"][0])


def solves(seen: Seen) -> bool:
    """Learn which token follows, in sentences that are filled up on the
    left: after a hundred steps the loss is below a third of its start."""
    if seen["parameters that are NaN"] != 0:
        return False
    return seen["loss"][-1] < seen["loss"][0] / 3
