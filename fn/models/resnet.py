"""Residual networks: stages of blocks, each of which adds to its input. He et al. 2016; names as in torchvision's.

A network is said by its arguments: the stem, the kind of block, how many blocks each stage has, the widths, and what
a shortcut does where a block changes the shape. `resnet` binds them for the published depths.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fn.conv import adaptive_avg_pool2d, conv2d, conv2d_init, max_pool2d
from fn.domains import Count, Counts, ImageShape, Naturals, Positive, Probability, count_entries, require_held
from fn.layers import batch_norm, batch_norm_init, dropout, flatten, linear, linear_init, norm_modes, relu
from fn.models import Model
from fn.tree import Params

Shortcut = Literal["identity", "projection", "padding"]
"""x itself; a strided 1×1 convolution, the paper's option B; every other pixel and channels of zeros, its option A"""

EXPANSION = 4
"""of a bottleneck: its output channels over its width"""


class Stem(NamedTuple):
    """The first convolution; with `pool`, a 3×3 max pooling of stride 2 follows."""

    kernel: Count
    stride: Count
    pool: bool


class Block(NamedTuple):
    init: Callable
    """init(rng, channels, width, *, shortcut) -> (params, state)"""
    apply: Callable
    """apply(params, state, x, *, modes, stride, shortcut) -> (output, state)"""
    expansion: Count
    """output channels over width"""


def _project_init(rng: torch.Generator, channels: Count, out_channels: Count) -> tuple[Params, Params]:
    params, state = batch_norm_init(out_channels)
    return {"0": conv2d_init(rng, channels, out_channels, 1, bias=False), "1": params}, {"1": state}


def _project(
    params: Params, state: Params, x: Float[Tensor, "batch channels height width"], *, modes: Params, stride: Count
) -> tuple[Float[Tensor, "batch out_channels out_height out_width"], Params]:
    """Return the shortcut of option B, bn(conv(x)), and the new state."""
    x = conv2d(x, **params["0"], stride=stride)
    x, statistics = batch_norm(x, **params["1"], **state["1"], training=modes["1"])
    return x, {"1": statistics}


def _pad(
    x: Float[Tensor, "batch channels height width"], out_channels: Count, stride: Count
) -> Float[Tensor, "batch {out_channels} out_height out_width"]:
    """Return the shortcut of option A: every `stride`-th pixel, and as many channels of zeros before as after."""
    zeros = out_channels - x.shape[1]
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, zeros // 2, zeros - zeros // 2))


def basic_block_init(
    rng: torch.Generator, channels: Count, width: Count, *, shortcut: Shortcut = "identity"
) -> tuple[Params, Params]:
    """Draw the parameters and the state of `basic_block`.

    >>> params, state = basic_block_init(torch.Generator().manual_seed(0), 4, 8, shortcut="projection")
    >>> params["conv1"]["weight"].shape, params["conv2"]["weight"].shape
    (torch.Size([8, 4, 3, 3]), torch.Size([8, 8, 3, 3]))
    """
    params: Params = {}
    state: Params = {}
    params["conv1"] = conv2d_init(rng, channels, width, 3, bias=False)
    params["bn1"], state["bn1"] = batch_norm_init(width)
    params["conv2"] = conv2d_init(rng, width, width, 3, bias=False)
    params["bn2"], state["bn2"] = batch_norm_init(width)
    if shortcut == "projection":
        params["downsample"], state["downsample"] = _project_init(rng, channels, width)
    return params, state


def basic_block(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    modes: Params,
    stride: Count = 1,
    shortcut: Shortcut = "identity",
) -> tuple[Float[Tensor, "batch out_channels out_height out_width"], Params]:
    """Return relu(shortcut(x) + bn₂(conv₂(relu(bn₁(conv₁(x)))))) and the new state.

    >>> params, state = basic_block_init(torch.Generator().manual_seed(0), 4, 8)
    >>> y, _ = basic_block(params, state, torch.ones(2, 4, 6, 6), modes=norm_modes(state, True), shortcut="padding")
    >>> y.shape
    torch.Size([2, 8, 6, 6])
    """
    new_state: Params = {}
    y = conv2d(x, **params["conv1"], stride=stride, padding=1)  # batch, width, height / stride, width / stride
    y, new_state["bn1"] = batch_norm(y, **params["bn1"], **state["bn1"], training=modes["bn1"])
    y = relu(y)
    y = conv2d(y, **params["conv2"], padding=1)
    y, new_state["bn2"] = batch_norm(y, **params["bn2"], **state["bn2"], training=modes["bn2"])

    if shortcut == "projection":
        branch, branch_state, branch_modes = params["downsample"], state["downsample"], modes["downsample"]
        x, new_state["downsample"] = _project(branch, branch_state, x, modes=branch_modes, stride=stride)
    elif shortcut == "padding":
        x = _pad(x, y.shape[1], stride)
    return relu(x + y), new_state


def bottleneck_init(
    rng: torch.Generator,
    channels: Count,
    width: Count,
    *,
    shortcut: Shortcut = "identity",
    groups: Count = 1,
    width_ratio: Positive = 1.0,
) -> tuple[Params, Params]:
    """Draw the parameters and the state of `bottleneck`, whose 3×3 convolution has `groups` of width · width_ratio.

    A larger ratio makes it wide (Zagoruyko and Komodakis 2016), more groups a ResNeXt (Xie et al. 2017).

    >>> params, state = bottleneck_init(torch.Generator().manual_seed(0), 16, 4, groups=2, width_ratio=0.5)
    >>> [tuple(params[f"conv{i}"]["weight"].shape) for i in (1, 2, 3)]
    [(4, 16, 1, 1), (4, 2, 3, 3), (16, 4, 1, 1)]
    """
    inner, out_channels = int(width * width_ratio) * groups, EXPANSION * width
    if not inner:
        raise ValueError(f"bottleneck: width_ratio {width_ratio} leaves no channel of a width of {width}")
    params: Params = {}
    state: Params = {}
    params["conv1"] = conv2d_init(rng, channels, inner, 1, bias=False)
    params["bn1"], state["bn1"] = batch_norm_init(inner)
    params["conv2"] = conv2d_init(rng, inner, inner, 3, groups=groups, bias=False)
    params["bn2"], state["bn2"] = batch_norm_init(inner)
    params["conv3"] = conv2d_init(rng, inner, out_channels, 1, bias=False)
    params["bn3"], state["bn3"] = batch_norm_init(out_channels)
    if shortcut == "projection":
        params["downsample"], state["downsample"] = _project_init(rng, channels, out_channels)
    return params, state


def bottleneck(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    modes: Params,
    stride: Count = 1,
    shortcut: Shortcut = "identity",
    groups: Count = 1,
) -> tuple[Float[Tensor, "batch out_channels out_height out_width"], Params]:
    """Return relu(shortcut(x) + bn₃(conv₃(relu(bn₂(conv₂(relu(bn₁(conv₁(x)))))))))) and the new state.

    The 3×3 convolution has the stride, as in torchvision's "v1.5"; in the paper the first 1×1 has it.

    >>> params, state = bottleneck_init(torch.Generator().manual_seed(0), 16, 4)
    >>> y, _ = bottleneck(params, state, torch.ones(2, 16, 6, 6), modes=norm_modes(state, True))
    >>> y.shape
    torch.Size([2, 16, 6, 6])
    """
    new_state: Params = {}
    y = conv2d(x, **params["conv1"])  # batch, inner, height, width
    y, new_state["bn1"] = batch_norm(y, **params["bn1"], **state["bn1"], training=modes["bn1"])
    y = relu(y)
    y = conv2d(y, **params["conv2"], stride=stride, padding=1, groups=groups)
    y, new_state["bn2"] = batch_norm(y, **params["bn2"], **state["bn2"], training=modes["bn2"])
    y = relu(y)
    y = conv2d(y, **params["conv3"])  # batch, 4 · width, height / stride, width / stride
    y, new_state["bn3"] = batch_norm(y, **params["bn3"], **state["bn3"], training=modes["bn3"])

    if shortcut == "projection":
        branch, branch_state, branch_modes = params["downsample"], state["downsample"], modes["downsample"]
        x, new_state["downsample"] = _project(branch, branch_state, x, modes=branch_modes, stride=stride)
    elif shortcut == "padding":
        x = _pad(x, y.shape[1], stride)
    return relu(x + y), new_state


IMAGENET_STEM, CIFAR_STEM = Stem(kernel=7, stride=2, pool=True), Stem(kernel=3, stride=1, pool=False)
BASIC, BOTTLENECK = Block(basic_block_init, basic_block, 1), Block(bottleneck_init, bottleneck, EXPANSION)


def _shortcut(stage: int, index: int, block: Block, changed: Shortcut) -> Shortcut:
    """Return `changed` for a block that changes the shape: a stage's first; of the first stage only if it widens."""
    return changed if index == 0 and (stage > 1 or block.expansion > 1) else "identity"


def resnet_init(
    rng: torch.Generator,
    channels: Count,
    classes: Count,
    *,
    blocks: Naturals,
    widths: Counts,
    block: Block = BASIC,
    stem: Stem = IMAGENET_STEM,
    shortcut: Shortcut = "projection",
) -> tuple[Params, Params]:
    """Draw the parameters and the state for blocks[i] blocks of width widths[i] in stage i + 1.

    ValueError unless there are as many of both, one at least.

    >>> params, state = resnet_init(torch.Generator().manual_seed(0), 3, 10, blocks=(1, 1), widths=(4, 8))
    >>> params.keys()
    dict_keys(['conv1', 'bn1', 'layer1', 'layer2', 'fc'])
    """
    if len(blocks) != len(widths) or not len(widths):
        raise ValueError(f"resnet: blocks {tuple(blocks)} and widths {tuple(widths)} are not one of each per stage")
    params: Params = {}
    state: Params = {}
    params["conv1"] = conv2d_init(rng, channels, widths[0], stem.kernel, bias=False)
    params["bn1"], state["bn1"] = batch_norm_init(widths[0])
    channels = widths[0]
    for i, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
        stage = f"layer{i}"
        params[stage], state[stage] = {}, {}
        for j in range(count):
            how = _shortcut(i, j, block, shortcut)
            params[stage][str(j)], state[stage][str(j)] = block.init(rng, channels, width, shortcut=how)
            channels = block.expansion * width
    params["fc"] = linear_init(rng, channels, classes, gain=1.0)
    return params, state


def resnet_features(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    modes: Params | None = None,
    blocks: Naturals,
    block: Block = BASIC,
    stem: Stem = IMAGENET_STEM,
    shortcut: Shortcut = "projection",
) -> tuple[Float[Tensor, "batch features out_height out_width"], Params]:
    """Return the last stage's output and the new state; each stage but the first halves the image.

    `modes`: see `norm_modes`.

    >>> params, state = resnet_init(torch.Generator().manual_seed(0), 3, 10, blocks=(1, 1), widths=(4, 8))
    >>> y, _ = resnet_features(params, state, torch.ones(2, 3, 32, 32), train=False, blocks=(1, 1))
    >>> y.shape
    torch.Size([2, 8, 4, 4])
    """
    held = [count_entries(params[f"layer{i}"]) for i in range(1, count_entries(params, "layer") + 1)]
    require_held("resnet: blocks", list(blocks), held)
    modes = norm_modes(state, train) if modes is None else modes
    new_state: Params = {}
    x = conv2d(x, **params["conv1"], stride=stem.stride, padding=stem.kernel // 2)
    x, new_state["bn1"] = batch_norm(x, **params["bn1"], **state["bn1"], training=modes["bn1"])
    x = relu(x)
    if stem.pool:
        x = max_pool2d(x, 3, 2, 1)
    for i, count in enumerate(blocks, start=1):
        stage = f"layer{i}"
        new_state[stage] = {}
        for j in range(count):
            block_params, block_state, block_modes = (part[stage][str(j)] for part in (params, state, modes))
            how = {"stride": 2 if i > 1 and j == 0 else 1, "shortcut": _shortcut(i, j, block, shortcut)}
            x, new_state[stage][str(j)] = block.apply(block_params, block_state, x, modes=block_modes, **how)
    return x, new_state


def resnet_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    modes: Params | None = None,
    dropout_p: Probability = 0.0,
    **network: Any,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    """Return (logits, new state): the features' means over the image, dropout, and a linear layer.

    `network`: the blocks, block, stem and shortcut of `resnet_features`.

    >>> params, state = resnet_init(torch.Generator().manual_seed(0), 3, 10, blocks=(1, 1), widths=(4, 8))
    >>> logits, _ = resnet_apply(params, state, torch.ones(2, 3, 32, 32), train=False, blocks=(1, 1))
    >>> logits.shape
    torch.Size([2, 10])
    """
    x, state = resnet_features(params, state, x, train=train, modes=modes, **network)
    x = dropout(flatten(adaptive_avg_pool2d(x, 1)), dropout_p, train, key=key)
    return linear(x, **params["fc"]), state


IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
IMAGENET_WIDTHS, CIFAR_WIDTHS = (64, 128, 256, 512), (16, 32, 64)


def resnet_network(depth: Count, *, stages: Count = 3) -> dict[str, Any]:
    """Return the blocks, block, stem and shortcut of the published network of this depth, for `resnet_features`.

    Depth 18, 34, 50, 101 or 152 is for ImageNet, with four stages; any other 6n + 2 from 8 on for CIFAR, with
    (depth - 2) / 6 blocks in each of its three stages. Of 50 and 152, which are both, this is the one for ImageNet;
    the one for CIFAR is `resnet_init` and `resnet_apply` with 8 or 25 blocks in each stage. The depth counts the
    convolutions and the linear layer. ValueError for another depth.

    >>> resnet_network(20)["blocks"], resnet_network(20)["stem"]
    ((3, 3, 3), Stem(kernel=3, stride=1, pool=False))
    """
    if depth in IMAGENET_BLOCKS:
        block = BASIC if depth < 50 else BOTTLENECK
        return {"blocks": IMAGENET_BLOCKS[depth], "block": block, "stem": IMAGENET_STEM, "shortcut": "projection"}
    if depth >= 8 and depth % 6 == 2:
        blocks = ((depth - 2) // 6,) * stages
        return {"blocks": blocks, "block": BASIC, "stem": CIFAR_STEM, "shortcut": "padding"}
    raise ValueError(f"resnet: the depth is one of {', '.join(map(str, IMAGENET_BLOCKS))}, or 6n + 2, not {depth}")


def resnet(
    shape: ImageShape,
    classes: Count,
    *,
    depth: Count = 8,
    widths: Counts | None = None,
    groups: Count = 1,
    width_per_group: Count | None = None,
    dropout_p: Probability = 0.0,
) -> Model:
    """Return the model of images (channels, height, width); see `resnet_network` for its depth.

    The 3×3 convolution of a bottleneck has `groups` of `width_per_group` channels in the first stage, of widths[0]
    unless given. ValueError for groups, or a width of them, of blocks that are no bottlenecks.

    >>> params, state = resnet((3, 32, 32), 10, depth=8).init(torch.Generator().manual_seed(0))
    >>> params["layer3"]["0"]["conv1"]["weight"].shape
    torch.Size([64, 32, 3, 3])
    """
    widths = widths or (IMAGENET_WIDTHS if depth in IMAGENET_BLOCKS else CIFAR_WIDTHS)
    network = resnet_network(depth, stages=len(widths))
    if (groups, width_per_group) != (1, None):
        if network["block"] is not BOTTLENECK:
            raise ValueError(
                "resnet: groups and width_per_group are of bottlenecks; blocks of two convolutions have none"
            )
        share = (widths[0] if width_per_group is None else width_per_group) / widths[0]
        draw = partial(bottleneck_init, groups=groups, width_ratio=share)
        network["block"] = BOTTLENECK._replace(init=draw, apply=partial(bottleneck, groups=groups))
    init = partial(resnet_init, channels=shape[0], classes=classes, widths=widths, **network)
    return Model(init, partial(resnet_apply, dropout_p=dropout_p, **network))


resnet20 = partial(resnet, depth=20)
