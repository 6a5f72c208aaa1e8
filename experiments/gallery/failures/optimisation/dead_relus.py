"""Steps too large close ReLUs; a layer all closed stays so

Expect: Three steps at a rate of 5, by a bug in the schedule, then a
hundred at 0.3, which is right. Does the loss recover?

Cause: The steps threw weights and biases so far off that no input opens
most units; more close soon after, even at 0.3. The slope of ReLU
below 0 is 0, so nothing moves a closed unit's weights. In a deeper layer
it may reopen while layers before it move; once a layer is closed
altogether, no gradient passes, and it stays closed.

Find: The share of units that are 0 for every example of a batch, layer by
layer.

Fix: No step too large: clip the gradient's norm, warm up. Leaky ReLU and
GELU have a slope below 0.

Checks: blind: zeros have the right shape.

Akin: no_warmup, rate_too_high
"""

from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import (
    descend,
    digits,
    mlp,
    perceptron,
)
from fn.layers import flatten, linear, relu
from fn.losses import cross_entropy
from fn.tree import Params


def zeros(p: Params) -> str:
    """Of each layer's units, how many are 0 for every input"""
    h, shares = flatten(digits()[0].images), []
    for layer in ("fc1", "fc2", "fc3"):
        h = relu(linear(h, **p[layer]))
        shares.append((h == 0).all(dim=0).float().mean().item())
    return ", ".join(f"{share:.0%}" for share in shares)


def broken(seed: int) -> Seen:
    x, y = digits()[0]
    start = perceptron(seed, 32, 32, 32)
    p, first = descend(
        lambda p: cross_entropy(mlp(p, x), y), start, lr=5, steps=3
    )
    q, rest = descend(lambda p: cross_entropy(mlp(p, x), y), p, lr=0.3)
    return {
        "loss": first + rest,
        "units always 0, after step 3": zeros(p),
        "units always 0, at the end": zeros(q),
    }


def fixed(seed: int) -> Seen:
    x, y = digits()[0]
    start = perceptron(seed, 32, 32, 32)
    p, first = descend(
        lambda p: cross_entropy(mlp(p, x), y), start, lr=0.3, steps=3
    )
    q, rest = descend(lambda p: cross_entropy(mlp(p, x), y), p, lr=0.3)
    return {
        "loss": first + rest,
        "units always 0, after step 3": zeros(p),
        "units always 0, at the end": zeros(q),
    }


def shows(seen: Seen) -> bool:
    """A few bad steps at the start, then a rate that is right: the loss
    comes down to about log 10 = 2.3, as by guessing, and no further."""
    shut = seen["units always 0, at the end"].endswith("100%")
    return shut and seen["loss"][-1] > 2.2


def solves(seen: Seen) -> bool:
    """Train three hidden layers on digits, from the first step on: the loss
    ends below 1."""
    return seen["loss"][-1] < 1
