"""functional_loop with the velocity written out."""

from functools import partial

import torch.nn.functional as F
from torch.func import grad_and_value

from fn import tree
from fn.models.mlp import mlp_apply


def loss_of(params, x, y):
    return F.cross_entropy(mlp_apply(params, {}, x, train=True, layers=2)[0], y)


def functional_loop(params, x, y, steps):
    velocity = tree.map(lambda p: 0 * p, params)
    losses = []
    slope = grad_and_value(partial(loss_of, x=x, y=y))
    for _ in range(steps):
        grads, loss = slope(params)
        losses.append(float(loss))
        velocity = tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
        params = tree.map(lambda p, v: p - 0.1 * v, params, velocity)
    return losses


WRONG = {
    "the new parameters are dropped": ("        params = tree.map(", "        _ = tree.map(", "only index 0"),
    "the velocity is dropped": (
        "        velocity = tree.map(lambda v, g: 0.9 * v + g, velocity, grads)",
        "        velocity = grads",
        "wrong",
    ),
    "loss and gradients swapped": ("grads, loss = slope(params)", "loss, grads = slope(params)", "raised"),
    "in place": ("p - 0.1 * v", "p.sub_(0.1 * v)", "in place"),
    "up the hill": ("p - 0.1 * v", "p + 0.1 * v", "wrong"),
    "tensors for numbers": ("float(loss)", "loss", "float"),
    "one step too many": ("range(steps)", "range(steps + 1)", "shape"),
}
