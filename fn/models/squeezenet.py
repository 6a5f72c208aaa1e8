"""SqueezeNet 1.1: 1.2 million parameters, most of them 1×1 kernels. Iandola et al. 2016; names as in torchvision's."""

from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fn.conv import adaptive_avg_pool2d, conv2d, conv2d_init, max_pool2d
from fn.domains import Count, ImageShape, Probability
from fn.layers import dropout, flatten, relu
from fn.models import Model
from fn.tree import Params

# name: (channels after squeezing, kernels of each size). Names count torchvision's layers, relu and pooling included.
FIRES = {"3": (16, 64), "4": (16, 64), "6": (32, 128), "7": (32, 128)}
FIRES |= {"9": (48, 192), "10": (48, 192), "11": (64, 256), "12": (64, 256)}
POOLED = ("3", "6", "9")
"""the fire modules with pooling before them"""


def squeezenet_init(rng: torch.Generator, channels: Count, classes: Count) -> tuple[Params, Params]:
    """Draw the parameters; there is no state.

    >>> params, state = squeezenet_init(torch.Generator().manual_seed(0), 3, 10)
    >>> params["features"]["3"]["expand3x3"]["weight"].shape
    torch.Size([64, 16, 3, 3])
    """
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
    """Return (output of the last fire module, state). Without batch norm, `train` and `modes` make no difference.

    >>> params, state = squeezenet_init(torch.Generator().manual_seed(0), 3, 10)
    >>> squeezenet_features(params, state, torch.ones(2, 3, 64, 64), train=False)[0].shape
    torch.Size([2, 512, 3, 3])
    """
    x = relu(conv2d(x, **params["features"]["0"], stride=2))
    for name in FIRES:
        if name in POOLED:
            x = max_pool2d(x, 3, 2, ceil_mode=True)
        x = fire(x, params["features"][name])
    return x, state


def fire(
    x: Float[Tensor, "batch channels height width"], params: Params
) -> Float[Tensor, "batch out_channels height width"]:
    """Squeeze the channels with 1×1 kernels, then expand them with 1×1 and 3×3 kernels side by side.

    >>> params, _ = squeezenet_init(torch.Generator().manual_seed(0), 3, 10)
    >>> fire(torch.ones(2, 64, 8, 8), params["features"]["3"]).shape
    torch.Size([2, 128, 8, 8])
    """
    x = relu(conv2d(x, **params["squeeze"]))
    small = conv2d(x, **params["expand1x1"])
    large = conv2d(x, **params["expand3x3"], padding=1)
    return relu(torch.cat([small, large], dim=1))


def squeezenet_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    dropout_p: Probability = 0.5,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    """Return (logits, state): dropout, a 1×1 kernel per class, relu, and the means over the image.

    >>> params, state = squeezenet_init(torch.Generator().manual_seed(0), 3, 10)
    >>> squeezenet_apply(params, state, torch.ones(2, 3, 64, 64), train=False)[0].shape
    torch.Size([2, 10])
    """
    x, state = squeezenet_features(params, state, x, train=train)
    x = dropout(x, dropout_p, train, key=key)
    x = relu(conv2d(x, **params["classifier"]["1"]))
    return flatten(adaptive_avg_pool2d(x, 1)), state


def squeezenet(shape: ImageShape, classes: Count, *, dropout_p: Probability = 0.5) -> Model:
    """Return the model of images (channels, height, width).

    >>> params, state = squeezenet((3, 64, 64), 10).init(torch.Generator().manual_seed(0))
    >>> params["classifier"]["1"]["weight"].shape
    torch.Size([10, 512, 1, 1])
    """
    init = partial(squeezenet_init, channels=shape[0], classes=classes)
    return Model(init, partial(squeezenet_apply, dropout_p=dropout_p))
