"""The families of models, a page each, all behind one contract.

    init(rng) -> (params, state)
    apply(params, state, x, *, train, key=None) -> (output, state)

`params` is what is differentiated; `state` is what is not, such as batch norm's statistics. A family that has such
statistics takes `modes` too, for parts of it to be frozen: see `fn.layers.norm_modes`. A new family is one file,
one function of an example's shape and the number of classes, and one row in experiments.registry. ValueError for a
shape that a family cannot take.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from fn.models.cnn import cnn_apply, cnn_init
from fn.models.mlp import mlp_apply, mlp_init
from fn.models.resnet import resnet_apply, resnet_init
from fn.models.squeezenet import squeezenet_apply, squeezenet_init
from fn.models.transformer import (
    language_model_apply,
    language_model_init,
    vision_transformer_apply,
    vision_transformer_init,
)
from fn.positions import Positions

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


def transformer(
    shape: Sequence[int],
    classes: int,
    *,
    d_model: int = 64,
    layers: int = 2,
    heads: int = 4,
    positions: Positions = "learned",
    patch_size: int | None = None,
    dropout_p: float = 0.0,
    native: bool = False,
) -> Model:
    """Of images (channels, height, width), or, for a shape (seq,), of sequences: a language model of `classes` tokens.

    Patches, unless given, are the smallest squares of more than a pixel of which there are at most 64. `native` is the
    attention's.
    """
    sizes = {"d_model": d_model, "layers": layers, "heads": heads, "d_ff": 4 * d_model, "positions": positions}
    options: dict[str, Any] = {"heads": heads, "positions": positions, "dropout_p": dropout_p, "native": native}
    if len(shape) == 1:
        init = partial(language_model_init, length=shape[0], classes=classes, **sizes)
        return Model(init, partial(language_model_apply, **options))
    options["patch_size"] = _patch_size(*shape[1:]) if patch_size is None else patch_size
    init = partial(vision_transformer_init, shape=shape, classes=classes, patch_size=options["patch_size"], **sizes)
    return Model(init, partial(vision_transformer_apply, **options))


def _patch_size(height: int, width: int) -> int:
    side = math.gcd(height, width)
    fits = [n for n in range(2, side + 1) if side % n == 0 and height * width <= 64 * n * n]
    if not fits:
        raise ValueError(f"transformer: no squares divide an image of {height}×{width} into at most 64 patches")
    return fits[0]


def resnet(
    shape: Sequence[int],
    classes: int,
    *,
    depth: int = 8,
    widths: Sequence[int] | None = None,
    groups: int = 1,
    group_width: int | None = None,
    dropout_p: float = 0.0,
) -> Model:
    """Depth 18, 34, 50, 101 or 152 as for ImageNet; 20, 32, 44, 56, 110 and all else of 6n + 2 as for CIFAR.

    The depth counts the convolutions and the linear layer, with three stages of blocks for CIFAR and four for ImageNet.
    """
    made: dict[str, Any] = {"groups": groups, "group_width": group_width}
    if depth in IMAGENET_BLOCKS:
        made |= {"style": "imagenet", "blocks": IMAGENET_BLOCKS[depth], "bottleneck": depth >= 50}
        made |= {"widths": widths or (64, 128, 256, 512)}
    elif depth >= 8 and depth % 6 == 2:
        made |= {"style": "cifar", "widths": widths or (16, 32, 64)}
        made |= {"blocks": [(depth - 2) // 6] * len(made["widths"])}
    else:
        raise ValueError(f"resnet: the depth is one of {', '.join(map(str, IMAGENET_BLOCKS))}, or 6n + 2, not {depth}")
    init = partial(resnet_init, channels=shape[0], classes=classes, **made)
    return Model(init, partial(resnet_apply, dropout_p=dropout_p, groups=groups))


resnet20 = partial(resnet, depth=20)


def squeezenet(shape: Sequence[int], classes: int, *, dropout_p: float = 0.5) -> Model:
    init = partial(squeezenet_init, channels=shape[0], classes=classes)
    return Model(init, partial(squeezenet_apply, dropout_p=dropout_p))
