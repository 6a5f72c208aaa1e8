"""SqueezeNet 1.1: 1.2 million parameters, most of them 1×1 kernels. Iandola et al. 2016; names as in torchvision's."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fn.conv import adaptive_avg_pool2d, conv2d, conv2d_init, max_pool2d
from fn.layers import dropout, flatten, relu
from fn.models import Model
from fn.tree import Params

# name: (squeezed to, each kind of kernels); what is missing in the numbers are relu and pooling
FIRES = {"3": (16, 64), "4": (16, 64), "6": (32, 128), "7": (32, 128)}
FIRES |= {"9": (48, 192), "10": (48, 192), "11": (64, 256), "12": (64, 256)}
POOLED = ("3", "6", "9")
"""the fires with pooling before them"""


def squeezenet_init(rng: torch.Generator, channels: int, classes: int) -> tuple[Params, Params]:
    features: Params = {"0": conv2d_init(rng, channels, 64, 3)}
    channels = 64
    for name, (squeeze, expand) in FIRES.items():
        features[name] = {
            "squeeze": conv2d_init(rng, channels, squeeze, 1),
            "expand1x1": conv2d_init(rng, squeeze, expand, 1),
            "expand3x3": conv2d_init(rng, squeeze, expand, 3),
        }
        channels = 2 * expand
    return {"features": features, "classifier": {"1": conv2d_init(rng, channels, classes, 1)}}, {}


def squeezenet_features(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    modes: Params | None = None,
) -> tuple[Float[Tensor, "batch features out_height out_width"], Params]:
    """What the last fire makes of the image. There is no batch norm, so `train` and `modes` make no difference."""
    x = relu(conv2d(x, **params["features"]["0"], stride=2))
    for name in FIRES:
        if name in POOLED:
            x = max_pool2d(x, 3, 2, ceil_mode=True)
        x = fire(x, params["features"][name])
    return x, state


def fire(
    x: Float[Tensor, "batch channels height width"], params: Params
) -> Float[Tensor, "batch out_channels height width"]:
    """1×1 kernels squeeze the channels, for 1×1 and 3×3 kernels side by side to expand them"""
    x = relu(conv2d(x, **params["squeeze"]))
    sides = conv2d(x, **params["expand1x1"]), conv2d(x, **params["expand3x3"], padding=1)
    return relu(torch.cat(sides, dim=1))


def squeezenet_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    dropout_p: float = 0.5,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    """Logits: dropout, a 1×1 kernel per class, relu, and the means over the image"""
    x, state = squeezenet_features(params, state, x, train=train)
    x = relu(conv2d(dropout(x, dropout_p, train, key=key), **params["classifier"]["1"]))
    return flatten(adaptive_avg_pool2d(x, 1)), state


def squeezenet(shape: Sequence[int], classes: int, *, dropout_p: float = 0.5) -> Model:
    init = partial(squeezenet_init, channels=shape[0], classes=classes)
    return Model(init, partial(squeezenet_apply, dropout_p=dropout_p))
