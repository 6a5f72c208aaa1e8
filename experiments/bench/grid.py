"""Networks drawn at random, for `just bench --grid N`: each as a model of ours, an nn.Module, and in JAX.

A network is a function of (seed, index) alone: that of seed 0 and index 7 is the workload "grid 0 7".
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from random import Random
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from experiments.bench import gpt
from experiments.bench.jax_models import jax_drawn, jax_mlp
from experiments.bench.torch_models import mlp_module, sequential
from experiments.bench.workloads import GRID, Workload
from fn.attention import native_attention
from fn.conv import conv2d, conv2d_init, max_pool2d
from fn.layers import batch_norm, batch_norm_init, flatten, linear, linear_init, relu
from fn.models import Model
from fn.models.mlp import mlp
from fn.models.transformer import transformer
from fn.rng import generator
from fn.tree import Params

CLASSES = 10
MOST = 1e9
"""multiplications of a forward pass, so that no network takes a minute of the grid"""


class Conv(NamedTuple):
    """A convolution, a batch norm or none, a ReLU, a max pooling of 2 or none."""

    channels: int
    kernel: int
    stride: int
    padding: int
    groups: int
    norm: bool
    pool: bool

    def size(self, size: int) -> int:
        """Return the side of the output, for an input of this side."""
        return ((size + 2 * self.padding - self.kernel) // self.stride + 1) // (2 if self.pool else 1)

    def __str__(self) -> str:
        said = [f"{self.channels} of {self.kernel}×{self.kernel}"]
        said += [f"stride {self.stride}"] * (self.stride > 1) + ["unpadded"] * (not self.padding and self.kernel > 1)
        said += [f"{self.groups} groups"] * (self.groups > 1) + ["norm"] * self.norm + ["pool"] * self.pool
        return " ".join(said)


class Network(NamedTuple):
    """One of three kinds: it has convolutions, hidden layers, or the width of a transformer."""

    batch: int
    shape: tuple[int, ...]
    """of an image, or the length of a text"""
    convs: tuple[Conv, ...] = ()
    hidden: tuple[int, ...] = ()
    d_model: int = 0

    def __str__(self) -> str:
        kind = "conv " if self.convs else "mlp " if self.hidden else "transformer of width "
        layers = ", ".join(map(str, self.convs or self.hidden)) or str(self.d_model)
        return f"{kind}{layers} on {self.batch} of {'×'.join(map(str, self.shape))}"


def draw(seed: int, index: int) -> Network:
    """Return a network: half of them are convolutional, a third perceptrons, the others transformers."""
    rng = Random(f"{seed} {index}")
    network = rng.choice([_draw_convs, _draw_convs, _draw_convs, _draw_mlp, _draw_mlp, _draw_transformer])(rng)
    while _multiplications(network) > MOST and network.batch > 1:
        network = network._replace(batch=network.batch // 2)
    return network


def _draw_convs(rng: Random) -> Network:
    side = start = rng.choice((8, 14, 20, 28, 32))
    channels = rng.choice((1, 3))
    shape, norm, convs = (channels, start, start), rng.random() < 0.6, []
    for _ in range(rng.randint(1, 4)):
        out_channels = rng.randint(3, 24) * 4
        kernel = rng.choice([size for size in range(1, 8) if size <= side])
        conv = Conv(
            out_channels,
            kernel,
            stride=rng.choice((1, 1, 1, 2)),
            padding=rng.choice((kernel // 2, kernel // 2, 0)),
            groups=rng.choice([n for n in (1, 1, 1, 2, 4) if channels % n == out_channels % n == 0]),
            norm=norm,
            pool=rng.random() < 0.4,
        )
        if conv.size(side) < 2:
            conv = conv._replace(stride=1, padding=kernel // 2, pool=False)
        convs.append(conv)
        channels, side = out_channels, conv.size(side)
    return Network(_draw_batch(rng), shape, convs=tuple(convs))


def _draw_mlp(rng: Random) -> Network:
    hidden = tuple(rng.randint(3, 100) * 8 + rng.choice((0, 0, 3)) for _ in range(rng.randint(1, 4)))
    return Network(_draw_batch(rng), (rng.randint(8, 800),), hidden=hidden)


def _draw_transformer(rng: Random) -> Network:
    return Network(min(32, _draw_batch(rng)), (rng.choice((16, 40, 64, 100)),), d_model=4 * rng.randint(4, 32))


def _draw_batch(rng: Random) -> int:
    return round(2 ** rng.uniform(0, 9))


def _multiplications(network: Network) -> float:
    """Return those of a forward pass, about."""
    if network.d_model:
        return network.batch * network.shape[0] * gpt.LAYERS * 12 * network.d_model**2
    sizes = (prod(network.shape), *network.hidden)
    each = sum(a * b for a, b in zip(sizes, network.hidden, strict=False))
    channels, side = network.shape[0], network.shape[-1]
    for conv in network.convs:
        outputs = conv.channels * (conv.size(side) * (2 if conv.pool else 1)) ** 2
        each += outputs * channels // conv.groups * conv.kernel**2
        channels, side = conv.channels, conv.size(side)
    return network.batch * each


def workload(name: str) -> Workload:
    """Return the row of a network, whose functions stand in it where other rows name theirs."""
    seed, index = map(int, name.removeprefix(GRID).split())
    network = draw(seed, index)
    return Workload(
        model=partial(model, network),
        module=partial(module, network),
        jax=jax_apply(network),
        equinox="",
        data=partial(data, network),
        batch=network.batch,
        option="",
        sizes=(),
        scales=(),
        images=bool(network.convs),
        module_target=1.0,
        jax_target=1.0,
        classes=gpt.CLASSES if network.d_model else CLASSES,
    )


def data(network: Network, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noise and random classes; for a transformer random tokens, and each one's next."""
    rng = generator(seed)
    if network.d_model:
        tokens = torch.randint(gpt.CLASSES, (batch, network.shape[0] + 1), generator=rng)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return torch.randn(batch, *network.shape, generator=rng), torch.randint(CLASSES, (batch,), generator=rng)


def model(network: Network, shape: Sequence[int], classes: int) -> Model:
    if network.d_model:
        options = partial(transformer, d_model=network.d_model, layers=gpt.LAYERS, heads=gpt.HEADS)
        return options(shape, classes, attention=native_attention)
    if network.hidden:
        return mlp(shape, classes, hidden=network.hidden)
    return Model(partial(conv_init, network=network), partial(conv_apply, network=network))


def jax_apply(network: Network) -> Callable[..., Any]:
    """Return f(params, state, x) -> (logits, state) in JAX."""
    if network.d_model:
        return gpt.jax_apply
    return jax_mlp if network.hidden else partial(jax_drawn, convs=network.convs)


def conv_init(rng: torch.Generator, network: Network) -> tuple[Params, Params]:
    params: Params = {}
    state: Params = {}
    channels, side = network.shape[0], network.shape[-1]
    for i, conv in enumerate(network.convs, start=1):
        params[f"conv{i}"] = conv2d_init(
            rng, channels, conv.channels, conv.kernel, groups=conv.groups, bias=not conv.norm
        )
        if conv.norm:
            params[f"bn{i}"], state[f"bn{i}"] = batch_norm_init(conv.channels)
        channels, side = conv.channels, conv.size(side)
    params["fc"] = linear_init(rng, channels * side * side, CLASSES, gain=1.0)
    return params, state


def conv_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Tensor | None = None,
    network: Network,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    new_state: Params = {}
    for i, conv in enumerate(network.convs, start=1):
        x = conv2d(x, **params[f"conv{i}"], stride=conv.stride, padding=conv.padding, groups=conv.groups)
        if conv.norm:
            x, new_state[f"bn{i}"] = batch_norm(x, **params[f"bn{i}"], **state[f"bn{i}"], training=train)
        x = relu(x)
        if conv.pool:
            x = max_pool2d(x, 2)
    return linear(flatten(x), **params["fc"]), new_state


def module(network: Network, params: Params) -> nn.Module:
    if network.d_model:
        return gpt.GPT(network.d_model, seq=network.shape[0])
    if network.hidden:
        return mlp_module(params)
    layers: dict[str, nn.Module] = {}
    channels = network.shape[0]
    for i, conv in enumerate(network.convs, start=1):
        options = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups, "bias": not conv.norm}
        layers[f"conv{i}"] = nn.Conv2d(channels, conv.channels, conv.kernel, **options)
        if conv.norm:
            layers[f"bn{i}"] = nn.BatchNorm2d(conv.channels)
        layers[f"relu{i}"] = nn.ReLU()
        if conv.pool:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        channels = conv.channels
    return sequential(layers | {"flatten": nn.Flatten(), "fc": nn.Linear(params["fc"]["weight"].shape[1], CLASSES)})
