"""A small convolutional network: blocks of convolution, max pooling, batch norm and relu, then a linear layer."""

from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fn.conv import conv2d, conv2d_init, max_pool2d
from fn.domains import Count, Counts, ImageShape, Natural, Probability, count_entries, require_held
from fn.layers import batch_norm, batch_norm_init, dropout, flatten, linear, linear_init, norm_modes, relu
from fn.models import Model
from fn.tree import Params


def cnn_init(
    rng: torch.Generator, shape: ImageShape, classes: Count, widths: Counts = (32, 64, 64)
) -> tuple[Params, Params]:
    """Draw the parameters and the state for images (channels, height, width): a block per width.

    Every block but the last halves the image. ValueError for an image too small to be halved so often.

    >>> params, state = cnn_init(torch.Generator().manual_seed(0), (1, 8, 8), 10, widths=(4, 6))
    >>> params["conv2"]["weight"].shape, params["fc"]["weight"].shape
    (torch.Size([6, 4, 3, 3]), torch.Size([10, 96]))
    """
    channels, height, width = shape
    params: Params = {}
    state: Params = {}
    for i, out_channels in enumerate(widths, start=1):
        params[f"conv{i}"] = conv2d_init(rng, channels, out_channels, 3, bias=False)
        params[f"bn{i}"], state[f"bn{i}"] = batch_norm_init(out_channels)
        channels = out_channels
    halvings = len(widths) - 1
    if halvings < 0:
        raise ValueError("cnn: widths hold no block")
    if not min(height, width) >> halvings:
        raise ValueError(f"cnn: halved {halvings} times, an image of {height}×{width} has nothing left")
    params["fc"] = linear_init(rng, channels * (height >> halvings) * (width >> halvings), classes, gain=1.0)
    return params, state


def cnn_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    modes: Params | None = None,
    blocks: Natural,
    dropout_p: Probability = 0.0,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    """Return (logits, new state), with dropout before the last layer. `modes`: see `norm_modes`.

    Pooling stands before batch norm and relu, which then have a quarter of the work.

    >>> params, state = cnn_init(torch.Generator().manual_seed(0), (1, 8, 8), 10, widths=(4, 6))
    >>> logits, state = cnn_apply(params, state, torch.ones(2, 1, 8, 8), train=True, blocks=2)
    >>> logits.shape
    torch.Size([2, 10])
    """
    require_held("cnn: blocks", blocks, count_entries(params, "conv"))
    modes = norm_modes(state, train) if modes is None else modes
    new_state: Params = {}
    for i in range(1, blocks + 1):
        x = conv2d(x, **params[f"conv{i}"], padding="same")
        if i < blocks:
            x = max_pool2d(x, 2)
        x, new_state[f"bn{i}"] = batch_norm(x, **params[f"bn{i}"], **state[f"bn{i}"], training=modes[f"bn{i}"])
        x = relu(x)
    x = dropout(flatten(x), dropout_p, train, key=key)
    return linear(x, **params["fc"]), new_state


def cnn(shape: ImageShape, classes: Count, *, widths: Counts = (32, 64, 64), dropout_p: Probability = 0.0) -> Model:
    """Return the model of images (channels, height, width), with a block per width.

    >>> params, state = cnn((1, 8, 8), 10, widths=(4, 6)).init(torch.Generator().manual_seed(0))
    >>> params.keys()
    dict_keys(['conv1', 'bn1', 'conv2', 'bn2', 'fc'])
    """
    init = partial(cnn_init, shape=shape, classes=classes, widths=widths)
    return Model(init, partial(cnn_apply, blocks=len(widths), dropout_p=dropout_p))
