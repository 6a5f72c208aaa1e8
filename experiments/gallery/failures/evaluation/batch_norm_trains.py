"""model.eval() is missing: the batch sets the statistics

Expect: 359 digits, once sorted by class and once shuffled, are cut into
batches of 30. Does the order change what is read?

Cause: In training mode batch norm takes mean and variance from the batch.
In a batch of nothing but sevens, what makes them sevens is the mean, and
is taken off. And the running statistics move with every look.

Find: Predict one example in two batches, among different others. In
evaluation mode the two answers are equal.

Fix: model.eval() before evaluation, model.train() after it. Here train is
an argument without a default: nobody can forget it.

Checks: blind: both modes have the same shapes. Only a batch of one is
refused, as it has no variance.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import digits
from fn.layers import batch_norm, batch_norm_init
from fn.metrics import accuracy
from fn.rng import generator
from torch import nn


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
    shuffled = torch.randperm(len(y), generator=generator(seed))
    seen = {}
    for name, order in {
        "sorted": y.argsort(),
        "shuffled": shuffled,
    }.items():
        with torch.no_grad():
            logits = torch.cat([model(x[i]) for i in order.split(30)])
        seen[f"accuracy, {name}"] = accuracy(logits, y[order]).item()
    return seen


def fixed(seed: int) -> Seen:
    model, (x, y) = trained(seed), digits()[1]
    model.eval()
    shuffled = torch.randperm(len(y), generator=generator(seed))
    seen = {}
    for name, order in {
        "sorted": y.argsort(),
        "shuffled": shuffled,
    }.items():
        with torch.no_grad():
            logits = torch.cat([model(x[i]) for i in order.split(30)])
        seen[f"accuracy, {name}"] = accuracy(logits, y[order]).item()
    return seen


def shows(seen: Seen) -> bool:
    """The same digits are read well in shuffled batches, and badly when
    they are sorted by class before they are cut into batches."""
    return seen["accuracy, shuffled"] - seen["accuracy, sorted"] > 0.2


def solves(seen: Seen) -> bool:
    """Read held-out digits well, and as well in any order."""
    shuffled, in_order = (
        seen[f"accuracy, {k}"] for k in ("shuffled", "sorted")
    )
    return abs(shuffled - in_order) < 0.01 and shuffled > 0.7


def checked(seed: int) -> None:
    params, state = batch_norm_init(32)
    batch_norm(torch.randn(30, 32), **params, **state, training=True)
