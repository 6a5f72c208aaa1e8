"""A step too large closed every ReLU for good

Expect: Three steps at a rate of 5, by a bug in the schedule, then a
hundred at 0.3, which is right. Does the loss recover?

Cause: The steps threw weights and biases so far off that no input opens a
unit. The slope of ReLU below 0 is 0, so nothing ever moves a closed unit
back.

Find: The share of units that are 0 for every example of a batch.

Fix: No step too large: clip the gradient's norm, warm up. Leaky ReLU and
GELU have a slope below 0.

Checks: blind: zeros have the right shape.
"""

from experiments.failures import Seen
from experiments.failures.toys import descend, digits, mlp, perceptron
from fn.layers import flatten, linear, relu
from fn.losses import cross_entropy


def broken(seed: int) -> Seen:
    x, y = digits()[0]
    p, first = descend(
        lambda p: cross_entropy(mlp(p, x), y),
        perceptron(seed, 32, 32, 32),
        lr=5,
        steps=3,
    )
    p, rest = descend(lambda p: cross_entropy(mlp(p, x), y), p, lr=0.3)
    h = flatten(x)
    for layer in ("fc1", "fc2", "fc3"):
        h = relu(linear(h, **p[layer]))
    dead = (h == 0).all(dim=0).float().mean().item()
    return {"loss": first + rest, "closed for every input": dead}


def fixed(seed: int) -> Seen:
    x, y = digits()[0]
    p, first = descend(
        lambda p: cross_entropy(mlp(p, x), y),
        perceptron(seed, 32, 32, 32),
        lr=0.3,
        steps=3,
    )
    p, rest = descend(lambda p: cross_entropy(mlp(p, x), y), p, lr=0.3)
    h = flatten(x)
    for layer in ("fc1", "fc2", "fc3"):
        h = relu(linear(h, **p[layer]))
    dead = (h == 0).all(dim=0).float().mean().item()
    return {"loss": first + rest, "closed for every input": dead}


def shows(seen: Seen) -> bool:
    """A few bad steps at the start, then a rate that is right: the loss
    comes down to about log 10 = 2.3, as by guessing, and no further."""
    return seen["closed for every input"] > 0.9 and seen["loss"][-1] > 2.2
