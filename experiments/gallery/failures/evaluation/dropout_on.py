"""Dropout is left on while predicting

Expect: The same network sees the same images twice. Does it give the
same answers?

Cause: In training mode dropout draws a new mask at every call. Without
model.eval(), each prediction is that of another half of the network.

Find: Predict twice, and compare: in evaluation mode not a bit differs.

Fix: model.eval() before evaluation, model.train() after it.

Checks: blind: both modes have the same shapes. In training dropout asks
for a key, and without one raises ValueError; who evaluates has none. But
a call copied from training brings its key along, and nobody complains.
"""

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import digits, perceptron
from fn.metrics import accuracy
from fn.models.mlp import mlp_apply
from fn.rng import key
from torch import nn


def trained(seed: int) -> nn.Module:
    x, y = digits()[0]
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(32, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def broken(seed: int) -> Seen:
    model, (x, y) = trained(seed), digits()[1]
    with torch.no_grad():
        once, again = model(x), model(x)
    return {
        "accuracy, held out": accuracy(once, y).item(),
        "answers that differ the second time": (
            (once.argmax(dim=1) != again.argmax(dim=1)).sum().item()
        ),
    }


def fixed(seed: int) -> Seen:
    model, (x, y) = trained(seed), digits()[1]
    model.eval()
    with torch.no_grad():
        once, again = model(x), model(x)
    return {
        "accuracy, held out": accuracy(once, y).item(),
        "answers that differ the second time": (
            (once.argmax(dim=1) != again.argmax(dim=1)).sum().item()
        ),
    }


def shows(seen: Seen) -> bool:
    """Evaluated twice on the same images, the same network gives other
    answers."""
    return seen["answers that differ the second time"] > 0


def solves(seen: Seen) -> bool:
    """Read held-out digits, twice, with the same answers."""
    differ = seen["answers that differ the second time"]
    return differ == 0 and seen["accuracy, held out"] > 0.7


def checked(seed: int) -> None:
    x = digits()[1].images
    params = perceptron(seed)
    options = {"layers": 2, "dropout_p": 0.5, "key": key(seed)}
    mlp_apply(params, {}, x, train=True, **options)
