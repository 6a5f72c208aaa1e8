"""The full rate at once, which a fresh network cannot bear

Expect: Momentum with a rate of 2. From the first step on, or reached over
50 steps: does it matter for where the loss ends?

Cause: This network is steeper when fresh than when it has learned a
little (no law: others grow steeper in training). The rate that suits it
later throws it out of its valley now, to where most units are closed.

Find: The loss leaps in the first ten steps. Start at a hundredth of the
rate: if that is calm, and the full rate is calm later, it is this.

Fix: Raise the rate over the first steps: warmup_schedule, or one_cycle.
Transformers with their norm after the residual need it most.

Checks: blind: a rate is a number.

Akin: dead_relus, rate_too_high
"""

from functools import partial

from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import digits, mlp, perceptron
from fn.losses import cross_entropy
from fn.optim import sgd, warmup_schedule
from torch.func import grad_and_value


def broken(seed: int) -> Seen:
    (x, y), params, losses = digits()[0], perceptron(seed, 128), []
    optimizer = sgd(lr=2.0, momentum=0.9)
    state = optimizer.init(params)
    step = grad_and_value(lambda p: cross_entropy(mlp(p, x), y))
    for _ in range(100):
        grads, loss = step(params)
        params, state = optimizer.update(params, grads, state)
        losses.append(loss.item())
    return {"loss": losses}


def fixed(seed: int) -> Seen:
    (x, y), params, losses = digits()[0], perceptron(seed, 128), []
    lr = partial(warmup_schedule, lr=2.0, warmup_steps=50)
    optimizer = sgd(lr=lr, momentum=0.9)
    state = optimizer.init(params)
    step = grad_and_value(lambda p: cross_entropy(mlp(p, x), y))
    for _ in range(100):
        grads, loss = step(params)
        params, state = optimizer.update(params, grads, state)
        losses.append(loss.item())
    return {"loss": losses}


def shows(seen: Seen) -> bool:
    """At a rate that the same network bears later, the loss leaps to
    several times its start, and does not come near 0."""
    return (
        max(seen["loss"]) > 3 * seen["loss"][0] and seen["loss"][-1] > 0.1
    )


def solves(seen: Seen) -> bool:
    """Train with momentum for a hundred steps: the loss ends below 0.1."""
    return seen["loss"][-1] < 0.1
