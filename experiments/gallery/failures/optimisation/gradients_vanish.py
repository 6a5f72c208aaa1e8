"""Each of twelve layers shrinks the gradient

Expect: Twelve layers with sigmoids, one after the other. How much smaller
is the gradient of the first than that of the last?

Cause: To the first layer the gradient comes through the Jacobians of the
eleven that follow, and its own slope. Each shrinks it: the slope of a
sigmoid is 1/4 at most.

Find: The gradient's norm layer by layer, on a logarithmic axis: a
straight line, up from the first layer to the last.

Fix: Residuals, x + f(x), whose Jacobian is I + J: the gradient has a way
around every layer. (A sigmoid only ever adds, so activations grow with
depth; a norm before it would stop that.)

Checks: blind: however small, a gradient has the shape of its parameter.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import descend, digits
from fn.layers import flatten, linear, linear_init
from fn.losses import cross_entropy
from fn.rng import generator
from fn.tree import Params
from torch import Tensor
from torch.func import grad

LAYERS = [str(i) for i in range(12)]


def layers(seed: int) -> Params:
    rng = generator(seed)
    return {i: linear_init(rng, 64, 64, gain=1.0) for i in LAYERS}


def plain(params: Params, x: Tensor) -> Tensor:
    for i in LAYERS:
        x = torch.sigmoid(linear(x, **params[i]))
    return x[:, :10]


def residual(params: Params, x: Tensor) -> Tensor:
    for i in LAYERS:
        x = x + torch.sigmoid(linear(x, **params[i]))
    return x[:, :10]


def broken(seed: int) -> Seen:
    x, y = flatten(digits()[0].images), digits()[0].labels
    params = layers(seed)
    grads = grad(lambda p: cross_entropy(plain(p, x), y))(params)
    norms = [torch.norm(grads[i]["weight"]).item() for i in LAYERS]
    _, losses = descend(
        lambda p: cross_entropy(plain(p, x), y), params, lr=0.1, steps=60
    )
    return {
        "loss": losses,
        "gradient, layer by layer": norms,
        "first / last": norms[0] / norms[-1],
    }


def fixed(seed: int) -> Seen:
    x, y = flatten(digits()[0].images), digits()[0].labels
    params = layers(seed)
    grads = grad(lambda p: cross_entropy(residual(p, x), y))(params)
    norms = [torch.norm(grads[i]["weight"]).item() for i in LAYERS]
    _, losses = descend(
        lambda p: cross_entropy(residual(p, x), y), params, lr=0.1, steps=60
    )
    return {
        "loss": losses,
        "gradient, layer by layer": norms,
        "first / last": norms[0] / norms[-1],
    }


def shows(seen: Seen) -> bool:
    """Twelve layers do not learn at all. The first one's gradient is not a
    thousandth of the last one's."""
    return seen["first / last"] < 1e-3 and seen["loss"][-1] > 2.2


def solves(seen: Seen) -> bool:
    """Train twelve layers of sigmoids, every one of them: the loss ends
    below 2."""
    return seen["first / last"] > 1e-3 and seen["loss"][-1] < 2
