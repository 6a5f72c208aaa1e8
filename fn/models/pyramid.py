"""What both detectors stand on: a small trunk, and a pyramid of feature maps as fine as its first map.

Every level knows what the coarser ones have seen: each is added, twice as large, to the next finer one. Lin et al.
2017, "Feature Pyramid Networks". A trunk is a Model whose output is a list of maps, the finest first.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fn.conv import conv2d, conv2d_init, max_pool2d
from fn.layers import batch_norm, batch_norm_init, relu
from fn.models.squeezenet import FIRES, POOLED, fire, squeezenet_init
from fn.tree import Params


class Trunk(NamedTuple):
    init: Callable
    """init(rng) -> (params, state)"""
    apply: Callable
    """apply(params, state, x, *, train) -> (maps, state)"""
    channels: Sequence[int]
    """of each map"""


BLOCKS = {"1": True, "2": True, "3": False, "4": True, "5": False, "6": True}
"""the convolutions of the small trunk; after some the map is halved"""
LEVELS = ("3", "5", "6")
"""those whose maps, a quarter, an eighth and a sixteenth of the image's side, are handed on"""


def trunk_init(rng: torch.Generator, channels: int, widths: Sequence[int]) -> tuple[Params, Params]:
    params: Params = {}
    state: Params = {}
    for name, out_channels in zip(BLOCKS, widths, strict=True):
        params[f"conv{name}"] = conv2d_init(rng, channels, out_channels, 3, bias=False)
        params[f"bn{name}"], state[f"bn{name}"] = batch_norm_init(out_channels)
        channels = out_channels
    return params, state


def trunk_apply(
    params: Params, state: Params, x: Float[Tensor, "batch channels height width"], *, train: bool
) -> tuple[list[Tensor], Params]:
    """Convolution, halving, batch norm, relu, …"""
    maps, new_state = [], {}
    for name, halved in BLOCKS.items():
        x = conv2d(x, **params[f"conv{name}"], padding="same")
        x = max_pool2d(x, 2) if halved else x
        x, new_state[f"bn{name}"] = batch_norm(x, **params[f"bn{name}"], **state[f"bn{name}"], training=train)
        x = relu(x)
        if name in LEVELS:
            maps.append(x)
    return maps, new_state


def squeezenet_maps(
    params: Params, state: Params, x: Float[Tensor, "batch channels height width"], *, train: bool
) -> tuple[list[Tensor], Params]:
    """Of SqueezeNet's `features`: what goes into its last pooling, and what the last fire makes of it.

    Padded, and at last pooled by 2×2, so that a cell looks at what an even grid over the image has in its place, but
    for half a pixel. As published, without padding, the cells at the border look 3 to 4 pixels further inwards.
    """
    x, maps = relu(conv2d(x, **params["0"], stride=2, padding=3)), []
    for name in FIRES:
        if name in POOLED:
            maps.append(x)
            x = max_pool2d(x, 2) if name == POOLED[-1] else max_pool2d(x, 3, 2, ceil_mode=True)
        x = fire(x, params[name])
    return [maps[-1], x], state


def pyramid_init(rng: torch.Generator, trunk: Trunk, width: int, levels: int) -> tuple[Params, Params]:
    """Every map is brought to `width` channels; the `levels` finest are looked at once more, merged."""
    trunk_params, trunk_state = trunk.init(rng)
    params: Params = {"trunk": trunk_params}
    state: Params = {"trunk": trunk_state}
    for i, channels in enumerate(trunk.channels):
        params[f"lateral{i}"] = conv2d_init(rng, channels, width, 1)
    for i in range(levels):
        params[f"conv{i}"] = conv2d_init(rng, width, width, 3, bias=False)
        params[f"bn{i}"], state[f"bn{i}"] = batch_norm_init(width)
    return params, state


def pyramid_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    trunk_apply: Callable,
    levels: int,
) -> tuple[list[Tensor], Params]:
    """The `levels` finest maps"""
    maps, trunk_state = trunk_apply(params["trunk"], state["trunk"], x, train=train)
    new_state = state | {"trunk": trunk_state}
    coarser, pyramid = None, []
    for i, features in reversed(list(enumerate(maps))):
        merged = conv2d(features, **params[f"lateral{i}"])
        if coarser is not None:
            merged = merged + F.interpolate(coarser, merged.shape[2:])
        coarser = merged
        if i < levels:
            y = conv2d(merged, **params[f"conv{i}"], padding="same")
            y, new_state[f"bn{i}"] = batch_norm(y, **params[f"bn{i}"], **state[f"bn{i}"], training=train)
            pyramid.insert(0, relu(y))
    return pyramid, new_state


WIDTHS = (16, 32, 64, 64, 96, 96)
"""channels of the small trunk's convolutions"""


def small_trunk(channels: int, *, widths: Sequence[int] = WIDTHS) -> Trunk:
    init = partial(trunk_init, channels=channels, widths=widths)
    return Trunk(init, trunk_apply, (widths[2], widths[4], widths[5]))


def squeezenet_trunk(channels: int, *, weights: Params | None = None) -> Trunk:
    """Maps of an eighth and a sixteenth of the image's side, if 16 divides it; from published `weights`, or else from
    scratch."""
    fresh = partial(squeezenet_init, channels=channels, classes=1)
    return Trunk(partial(_from_weights, weights=weights, fresh=fresh), squeezenet_maps, (256, 512))


def _from_weights(rng: torch.Generator, weights: Params | None, fresh: Callable) -> tuple[Params, Params]:
    return (fresh(rng)[0] if weights is None else weights)["features"], {}
