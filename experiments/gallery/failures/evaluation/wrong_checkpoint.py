"""state_dict() is no copy, so the best is always the last

Expect: The weights of the best epoch are kept, and loaded at the end. Is
the validation loss then that of the best epoch?

Cause: state_dict() hands out the parameters themselves, and the optimizer
changes them in place: what was kept goes on training.

Find: Evaluate again after loading: it must give the value that was
recorded, to the last digit.

Fix: copy.deepcopy(model.state_dict()), or a file. Parameters that are
values, never changed in place, need neither.

Checks: blind: they see a tensor, not who else holds it.
"""

import copy

import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import digits
from fn.data.datasets import Split
from fn.losses import cross_entropy
from torch import nn


def split() -> tuple[Split, Split]:
    """60 to train on, 300 others to validate; test is not touched"""
    x, y = digits(360)[0]
    return Split(x[:60], y[:60]), Split(x[60:], y[60:])


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def broken(seed: int) -> Seen:
    (x, y), valid, model = *split(), network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    curve, best = [], {}
    for _ in range(150):
        with torch.no_grad():
            curve.append(
                cross_entropy(model(valid.images), valid.labels).item()
            )
        if curve[-1] == min(curve):
            best = model.state_dict()
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    model.load_state_dict(best)
    with torch.no_grad():
        loaded = cross_entropy(model(valid.images), valid.labels).item()
    return {"loss": curve, "best": min(curve), "loaded": loaded}


def fixed(seed: int) -> Seen:
    (x, y), valid, model = *split(), network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    curve, best = [], {}
    for _ in range(150):
        with torch.no_grad():
            curve.append(
                cross_entropy(model(valid.images), valid.labels).item()
            )
        if curve[-1] == min(curve):
            best = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    model.load_state_dict(best)
    with torch.no_grad():
        loaded = cross_entropy(model(valid.images), valid.labels).item()
    return {"loss": curve, "best": min(curve), "loaded": loaded}


def shows(seen: Seen) -> bool:
    """The weights of the best epoch are loaded, and the validation loss is
    not the one that was recorded for them."""
    return seen["loaded"] > seen["best"] + 1e-3


def solves(seen: Seen) -> bool:
    """Train, and end with the weights of the epoch whose validation loss
    was lowest."""
    as_recorded = abs(seen["loaded"] - seen["best"]) < 1e-6
    return as_recorded and seen["best"] < seen["loss"][0] / 2
