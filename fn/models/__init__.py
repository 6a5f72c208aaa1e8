"""The families of models, a page each, all behind one contract.

    init(rng) -> (params, state)
    apply(params, state, x, *, train, key=None) -> (output, state)

`params` is what is differentiated; `state` is what is not, such as batch norm's statistics. A new family is one file
and one row in MODELS, which maps its name to a function of the image's shape and the number of classes.
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


def mlp(shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (128,)) -> Model:
    return Model(partial(mlp_init, sizes=(math.prod(shape), *hidden, classes)), mlp_apply)


def cnn(shape: Sequence[int], classes: int, *, widths: Sequence[int] = (32, 64, 64)) -> Model:
    return Model(partial(cnn_init, shape=shape, classes=classes, widths=widths), cnn_apply)


MODELS: dict[str, Callable[..., Model]] = {"mlp": mlp, "cnn": cnn}
