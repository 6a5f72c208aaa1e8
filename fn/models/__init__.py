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
from fn.models.resnet import resnet_apply, resnet_init
from fn.models.squeezenet import squeezenet_apply, squeezenet_init

IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Model(NamedTuple):
    init: Callable
    apply: Callable


def mlp(shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (128,), dropout_p: float = 0.0) -> Model:
    init = partial(mlp_init, sizes=(math.prod(shape), *hidden, classes))
    return Model(init, partial(mlp_apply, dropout_p=dropout_p))


def cnn(shape: Sequence[int], classes: int, *, widths: Sequence[int] = (32, 64, 64), dropout_p: float = 0.0) -> Model:
    init = partial(cnn_init, shape=shape, classes=classes, widths=widths)
    return Model(init, partial(cnn_apply, dropout_p=dropout_p))


def resnet(
    shape: Sequence[int],
    classes: int,
    *,
    depth: int = 20,
    planes: int | None = None,
    groups: int = 1,
    group_planes: int | None = None,
    dropout_p: float = 0.0,
) -> Model:
    """Depth 18, 34, 50, 101 or 152 as for ImageNet; 20, 32, 44, 56, 110 and all else of 6n + 2 as for CIFAR."""
    if depth in IMAGENET_BLOCKS:
        made = {"style": "imagenet", "blocks": IMAGENET_BLOCKS[depth], "bottleneck": depth >= 50, "planes": 64}
        made |= {"groups": groups, "group_planes": group_planes}
    elif depth >= 8 and depth % 6 == 2:
        made = {"style": "cifar", "blocks": (depth // 6,) * 3, "planes": 16}
    else:
        raise ValueError(f"resnet: the depth is one of {', '.join(map(str, IMAGENET_BLOCKS))}, or 6n + 2, not {depth}")
    made |= {} if planes is None else {"planes": planes}
    init = partial(resnet_init, channels=shape[0], classes=classes, **made)
    return Model(init, partial(resnet_apply, dropout_p=dropout_p, groups=groups))


def squeezenet(shape: Sequence[int], classes: int, *, dropout_p: float = 0.5) -> Model:
    init = partial(squeezenet_init, channels=shape[0], classes=classes)
    return Model(init, partial(squeezenet_apply, dropout_p=dropout_p))
