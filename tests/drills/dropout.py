"""dropout with the complement of the draw."""

import torch

from fn.rng import uniform


def dropout(x, p=0.5, training=True, *, key=None):
    if not 0 <= p <= 1:
        raise ValueError("dropout: p is a probability")
    if p == 0 or not training:
        return x
    if key is None:
        raise ValueError("dropout: it needs a key")
    dropped = uniform(key, x.shape) < p
    scale = 1 / (1 - p) if p < 1 else 1.0
    return torch.where(dropped, 0.0, x * scale)


WRONG = {
    "a key of its own": (
        'raise ValueError("dropout: it needs a key")',
        "key = torch.tensor(0)",
        "refused",
    ),
    "not rescaled": ("x * scale)", "x)", "factor"),
    "p is the share that is kept": (
        "uniform(key, x.shape) < p",
        "uniform(key, x.shape) >= p",
        "zero just where it should not be",
    ),
    "rescaled by p": ("1 / (1 - p) if p < 1", "1 / p if p < 1", "factor"),
    "drawn from the global generator": ("uniform(key, x.shape)", "torch.rand(x.shape)", "wrong"),
    "in evaluation too": ("if p == 0 or not training:", "if p == 0:", "raised"),
    "one draw for all": ("uniform(key, x.shape)", "uniform(key, ())", "wrong"),
}
