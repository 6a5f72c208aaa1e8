"""The base of both detectors: a backbone, and a pyramid of feature maps, all as wide as its finest.

Every level knows what the coarser ones have seen: each is added, twice as large, to the next finer one. Lin et al.
2017, "Feature Pyramid Networks". A backbone is a model whose output is a list of maps, the finest first.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fn.conv import conv2d, conv2d_init, max_pool2d
from fn.domains import Count, Counts, count_entries, require_held
from fn.layers import batch_norm, batch_norm_init, relu
from fn.models.squeezenet import FIRES, POOLED, fire, squeezenet_init
from fn.tree import Params


class Backbone(NamedTuple):
    init: Callable
    """init(rng) -> (params, state)"""
    apply: Callable
    """apply(params, state, x, *, train) -> (maps, state)"""
    channels: Counts
    """of each map"""


class Block(NamedTuple):
    """A 3×3 convolution of the small backbone, max pooling if `pooled`, batch norm and relu."""

    width: Count
    """its channels"""
    pooled: bool
    returned: bool
    """whether its output is one of the maps"""


BLOCKS = (
    Block(width=16, pooled=True, returned=False),
    Block(width=32, pooled=True, returned=False),
    Block(width=64, pooled=False, returned=True),  # a quarter of the image's side
    Block(width=64, pooled=True, returned=False),
    Block(width=96, pooled=False, returned=True),  # an eighth
    Block(width=96, pooled=True, returned=True),  # a sixteenth
)
"""the small backbone"""
WIDTHS = tuple(block.width for block in BLOCKS)


def backbone_init(rng: torch.Generator, channels: Count, widths: Counts) -> tuple[Params, Params]:
    """Draw the parameters and the state of the small backbone, with a width for each of its six convolutions.

    >>> params, state = backbone_init(torch.Generator().manual_seed(0), 1, WIDTHS)
    >>> params["conv6"]["weight"].shape
    torch.Size([96, 96, 3, 3])
    """
    _require_widths(widths)
    params: Params = {}
    state: Params = {}
    for i, out_channels in enumerate(widths, start=1):
        params[f"conv{i}"] = conv2d_init(rng, channels, out_channels, 3, bias=False)
        params[f"bn{i}"], state[f"bn{i}"] = batch_norm_init(out_channels)
        channels = out_channels
    return params, state


def _require_widths(widths: Counts) -> None:
    if len(widths) != len(BLOCKS):
        raise ValueError(f"backbone: widths {tuple(widths)} are not {len(BLOCKS)}, one per convolution")


def backbone_apply(
    params: Params, state: Params, x: Float[Tensor, "batch channels height width"], *, train: bool
) -> tuple[list[Tensor], Params]:
    """Return (the maps of the blocks that are `returned`, new state): see BLOCKS.

    >>> params, state = backbone_init(torch.Generator().manual_seed(0), 1, WIDTHS)
    >>> maps, _ = backbone_apply(params, state, torch.ones(2, 1, 32, 32), train=False)
    >>> [tuple(features.shape) for features in maps]
    [(2, 64, 8, 8), (2, 96, 4, 4), (2, 96, 2, 2)]
    """
    maps, new_state = [], {}
    for i, block in enumerate(BLOCKS, start=1):
        x = conv2d(x, **params[f"conv{i}"], padding="same")
        x = max_pool2d(x, 2) if block.pooled else x
        x, new_state[f"bn{i}"] = batch_norm(x, **params[f"bn{i}"], **state[f"bn{i}"], training=train)
        x = relu(x)
        if block.returned:
            maps.append(x)
    return maps, new_state


def squeezenet_maps(
    params: Params, state: Params, x: Float[Tensor, "batch channels height width"], *, train: bool
) -> tuple[list[Tensor], Params]:
    """Return two maps of SqueezeNet's `features`, the input of its last pooling and the last output, and the state.

    Padded, and at last pooled by 2×2, so that a cell looks at what an even grid over the image has in its place, but
    for half a pixel. As published, without padding, the cells at the border look 3 to 4 pixels further inwards.

    >>> params, _ = squeezenet_init(torch.Generator().manual_seed(0), 3, 1)
    >>> maps, _ = squeezenet_maps(params["features"], {}, torch.ones(2, 3, 64, 64), train=False)
    >>> [tuple(features.shape) for features in maps]
    [(2, 256, 8, 8), (2, 512, 4, 4)]
    """
    maps = []
    x = relu(conv2d(x, **params["0"], stride=2, padding=3))
    for name in FIRES:
        if name in POOLED:
            maps.append(x)
            x = max_pool2d(x, 2) if name == POOLED[-1] else max_pool2d(x, 3, 2, ceil_mode=True)
        x = fire(x, params[name])
    return [maps[-1], x], state


def pyramid_init(rng: torch.Generator, backbone: Backbone, width: Count, levels: Count) -> tuple[Params, Params]:
    """Draw the parameters and the state: a 1×1 convolution to `width` channels for every map of the backbone, and a
    3×3 one with batch norm for each of the `levels` finest.

    >>> params, state = pyramid_init(torch.Generator().manual_seed(0), small_backbone(1), 16, levels=1)
    >>> params.keys()
    dict_keys(['backbone', 'lateral0', 'lateral1', 'lateral2', 'conv0', 'bn0'])
    """
    params: Params = {}
    state: Params = {}
    params["backbone"], state["backbone"] = backbone.init(rng)
    for i, channels in enumerate(backbone.channels):
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
    backbone_apply: Callable,
    levels: Count,
) -> tuple[list[Tensor], Params]:
    """Return (the `levels` finest maps of the pyramid, new state).

    >>> params, state = pyramid_init(torch.Generator().manual_seed(0), small_backbone(1), 16, levels=1)
    >>> options = {"backbone_apply": backbone_apply, "levels": 1}
    >>> [features], _ = pyramid_apply(params, state, torch.ones(2, 1, 32, 32), train=False, **options)
    >>> features.shape
    torch.Size([2, 16, 8, 8])
    """
    require_held("pyramid: levels (those of anchor_sizes)", levels, count_entries(params, "conv"))
    maps, backbone_state = backbone_apply(params["backbone"], state["backbone"], x, train=train)
    new_state = state | {"backbone": backbone_state}
    merged = [conv2d(features, **params[f"lateral{i}"]) for i, features in enumerate(maps)]
    for i in reversed(range(len(merged) - 1)):  # each level takes in the next coarser one, enlarged
        merged[i] = merged[i] + F.interpolate(merged[i + 1], merged[i].shape[2:])
    pyramid = []
    for i in range(levels):
        y = conv2d(merged[i], **params[f"conv{i}"], padding="same")
        y, new_state[f"bn{i}"] = batch_norm(y, **params[f"bn{i}"], **state[f"bn{i}"], training=train)
        pyramid.append(relu(y))
    return pyramid, new_state


def small_backbone(channels: Count, *, widths: Counts = WIDTHS) -> Backbone:
    """Return the backbone of six convolutions, with maps of a quarter, an eighth and a sixteenth of the image's side.

    >>> small_backbone(1).channels
    (64, 96, 96)
    """
    _require_widths(widths)
    init = partial(backbone_init, channels=channels, widths=widths)
    channels_of_maps = tuple(width for width, block in zip(widths, BLOCKS, strict=True) if block.returned)
    return Backbone(init, backbone_apply, channels_of_maps)


def squeezenet_backbone(channels: Count, *, weights: Params | None = None) -> Backbone:
    """Return SqueezeNet as a backbone, with maps of an eighth and a sixteenth of the image's side, if 16 divides it.

    It starts from published `weights`, or else from scratch.

    >>> squeezenet_backbone(3).channels
    (256, 512)
    """
    from_scratch = partial(squeezenet_init, channels=channels, classes=1)
    init = partial(_pretrained_init, weights=weights, from_scratch=from_scratch)
    return Backbone(init, squeezenet_maps, (256, 512))


def _pretrained_init(rng: torch.Generator, weights: Params | None, from_scratch: Callable) -> tuple[Params, Params]:
    params = from_scratch(rng)[0] if weights is None else weights
    return params["features"], {}
