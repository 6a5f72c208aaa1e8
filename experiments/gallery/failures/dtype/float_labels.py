"""Class labels went through a table and are floats now

Expect: Labels are read from a CSV file beside other columns. Are 3.0 and 3
the same class?

Cause: One array has one dtype, and numpy.loadtxt's is float64 whatever is
in the file. pandas types each column for itself, but .to_numpy() of mixed
ones is float64 too. Float targets mean class probabilities, one column
each.

Find: print(y.dtype, y.shape): classes are int64 and (batch,).

Fix: y.long(), once, where the labels are loaded, after a look: it makes
some number of a missing label's NaN too, and 2 of 2.7.

Checks: caught by fn.losses.cross_entropy: target is Int. The error names
the argument, and shows both shapes and dtypes.
"""

import io

import numpy
import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import message
from fn.losses import cross_entropy
from torch import nn

CSV = "0.5,1.0,2\n1.5,0.0,0\n0.0,2.5,1\n"


def broken(seed: int) -> Seen:
    table = torch.from_numpy(numpy.loadtxt(io.StringIO(CSV), delimiter=","))
    x, y = table[:, :2].float(), table[:, 2]
    torch.manual_seed(seed)
    model, loss = nn.Linear(2, 3), nn.CrossEntropyLoss()
    return {
        "labels": str(y.dtype),
        "error": message(lambda: loss(model(x), y)),
    }


def fixed(seed: int) -> Seen:
    table = torch.from_numpy(numpy.loadtxt(io.StringIO(CSV), delimiter=","))
    x, y = table[:, :2].float(), table[:, 2]
    assert y.isfinite().all()
    assert (y == y.round()).all()
    y = y.long()
    torch.manual_seed(seed)
    model, loss = nn.Linear(2, 3), nn.CrossEntropyLoss()
    return {
        "labels": str(y.dtype),
        "error": message(lambda: loss(model(x), y)),
    }


def shows(seen: Seen) -> bool:
    """Labels from a file print as 2, 0, 1, and the loss refuses their
    dtype."""
    return "RuntimeError" in seen["error"] and "dtype" in seen["error"]


def solves(seen: Seen) -> bool:
    """Read two features and a class from a file, and compute the loss of a
    fresh model."""
    return seen["error"] == "no error"


def checked(seed: int) -> None:
    cross_entropy(torch.zeros(3, 3), torch.tensor([2.0, 0.0, 1.0]))
