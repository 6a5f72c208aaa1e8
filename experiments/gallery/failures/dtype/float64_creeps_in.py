"""NumPy's numbers are float64, and torch keeps them so

Expect: Weights are drawn with NumPy, the pixels come from scikit-learn.
How many bytes does a number of this network take?

Cause: numpy.random and numpy.loadtxt give float64, and torch.from_numpy
keeps it. Sums and products, element by element, of float32 and float64
are float64; a matrix product of the two raises. Where all have it, as
here, nothing complains: it only takes twice the memory, and more time.

Find: {name: p.dtype for …} once after the model is made, and again after
the first step.

Fix: .float() where NumPy ends and torch begins.

Checks: blind: Float is a float of any width, and float16 to float64 all
fit. Float32 in its place would catch it.
"""

import numpy
import torch
from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import descend, digits, mlp
from fn import tree
from fn.losses import cross_entropy
from fn.tree import Params
from torch import Tensor


def drawn(seed: int, *sizes: int) -> Tensor:
    rng = numpy.random.default_rng(seed)
    return torch.from_numpy(rng.normal(scale=0.1, size=sizes))


def broken(seed: int) -> Seen:
    pixels = numpy.asarray(digits()[0].images, dtype=float)
    x, y = torch.from_numpy(pixels), digits()[0].labels
    params: Params = {"fc1": {"weight": drawn(seed, 32, 64)}}
    params |= {"fc2": {"weight": drawn(seed + 1, 10, 32)}}
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y), params, lr=0.3
    )
    return {
        "loss": losses,
        "bytes per number": tree.leaves(params)[0].itemsize,
        "logits": str(mlp(params, x).dtype),
    }


def fixed(seed: int) -> Seen:
    pixels = numpy.asarray(digits()[0].images, dtype=float)
    x, y = torch.from_numpy(pixels).float(), digits()[0].labels
    params: Params = {"fc1": {"weight": drawn(seed, 32, 64).float()}}
    params |= {"fc2": {"weight": drawn(seed + 1, 10, 32).float()}}
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y), params, lr=0.3
    )
    return {
        "loss": losses,
        "bytes per number": tree.leaves(params)[0].itemsize,
        "logits": str(mlp(params, x).dtype),
    }


def shows(seen: Seen) -> bool:
    """Training goes well, and everything takes twice the memory that it
    should."""
    return seen["bytes per number"] == 8 and "float64" in seen["logits"]


def solves(seen: Seen) -> bool:
    """Train a network on pixels of scikit-learn, from weights drawn with
    NumPy, with four bytes for each number."""
    return seen["bytes per number"] == 4 and seen["loss"][-1] < 1
