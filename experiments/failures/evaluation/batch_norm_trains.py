"""model.eval() is missing: the batch sets the statistics

Expect: The same network, the same 359 digits, but sorted by class before
they are cut into batches. Does the accuracy change?

Cause: In training mode batch norm takes mean and variance from the batch.
In a batch of nothing but sevens, what makes them sevens is the mean, and
is taken off. And the running statistics move with every look.

Find: Predict one example alone and among others. In evaluation mode the
two are equal.

Fix: model.eval() before evaluation, model.train() after it. Here train is
an argument without a default: nobody can forget it.

Checks: blind: both modes have the same shapes. Only a batch of one is
refused, as it has no variance.
"""

import torch
from torch import nn

from experiments.failures import Seen
from experiments.failures.toys import digits
from fn.layers import batch_norm, batch_norm_init
from fn.metrics import accuracy


def trained(seed: int) -> nn.Module:
    x, y = digits()[0]
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def broken(seed: int) -> Seen:
    model, (x, y) = trained(seed), digits()[1]
    order = y.argsort()
    with torch.no_grad():
        logits = torch.cat([model(x[i]) for i in order.split(30)])
    return {"accuracy, held out": accuracy(logits, y[order]).item()}


def fixed(seed: int) -> Seen:
    model, (x, y) = trained(seed), digits()[1]
    order = y.argsort()
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(x[i]) for i in order.split(30)])
    return {"accuracy, held out": accuracy(logits, y[order]).item()}


def shows(seen: Seen) -> bool:
    """Digits are read well in batches drawn at random, and badly when each
    batch holds one class."""
    return seen["accuracy, held out"] < 0.7


def checked(seed: int) -> None:
    params, state = batch_norm_init(32)
    batch_norm(torch.randn(30, 32), **params, **state, training=True)
