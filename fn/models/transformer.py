"""The transformer: one encoder, which reads images as patches, and with a causal mask is a language model."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from fn.attention import multi_head_attention, multi_head_attention_init, scaled_dot_product_attention
from fn.conv import patches
from fn.domains import Count, Counts, ImageShape, Probability, count_entries, require_held
from fn.layers import dropout, embedding, embedding_init, gelu, layer_norm, layer_norm_init, linear, linear_init
from fn.models import Model
from fn.positions import Positions, add_positions
from fn.rng import fold_in
from fn.tree import Params


def feed_forward(
    x: Float[Tensor, "*batch d_model"],
    linear1: Params,
    linear2: Params,
    *,
    activation: Callable = gelu,
    dropout_p: Probability = 0.0,
    key: Int64[Tensor, ""] | None = None,
) -> Float[Tensor, "*batch d_model"]:
    """Return linear₂(dropout(activation(linear₁(x)))), for each position by itself. The parameters: `encoder_layer`.

    >>> layer = encoder_init(torch.Generator().manual_seed(0), 8, layers=1, heads=2, d_ff=32)["layers"]["0"]
    >>> feed_forward(torch.randn(3, 5, 8), layer["linear1"], layer["linear2"]).shape
    torch.Size([3, 5, 8])
    """
    h = linear(x, **linear1)  # batch, seq, d_ff
    h = activation(h)
    h = dropout(h, dropout_p, key=key)
    return linear(h, **linear2)


def encoder_layer(
    x: Float[Tensor, "*batch seq d_model"],
    self_attn: Params,
    linear1: Params,
    linear2: Params,
    norm1: Params,
    norm2: Params,
    *,
    heads: Count,
    train: bool = False,
    key: Int64[Tensor, ""] | None = None,
    dropout_p: Probability = 0.0,
    norm_first: bool = True,
    activation: Callable = gelu,
    attn_mask: Bool[Tensor, "... #seq #seq"] | Float[Tensor, "... #seq #seq"] | None = None,
    is_causal: bool = False,
    rotary: bool = False,
    need_weights: bool = False,
    attention: Callable = scaled_dot_product_attention,
) -> tuple[Float[Tensor, "*batch seq d_model"], Float[Tensor, "*batch heads seq seq"] | None]:
    """Return (x, attention weights if `need_weights`) after the two residual steps of a layer.

    Pre-norm: x ← x + attention(norm₁(x)),  x ← x + feed_forward(norm₂(x)).
    Post-norm, `norm_first=False`, as first published: x ← norm₁(x + attention(x)),  x ← norm₂(x + feed_forward(x)).
    The parameters are those of nn.TransformerEncoderLayer, by name; masks, `rotary` and `attention` are arguments of
    `multi_head_attention`. Vaswani et al. 2017; Xiong et al. 2020, on where the norm belongs.

    >>> layer = encoder_init(torch.Generator().manual_seed(0), 8, layers=1, heads=2, d_ff=32)["layers"]["0"]
    >>> y, weights = encoder_layer(torch.randn(3, 5, 8), **layer, heads=2, is_causal=True, need_weights=True)
    >>> y.shape, weights.shape
    (torch.Size([3, 5, 8]), torch.Size([3, 2, 5, 5]))
    """
    weights_key, attended_key, hidden_key, mlp_key = (None if key is None else fold_in(key, i) for i in range(4))
    p, shape = dropout_p if train else 0.0, [x.shape[-1]]
    attend = partial(multi_head_attention, **self_attn, heads=heads, rotary=rotary, attention=attention, dropout_p=p)
    attend = partial(attend, attn_mask=attn_mask, is_causal=is_causal, need_weights=need_weights)
    mlp = partial(feed_forward, linear1=linear1, linear2=linear2, activation=activation, dropout_p=p, key=hidden_key)

    if norm_first:
        h = layer_norm(x, shape, **norm1)
        h, weights = attend(h, h, h, dropout_key=weights_key)
        x = x + dropout(h, p, key=attended_key)
        h = layer_norm(x, shape, **norm2)
        x = x + dropout(mlp(h), p, key=mlp_key)
    else:
        h, weights = attend(x, x, x, dropout_key=weights_key)
        x = layer_norm(x + dropout(h, p, key=attended_key), shape, **norm1)
        x = layer_norm(x + dropout(mlp(x), p, key=mlp_key), shape, **norm2)
    return x, weights


def encoder(
    x: Float[Tensor, "*batch seq d_model"],
    layers: Params,
    norm: Params | None = None,
    *,
    num_layers: Count,
    key: Int64[Tensor, ""] | None = None,
    need_weights: bool = False,
    **options: Any,
) -> tuple[Float[Tensor, "*batch seq d_model"], Float[Tensor, "layers *batch heads seq seq"] | None]:
    """Return (x, attention weights of every layer if `need_weights`) after `num_layers` layers and a last norm.

    The parameters are those of nn.TransformerEncoder, by name; `options` are those of `encoder_layer`.

    >>> params = encoder_init(torch.Generator().manual_seed(0), 8, layers=3, heads=2, d_ff=32)
    >>> y, weights = encoder(torch.randn(4, 5, 8), **params, num_layers=3, heads=2, need_weights=True)
    >>> y.shape, weights.shape
    (torch.Size([4, 5, 8]), torch.Size([3, 4, 2, 5, 5]))
    """
    require_held("encoder: num_layers (layers of a model)", num_layers, count_entries(layers))
    weights = []
    for i in range(num_layers):
        layer_key = None if key is None else fold_in(key, i)
        x, layer_weights = encoder_layer(x, **layers[str(i)], key=layer_key, need_weights=need_weights, **options)
        weights.append(layer_weights)
    x = x if norm is None else layer_norm(x, [x.shape[-1]], **norm)
    return x, torch.stack(weights) if need_weights else None


def encoder_init(rng: torch.Generator, d_model: Count, layers: Count, heads: Count, d_ff: Count) -> Params:
    """Draw the parameters of `layers` layers and a norm. ValueError unless the heads divide d_model.

    The 2 · layers terms that are added to the residual stream start 1/√(2 · layers) as large, as in GPT-2.

    >>> params = encoder_init(torch.Generator().manual_seed(0), 8, layers=2, heads=2, d_ff=32)
    >>> params["layers"]["1"]["linear1"]["weight"].shape
    torch.Size([32, 8])
    """
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
    length: Count,
    classes: Count,
    *,
    d_model: Count,
    layers: Count,
    heads: Count,
    d_ff: Count,
    positions: Positions,
) -> tuple[Params, Params]:
    """Draw the parameters for sequences of up to `length` tokens, each one of `classes`; there is no state.

    >>> sizes = {"d_model": 8, "layers": 1, "heads": 2, "d_ff": 32, "positions": "learned"}
    >>> params, state = language_model_init(torch.Generator().manual_seed(0), 6, 10, **sizes)
    >>> params.keys(), params["positions"]["weight"].shape
    (dict_keys(['embedding', 'positions', 'encoder']), torch.Size([6, 8]))
    """
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
    layers: Count,
    heads: Count,
    positions: Positions = "learned",
    dropout_p: Probability = 0.0,
    attention: Callable = scaled_dot_product_attention,
    need_weights: bool = False,
) -> tuple[Float[Tensor, "batch classes seq"] | tuple[Float[Tensor, "batch classes seq"], Tensor], Params]:
    """Return (logits of the token after each one, state): from that token and those before it, classes second.

    The last layer is the embedding again: a class scores by the product of its vector with the encoder's output. With
    `need_weights`, the output is (logits, weights): (layers, batch, heads, seq, seq).

    >>> model = transformer((6,), 10, d_model=8)
    >>> params, state = model.init(torch.Generator().manual_seed(0))
    >>> language_model_apply(params, state, torch.zeros(3, 5).long(), train=False, layers=2, heads=4)[0].shape
    torch.Size([3, 10, 5])
    """
    h = embedding(x, **params["embedding"])
    h = add_positions(h, positions, **(params["positions"] if positions == "learned" else {}))
    h, weights = encoder(
        h,
        **params["encoder"],
        num_layers=layers,
        heads=heads,
        train=train,
        key=key,
        dropout_p=dropout_p,
        is_causal=True,
        rotary=positions == "rotary",
        need_weights=need_weights,
        attention=attention,
    )
    logits = rearrange(linear(h, **params["embedding"]), "batch seq classes -> batch classes seq")
    return (logits if weights is None else (logits, weights)), state


def vision_transformer_init(
    rng: torch.Generator,
    shape: ImageShape,
    classes: Count,
    *,
    patch_size: Count,
    d_model: Count,
    layers: Count,
    heads: Count,
    d_ff: Count,
    positions: Positions,
) -> tuple[Params, Params]:
    """Draw the parameters for images of `shape` (channels, height, width); there is no state.

    >>> sizes = {"patch_size": 4, "d_model": 8, "layers": 1, "heads": 2, "d_ff": 32, "positions": "learned"}
    >>> params, state = vision_transformer_init(torch.Generator().manual_seed(0), (3, 8, 8), 10, **sizes)
    >>> params["patches"]["weight"].shape, params["positions"]["weight"].shape
    (torch.Size([8, 48]), torch.Size([4, 8]))
    """
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
    layers: Count,
    heads: Count,
    patch_size: Count = 4,
    positions: Positions = "learned",
    dropout_p: Probability = 0.0,
    attention: Callable = scaled_dot_product_attention,
    need_weights: bool = False,
) -> tuple[Float[Tensor, "batch classes"] | tuple[Float[Tensor, "batch classes"], Tensor], Params]:
    """Return (logits, state), from the mean over the patches of the encoder's output. Dosovitskiy et al. 2021.

    The mean in place of a class token: Beyer et al. 2022. With `need_weights`, the output is (logits, weights).

    >>> model = transformer((3, 8, 8), 10, patch_size=4)
    >>> params, state = model.init(torch.Generator().manual_seed(0))
    >>> vision_transformer_apply(params, state, torch.ones(2, 3, 8, 8), train=False, layers=2, heads=4)[0].shape
    torch.Size([2, 10])
    """
    h = patches(x, patch_size)
    require_held(
        f"transformer: with patch_size {patch_size} the width of a patch",
        h.shape[-1],
        params["patches"]["weight"].shape[1],
    )
    h = linear(h, **params["patches"])
    h = add_positions(h, positions, **(params["positions"] if positions == "learned" else {}))
    h, weights = encoder(
        h,
        **params["encoder"],
        num_layers=layers,
        heads=heads,
        train=train,
        key=key,
        dropout_p=dropout_p,
        rotary=positions == "rotary",
        need_weights=need_weights,
        attention=attention,
    )
    logits = linear(h.mean(dim=-2), **params["head"])
    return (logits if weights is None else (logits, weights)), state


def transformer(
    shape: Counts,
    classes: Count,
    *,
    d_model: Count = 64,
    layers: Count = 2,
    heads: Count = 4,
    positions: Positions = "learned",
    patch_size: Count | None = None,
    dropout_p: Probability = 0.0,
    attention: Callable = scaled_dot_product_attention,
) -> Model:
    """Return the model of images (channels, height, width), or for a shape (seq,) a language model of `classes` tokens.

    Patches, unless given, are the smallest squares of more than a pixel of which there are at most 64. `attention`
    computes the attention of every layer: see fn.attention. ValueError for an image without such squares,
    or another shape.

    >>> model = transformer((6,), 10, d_model=8, layers=1)
    >>> params, state = model.init(torch.Generator().manual_seed(0))
    >>> model.apply(params, state, torch.zeros(3, 6).long(), train=False)[0].shape
    torch.Size([3, 10, 6])
    """
    sizes = {"d_model": d_model, "layers": layers, "heads": heads, "d_ff": 4 * d_model, "positions": positions}
    options: dict[str, Any] = {"layers": layers, "heads": heads, "positions": positions}
    options |= {"dropout_p": dropout_p, "attention": attention}
    if len(shape) == 1:
        init = partial(language_model_init, length=shape[0], classes=classes, **sizes)
        return Model(init, partial(language_model_apply, **options))
    if len(shape) != 3:
        raise ValueError(f"transformer: shape {tuple(shape)} is neither (channels, height, width) nor (seq,)")
    options["patch_size"] = _patch_size(*shape[1:]) if patch_size is None else patch_size
    init = partial(vision_transformer_init, shape=shape, classes=classes, patch_size=options["patch_size"], **sizes)
    return Model(init, partial(vision_transformer_apply, **options))


def _patch_size(height: int, width: int) -> int:
    side = math.gcd(height, width)
    fits = [n for n in range(2, side + 1) if side % n == 0 and height * width <= 64 * n * n]
    if not fits:
        raise ValueError(f"transformer: no squares divide an image of {height}×{width} into at most 64 patches")
    return fits[0]
