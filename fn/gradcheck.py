"""Numerical gradients, without autograd, to check a backward pass; and the worst of many gaps."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.func import vmap

from fn import tree
from fn.domains import Count, Positive
from fn.tree import Params


def numerical_grad(
    f: Callable[[Params], Tensor], params: Params, eps: Positive = 1e-6, chunk_size: Count = 256
) -> Params:
    """Return ∂f/∂θᵢ ≈ (f(θ + εeᵢ) - f(θ - εeᵢ)) / 2ε for every entry of every leaf, `chunk_size` entries at a time.

    Use float64: the error is about ε² from the curvature plus 1e-16/ε from rounding. Within ±ε of a kink, such as
    relu's at 0, the result is off by about the jump of the slope.

    >>> numerical_grad(lambda params: (params["w"] ** 3).sum(), {"w": torch.tensor([1.0, 2.0]).double()})
    {'w': tensor([ 3.0000, 12.0000], dtype=torch.float64)}
    """
    return tree.unflatten({name: _leaf_grad(f, params, name, eps, chunk_size) for name in tree.flatten(params)})


def _leaf_grad(f: Callable[[Params], Tensor], params: Params, name: str, eps: float, chunk_size: int) -> Tensor:
    flat = tree.flatten(params)
    leaf = flat[name]
    entries = torch.arange(leaf.numel(), device=leaf.device)

    def along(entry: Tensor, step: float) -> Tensor:
        bump = step * (entries == entry).reshape(leaf.shape).to(leaf.dtype)  # a bare mask would make it float32
        return f(tree.unflatten(flat | {name: leaf + bump}))

    slopes = vmap(lambda entry: (along(entry, eps) - along(entry, -eps)) / (2 * eps), chunk_size=chunk_size)
    return slopes(entries).reshape(leaf.shape)


def relative_error(tree1: Params, tree2: Params) -> float:
    """Return max |a - b| / max |b| over all leaves, NaN if an entry is NaN.

    >>> relative_error({"w": torch.tensor([1.0, 2.5])}, {"w": torch.tensor([1.0, 2.0])})
    0.25
    """
    tree.require_leaves(tree2, "relative_error: tree1 and tree2")
    gaps = tree.leaves(tree.map(lambda a, b: (a - b).abs().max(), tree1, tree2))
    sizes = [b.abs().max() for b in tree.leaves(tree2)]
    return float(torch.stack(gaps).max() / torch.stack(sizes).max())


def largest(values: Iterable[float | Tensor]) -> float:
    """Return the largest of the numbers, NaN if one of them is NaN: Python's max drops a NaN that is not the first.

    >>> largest([1.0, math.nan, 2.0]), max([1.0, math.nan, 2.0])
    (nan, 2.0)
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise ValueError("largest: values hold no number")
    return math.nan if any(map(math.isnan, numbers)) else max(numbers)


def smallest(values: Iterable[float | Tensor]) -> float:
    """Return the smallest of the numbers, NaN if one of them is NaN.

    >>> smallest([1.0, math.nan, 2.0]), smallest([1.0, 2.0])
    (nan, 1.0)
    """
    return -largest(-float(value) for value in values)
