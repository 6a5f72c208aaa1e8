"""The transformer: one encoder, which reads images as patches and, with a causal mask, is a language model."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from fn.attention import multi_head_attention, multi_head_attention_init
from fn.conv import patches
from fn.layers import dropout, embedding, embedding_init, gelu, layer_norm, layer_norm_init, linear, linear_init
from fn.models import Model
from fn.positions import Positions, add_positions
from fn.rng import fold_in
from fn.tree import Params


def encoder_layer(
    x: Float[Tensor, "*batch seq d_model"],
    self_attn: Params,
    linear1: Params,
    linear2: Params,
    norm1: Params,
    norm2: Params,
    *,
    heads: int,
    train: bool = False,
    key: Int64[Tensor, ""] | None = None,
    dropout_p: float = 0.0,
    norm_first: bool = True,
    activation: Callable = gelu,
    attn_mask: Bool[Tensor, "... #seq #seq"] | Float[Tensor, "... #seq #seq"] | None = None,
    **attention: Any,
) -> tuple[Float[Tensor, "*batch seq d_model"], Float[Tensor, "*batch heads seq seq"] | None]:
    """Pre-norm: x ← x + attention(norm₁(x)), x ← x + linear₂(activation(linear₁(norm₂(x)))); and the weights.

    Post-norm, `norm_first=False`: x ← norm₁(x + attention(x)), x ← norm₂(x + linear₂(…(x))), as first published. The
    parameters are those of nn.TransformerEncoderLayer, by name. `attention` goes to fn.attention.multi_head_attention.
    Vaswani et al. 2017; Xiong et al. 2020, on where the norm belongs.
    """
    keys = [None if key is None else fold_in(key, i) for i in range(4)]
    p = dropout_p if train else 0.0
    width = [x.shape[-1]]

    h = layer_norm(x, width, **norm1) if norm_first else x
    h, weights = multi_head_attention(
        h, h, h, heads, **self_attn, attn_mask=attn_mask, dropout_p=p, dropout_key=keys[0], **attention
    )
    x = x + dropout(h, p, key=keys[1])
    x = x if norm_first else layer_norm(x, width, **norm1)

    h = layer_norm(x, width, **norm2) if norm_first else x
    h = linear(dropout(activation(linear(h, **linear1)), p, key=keys[2]), **linear2)
    x = x + dropout(h, p, key=keys[3])
    return x if norm_first else layer_norm(x, width, **norm2), weights


def encoder(
    x: Float[Tensor, "*batch seq d_model"],
    layers: Params,
    norm: Params | None = None,
    *,
    key: Int64[Tensor, ""] | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "*batch seq d_model"], Float[Tensor, "layers *batch heads seq seq"] | None]:
    """Layer after layer, each with the `options` of `encoder_layer`, then a last norm; and the weights if asked for.

    The parameters are those of nn.TransformerEncoder, by name.
    """
    weights = []
    for i in range(len(layers)):
        layer_key = None if key is None else fold_in(key, i)
        x, layer_weights = encoder_layer(x, **layers[str(i)], key=layer_key, **options)
        weights.append(layer_weights)
    x = x if norm is None else layer_norm(x, [x.shape[-1]], **norm)
    return x, torch.stack(weights) if options.get("need_weights") else None


def encoder_init(rng: torch.Generator, d_model: int, layers: int, heads: int, d_ff: int) -> Params:
    """What is added to the residual stream starts 1/√(2 · layers) as large, as 2 · layers of it add up: GPT-2's way."""
    if d_model % heads:
        raise ValueError(f"transformer: {heads} heads do not divide a width of {d_model}")
    gain = 1 / math.sqrt(2 * layers)
    return {
        "layers": {
            str(i): {
                "self_attn": multi_head_attention_init(rng, d_model, gain=gain),
                "linear1": linear_init(rng, d_model, d_ff),
                "linear2": linear_init(rng, d_ff, d_model, gain=gain),
                "norm1": layer_norm_init([d_model]),
                "norm2": layer_norm_init([d_model]),
            }
            for i in range(layers)
        },
        "norm": layer_norm_init([d_model]),
    }


def _positions_init(rng: torch.Generator, length: int, d_model: int, positions: Positions) -> Params:
    return {"positions": embedding_init(rng, length, d_model, std=0.02)} if positions == "learned" else {}


def language_model_init(
    rng: torch.Generator,
    length: int,
    classes: int,
    *,
    d_model: int,
    layers: int,
    heads: int,
    d_ff: int,
    positions: Positions,
) -> tuple[Params, Params]:
    """For sequences of up to `length` tokens, each one of `classes`"""
    params = {"embedding": embedding_init(rng, classes, d_model, std=0.02)}
    params |= _positions_init(rng, length, d_model, positions)
    return params | {"encoder": encoder_init(rng, d_model, layers, heads, d_ff)}, {}


def language_model_apply(
    params: Params,
    state: Params,
    x: Int[Tensor, "batch seq"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    positions: Positions = "learned",
    **options: Any,
) -> tuple[Float[Tensor, "batch classes seq"] | tuple[Float[Tensor, "batch classes seq"], Tensor], Params]:
    """Logits of the token after each one, from it and those before it, classes second as cross-entropy has them.

    The last layer is the embedding again: a class scores by the product of its vector with what the encoder says. With
    `need_weights`, the output is (logits, weights): (layers, batch, heads, seq, seq).
    """
    h = add_positions(embedding(x, **params["embedding"]), positions, **params.get("positions", {}))
    options |= {"train": train, "key": key, "rotary": positions == "rotary", "is_causal": True}
    h, weights = encoder(h, **params["encoder"], **options)
    logits = rearrange(linear(h, **params["embedding"]), "batch seq classes -> batch classes seq")
    return (logits if weights is None else (logits, weights)), state


def vision_transformer_init(
    rng: torch.Generator,
    shape: Sequence[int],
    classes: int,
    *,
    patch_size: int,
    d_model: int,
    layers: int,
    heads: int,
    d_ff: int,
    positions: Positions,
) -> tuple[Params, Params]:
    """For images of `shape` (channels, height, width)"""
    *_, seq, d_patch = patches(torch.empty(1, *shape), patch_size).shape
    params = {"patches": linear_init(rng, d_patch, d_model, gain=1.0)}
    params |= _positions_init(rng, seq, d_model, positions)
    encoder = encoder_init(rng, d_model, layers, heads, d_ff)
    return params | {"encoder": encoder, "head": linear_init(rng, d_model, classes, gain=1.0)}, {}


def vision_transformer_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    patch_size: int = 4,
    positions: Positions = "learned",
    **options: Any,
) -> tuple[Float[Tensor, "batch classes"] | tuple[Float[Tensor, "batch classes"], Tensor], Params]:
    """Logits from the mean over the patches of what the encoder makes of them. Dosovitskiy et al. 2021.

    The mean in place of a class token: Beyer et al. 2022. With `need_weights`, the output is (logits, weights).
    """
    h = add_positions(linear(patches(x, patch_size), **params["patches"]), positions, **params.get("positions", {}))
    options |= {"train": train, "key": key, "rotary": positions == "rotary"}
    h, weights = encoder(h, **params["encoder"], **options)
    logits = linear(h.mean(dim=-2), **params["head"])
    return (logits if weights is None else (logits, weights)), state


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
