"""Residual networks: stages of blocks that add to what they are given. He et al. 2016; names as in torchvision's.

One function for all: what a network is follows from its parameters. A 7×7 stem halves the image twice (ImageNet), a
3×3 one does not (CIFAR); a block with a conv3 is a bottleneck. Where a block changes the shape, its shortcut is the
projection `downsample` (the paper's option B), or, without one, every other pixel and channels of zeros (option A).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fn.conv import adaptive_avg_pool2d, conv2d, conv2d_init, max_pool2d
from fn.layers import batch_norm, batch_norm_init, dropout, flatten, linear, linear_init, norm_modes, relu
from fn.models import Model
from fn.tree import Params

EXPANSION = 4  # of a bottleneck: its output has so many times its stage's width


def resnet_init(
    rng: torch.Generator,
    channels: int,
    classes: int,
    *,
    blocks: Sequence[int],
    widths: Sequence[int],
    bottleneck: bool = False,
    groups: int = 1,
    group_width: int | None = None,
    style: Literal["cifar", "imagenet"] = "imagenet",
) -> tuple[Params, Params]:
    """Stage i has blocks[i] blocks of widths[i] channels, each stage but the first halving the image.

    The 3×3 convolution of a bottleneck has `groups` of `group_width` channels in the first stage, of widths[0] unless
    given: more make it wide (Zagoruyko and Komodakis 2016), more groups a ResNeXt (Xie et al. 2017).
    """
    if not bottleneck and (groups, group_width) != (1, None):
        raise ValueError("resnet: groups and their width are of bottlenecks, which blocks of two convolutions are not")
    params: Params = {"conv1": conv2d_init(rng, channels, widths[0], 7 if style == "imagenet" else 3, bias=False)}
    state: Params = {}
    params["bn1"], state["bn1"] = batch_norm_init(widths[0])
    channels, share = widths[0], (widths[0] if group_width is None else group_width) / widths[0]
    for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        inner = int(width * share) * groups
        sizes = [inner, inner, EXPANSION * width] if bottleneck else [width, width]
        stage = f"layer{i + 1}"
        params[stage], state[stage] = {}, {}
        for j in range(count):
            project = style == "imagenet" and (channels != sizes[-1] or (i > 0 and j == 0))
            params[stage][str(j)], state[stage][str(j)] = _block_init(rng, channels, sizes, groups, project)
            channels = sizes[-1]
    params["fc"] = linear_init(rng, channels, classes, gain=1.0)
    return params, state


def _block_init(
    rng: torch.Generator, channels: int, sizes: Sequence[int], groups: int, project: bool
) -> tuple[Params, Params]:
    params: Params = {}
    state: Params = {}
    kernels = (1, 3, 1) if len(sizes) == 3 else (3, 3)
    inputs = [channels, *sizes[:-1]]
    for i, (d_in, d_out, kernel) in enumerate(zip(inputs, sizes, kernels, strict=True), start=1):
        of_groups = groups if i == len(sizes) - 1 else 1
        params[f"conv{i}"] = conv2d_init(rng, d_in, d_out, kernel, groups=of_groups, bias=False)
        params[f"bn{i}"], state[f"bn{i}"] = batch_norm_init(d_out)
    if project:
        norm, statistics = batch_norm_init(sizes[-1])
        params["downsample"] = {"0": conv2d_init(rng, channels, sizes[-1], 1, bias=False), "1": norm}
        state["downsample"] = {"1": statistics}
    return params, state


def resnet_features(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    modes: Params | None = None,
    groups: int = 1,
) -> tuple[Float[Tensor, "batch features out_height out_width"], Params]:
    """What the last stage makes of the image. `modes`: see `norm_modes`."""
    modes = norm_modes(state, train) if modes is None else modes
    new_state: Params = {}
    large = params["conv1"]["weight"].shape[-1] > 3
    x = conv2d(x, **params["conv1"], stride=2 if large else 1, padding=3 if large else 1)
    x, new_state["bn1"] = batch_norm(x, **params["bn1"], **state["bn1"], training=modes["bn1"])
    x = relu(x)
    if large:
        x = max_pool2d(x, 3, 2, 1)
    for i in range(1, len(state)):
        stage, new_state[f"layer{i}"] = f"layer{i}", {}
        for j in range(len(params[stage])):
            block, statistics, mode = (part[stage][str(j)] for part in (params, state, modes))
            stride = 2 if i > 1 and j == 0 else 1
            x, new_state[stage][str(j)] = _block(block, statistics, mode, x, stride=stride, groups=groups)
    return x, new_state


def _block(
    params: Params,
    state: Params,
    modes: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    stride: int,
    groups: int,
) -> tuple[Float[Tensor, "batch features out_height out_width"], Params]:
    """relu(shortcut(x) + convolutions(x)), each convolution normalised; all but the last have a relu of their own.

    The last but one has the stride and the groups: of a bottleneck the 3×3, as in torchvision's "v1.5".
    """
    new_state: Params = {}
    y, last = x, 3 if "conv3" in params else 2
    for i in range(1, last + 1):
        conv, bn = params[f"conv{i}"], f"bn{i}"
        slide, of_groups = (stride, groups) if i == last - 1 else (1, 1)
        y = conv2d(y, **conv, stride=slide, padding=conv["weight"].shape[-1] // 2, groups=of_groups)
        y, new_state[bn] = batch_norm(y, **params[bn], **state[bn], training=modes[bn])
        y = relu(y) if i < last else y
    if "downsample" in params:
        x = conv2d(x, **params["downsample"]["0"], stride=stride)
        norm = {**params["downsample"]["1"], **state["downsample"]["1"]}
        x, statistics = batch_norm(x, **norm, training=modes["downsample"]["1"])
        new_state["downsample"] = {"1": statistics}
    else:
        zeros = y.shape[1] - x.shape[1]
        x = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, zeros // 2, zeros - zeros // 2))
    return relu(x + y), new_state


def resnet_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    modes: Params | None = None,
    groups: int = 1,
    dropout_p: float = 0.0,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    """Logits: the features' means over the image, dropout, and a linear layer"""
    x, state = resnet_features(params, state, x, train=train, modes=modes, groups=groups)
    x = dropout(flatten(adaptive_avg_pool2d(x, 1)), dropout_p, train, key=key)
    return linear(x, **params["fc"]), state


IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


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
