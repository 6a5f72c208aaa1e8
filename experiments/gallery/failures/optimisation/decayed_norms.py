"""Weight decay pulls a norm's gains from 1 towards 0

Expect: AdamW decays all parameters alike, here with λ = 1, a hundred times
its default, to show in 100 steps what takes thousands. What becomes of
the gains of a layer norm?

Cause: Decay takes ηλθ off every parameter in every step. For a matrix
that is a bias towards small weights; for a gain or bias, which are few
and set the scale, it only works against what was just normalised.

Find: Print the mean of each norm's weight during training, and compare
the loss with that of two groups.

Fix: No decay for norms and biases: two groups of parameters, split by
name (tree.split), the decay of one being 0.

Checks: blind: a decay is a number, and is the same for all shapes.
"""

from functools import partial
from itertools import pairwise

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import digits, mlp, perceptron
from fn import tree
from fn.layers import flatten, layer_norm, layer_norm_init
from fn.losses import cross_entropy
from fn.optim import adam_init, adamw_update
from fn.tree import Params
from torch.func import grad_and_value

update = partial(adamw_update, lr=0.01)
UNDECAYED = ("norm", "mlp.fc1.bias", "mlp.fc2.bias")


def start(seed: int) -> Params:
    return {"norm": layer_norm_init([64]), "mlp": perceptron(seed)}


def loss(params: Params) -> torch.Tensor:
    x, y = flatten(digits()[0].images), digits()[0].labels
    x = layer_norm(x, [64], **params["norm"])
    return cross_entropy(mlp(params["mlp"], x), y)


def broken(seed: int) -> Seen:
    params, gains = start(seed), []
    state = adam_init(params)
    for _ in range(100):
        grads, _ = grad_and_value(loss)(params)
        params, state = update(params, grads, state, weight_decay=1)
        gains.append(params["norm"]["weight"].mean().item())
    matrix = params["mlp"]["fc1"]["weight"]
    return {
        "mean gain": gains,
        "mean size, fc1": matrix.abs().mean().item(),
        "loss": loss(params).item(),
    }


def fixed(seed: int) -> Seen:
    params, gains = start(seed), []
    kept, rest = (adam_init(p) for p in tree.split(params, UNDECAYED))
    for _ in range(100):
        grads, _ = grad_and_value(loss)(params)
        (p, q), (g, h) = (tree.split(t, UNDECAYED) for t in (params, grads))
        p, kept = update(p, g, kept, weight_decay=0)
        q, rest = update(q, h, rest, weight_decay=1)
        params = tree.merge(p, q)
        gains.append(params["norm"]["weight"].mean().item())
    matrix = params["mlp"]["fc1"]["weight"]
    return {
        "mean gain": gains,
        "mean size, fc1": matrix.abs().mean().item(),
        "loss": loss(params).item(),
    }


def shows(seen: Seen) -> bool:
    """A layer norm's gains start at 1, their mean shrinks in every single
    step, and the loss ends higher than it need."""
    gains = seen["mean gain"]
    shrinks = gains[-1] < 0.8 and all(b < a for a, b in pairwise(gains))
    return shrinks and seen["loss"] > 0.04


def solves(seen: Seen) -> bool:
    """Train with AdamW and a decay of 1, under which fc1 stays small, and
    end with a loss below 0.04."""
    return seen["loss"] < 0.04 and seen["mean size, fc1"] < 0.15
