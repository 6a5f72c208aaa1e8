"""The contract that every family of models keeps; a family is a file here, with its factory.

    init(rng) -> (params, state)
    apply(params, state, x, *, train, key=None) -> (output, state)

`params` is what is differentiated; `state` is what is not, such as batch norm's statistics. A family that has such
statistics takes `modes` too, for parts of it to be frozen: see `fn.layers.norm_modes`. A new family is one file,
with one function of an example's shape and the number of classes, and one row in the registry of the scripts.
ValueError for a shape that a family cannot take.
"""

from collections.abc import Callable
from typing import NamedTuple

from fn.domains import Count


class Model(NamedTuple):
    init: Callable
    apply: Callable


class Detector(NamedTuple):
    """A model whose output is a dict of tensors, splatted into both functions."""

    model: Model
    loss: Callable
    """loss(**output, objects) -> a dict of parts, whose sum is the loss"""
    detect: Callable
    """detect(**output) -> (boxes, scores, labels) of each image"""
    classes: Count
