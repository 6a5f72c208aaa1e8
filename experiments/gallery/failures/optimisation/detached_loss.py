"""A detach on the way cuts the loss off its parameters

Expect: The features are detached "to save memory". Which layers learn?

Cause: detach, .item() and torch.no_grad end the graph; so does
torch.tensor(h), with a warning. What lies before has no gradient: with
backward it stays None, with torch.func.grad it is 0. As long as something
still learns, nobody complains: backward raises only if all is cut off.

Find: tree.map(norm, grads) after the first step: exact zeros.

Fix: Detach what is logged, never what is differentiated.

Checks: blind: a detached tensor has the same shape and values.
"""

from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import descend, digits, perceptron
from fn.layers import flatten, linear, relu
from fn.losses import cross_entropy


def broken(seed: int) -> Seen:
    x, y = flatten(digits()[0].images), digits()[0].labels
    start = perceptron(seed)
    params, losses = descend(
        lambda p: cross_entropy(
            linear(relu(linear(x, **p["fc1"])).detach(), **p["fc2"]), y
        ),
        start,
        lr=0.1,
    )
    moves = {k: params[k]["weight"] - start[k]["weight"] for k in params}
    return {"loss": losses} | {k: m.norm().item() for k, m in moves.items()}


def fixed(seed: int) -> Seen:
    x, y = flatten(digits()[0].images), digits()[0].labels
    start = perceptron(seed)
    params, losses = descend(
        lambda p: cross_entropy(
            linear(relu(linear(x, **p["fc1"])), **p["fc2"]), y
        ),
        start,
        lr=0.1,
    )
    moves = {k: params[k]["weight"] - start[k]["weight"] for k in params}
    return {"loss": losses} | {k: m.norm().item() for k, m in moves.items()}


def shows(seen: Seen) -> bool:
    """The loss falls and the last layer moves, but the layer before it has
    not moved by a single bit."""
    return seen["fc1"] == 0 and seen["fc2"] > 0


def solves(seen: Seen) -> bool:
    """Train both layers on digits."""
    return min(seen["fc1"], seen["fc2"]) > 0.01 and seen["loss"][-1] < 2
