"""The families of models, a page each, all behind one contract.

    init(rng) -> (params, state)
    apply(params, state, x, *, train, key=None) -> (output, state)

`params` is what is differentiated; `state` is what is not, such as batch norm's statistics. A new family is one file,
one function of the image's shape and the number of classes, and one row in experiments.registry. ValueError for images
that a family cannot take.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from fn.models.cnn import cnn_apply, cnn_init
from fn.models.mlp import mlp_apply, mlp_init


class Model(NamedTuple):
    init: Callable
    apply: Callable


def mlp(shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (128,), dropout_p: float = 0.0) -> Model:
    init = partial(mlp_init, sizes=(math.prod(shape), *hidden, classes))
    return Model(init, partial(mlp_apply, dropout_p=dropout_p))


def cnn(shape: Sequence[int], classes: int, *, widths: Sequence[int] = (32, 64, 64), dropout_p: float = 0.0) -> Model:
    init = partial(cnn_init, shape=shape, classes=classes, widths=widths)
    return Model(init, partial(cnn_apply, dropout_p=dropout_p))
