"""Attention, from one dot product to many heads, with torch.nn.functional's names and order of arguments.

A boolean mask is True where a query attends to a key, as in torch.nn.functional; in nn.MultiheadAttention it means the
opposite. A query whose keys are all masked gets zeros, and passes no gradient on. The axes of the batch broadcast:
those of queries, keys, values and mask.

Three functions compute the same, with the same arguments: `scaled_dot_product_attention` here is the equation,
`native_attention` torch's kernel, and `fn.attention_tiled.tiled_attention` a kernel to read. All take `enable_gqa`, see
`share_heads`.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import no_type_check

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fn.domains import Count, Finite, Magnitude, Natural, Probability
from fn.initializers import xavier_uniform
from fn.layers import dropout, linear, linear_init, softmax
from fn.positions import rotary_encoding
from fn.precision import half_in_float32
from fn.tree import Params


@half_in_float32("query")
def attention_scores(
    query: Float[Tensor, "*#batch queries d_head"],
    key: Float[Tensor, "*#batch keys d_head"],
    attn_mask: Bool[Tensor, "*#batch #queries #keys"] | Float[Tensor, "*#batch #queries #keys"] | None = None,
    scale: Finite | None = None,
) -> Float[Tensor, "*batch queries keys"]:
    """Return Q Kᵀ · scale, then -∞ where the mask is False, or the mask added; the scale is 1/√d_head unless given.

    Products of independent entries of variance 1 have variance d_head; unscaled, softmax would pick one key.

    >>> attention_scores(torch.ones(2, 4), torch.ones(3, 4))
    tensor([[2., 2., 2.],
            [2., 2., 2.]])
    """
    scale = 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale
    scores = einsum(query * scale, key, "... queries d_head, ... keys d_head -> ... queries keys")
    if attn_mask is None:
        return scores
    return torch.where(attn_mask, scores, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask


def causal_mask(
    queries: Natural, keys: Natural, device: torch.device | None = None
) -> Bool[Tensor, "{queries} {keys}"]:
    """Return the mask with which query i attends to keys 0 to i: itself and the past.

    >>> causal_mask(2, 3)
    tensor([[ True, False, False],
            [ True,  True, False]])
    """
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril()


@half_in_float32("query")
def attention_weights(
    query: Float[Tensor, "*#batch queries d_head"],
    key: Float[Tensor, "*#batch keys d_head"],
    attn_mask: Bool[Tensor, "*#batch #queries #keys"] | Float[Tensor, "*#batch #queries #keys"] | None = None,
    is_causal: bool = False,
    scale: Finite | None = None,
) -> Float[Tensor, "*batch queries keys"]:
    """Return softmax(Q Kᵀ / √d_head + mask) over the keys.

    ValueError for a mask beside `is_causal`, or one of float64 where the queries are not.

    >>> attention_weights(torch.ones(2, 4), torch.ones(2, 4), is_causal=True)
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000]])
    """
    _require_mask(attn_mask, is_causal, query)
    if is_causal:
        attn_mask = causal_mask(query.shape[-2], key.shape[-2], query.device)
    scores = attention_scores(query, key, attn_mask, scale)
    if scores.shape[-1] == 0:
        return scores  # no key, no weight
    if attn_mask is None or is_causal:  # no query has all its keys masked
        return softmax(scores, dim=-1)
    fully_masked = (scores == -math.inf).all(dim=-1, keepdim=True)
    return torch.where(fully_masked, 0.0, softmax(torch.where(fully_masked, 0.0, scores), dim=-1))


def _require_mask(attn_mask: Tensor | None, is_causal: bool, query: Tensor) -> None:
    if is_causal and attn_mask is not None:
        raise ValueError("attention: is_causal and attn_mask exclude each other; make one mask of them")
    if attn_mask is not None and attn_mask.dtype == torch.float64 != query.dtype:
        raise ValueError(f"attention: attn_mask is torch.float64, but the queries are {query.dtype}")


@half_in_float32("value")
def weighted_sum(
    weights: Float[Tensor, "*#batch queries keys"], value: Float[Tensor, "*#batch keys d_value"]
) -> Float[Tensor, "*batch queries d_value"]:
    """Return Σ_keys weight · value for each query.

    >>> weighted_sum(torch.tensor([[0.25, 0.75]]), torch.tensor([[0.0], [4.0]]))
    tensor([[3.]])
    """
    return einsum(weights, value, "... queries keys, ... keys d_value -> ... queries d_value")


def share_heads(attention: Callable) -> Callable:
    """Let `attention` take `enable_gqa`: each head of keys and values then serves a group of heads of queries.

    Heads are the axis before the positions. Ainslie et al. 2023, "GQA". ValueError if there are not as many heads of
    queries as of keys and of values, or several times as many.

    >>> query, key = torch.randn(8, 3, 4), torch.randn(2, 5, 4)
    >>> scaled_dot_product_attention(query, key, key, enable_gqa=True).shape
    torch.Size([8, 3, 4])
    """

    @wraps(attention)
    @no_type_check
    def shared(query, key, value, *args, enable_gqa=False, **options):
        if enable_gqa:
            key, value = (_repeat_heads(x, query) for x in (key, value))
        return attention(query, key, value, *args, **options)

    return shared


def _repeat_heads(
    x: Float[Tensor, "*batch keys d"], query: Float[Tensor, "*batch_of_queries queries d_head"]
) -> Float[Tensor, "*batch_of_all keys d"]:
    heads, own = ([0, *t.shape[:-2]][-1] for t in (query, x))
    if not own or heads % own:
        raise ValueError(f"attention: with enable_gqa {own} heads of keys or values serve no {heads} heads of queries")
    return repeat(x, "... heads keys d -> ... (heads group) keys d", group=heads // own)


@share_heads
@half_in_float32("query")
def scaled_dot_product_attention(
    query: Float[Tensor, "*#batch queries d_head"],
    key: Float[Tensor, "*#batch keys d_head"],
    value: Float[Tensor, "*#batch keys d_value"],
    attn_mask: Bool[Tensor, "*#batch #queries #keys"] | Float[Tensor, "*#batch #queries #keys"] | None = None,
    dropout_p: Probability = 0.0,
    is_causal: bool = False,
    scale: Finite | None = None,
    *,
    dropout_key: Int64[Tensor, ""] | None = None,
) -> Float[Tensor, "*batch queries d_value"]:
    """Return softmax(Q Kᵀ / √d_head + mask) V, with dropout of the weights. Vaswani et al. 2017, section 3.2.1.

    `dropout_key`: see `dropout`. ValueError as in `attention_weights`.

    >>> query, key, value = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    >>> scaled_dot_product_attention(query, key, value).shape
    torch.Size([2, 3, 6])
    """
    weights = attention_weights(query, key, attn_mask, is_causal, scale)
    weights = dropout(weights, dropout_p, key=dropout_key)
    return weighted_sum(weights, value)


def _expand_batch(
    query: Float[Tensor, "*#batch queries d_head"],
    key: Float[Tensor, "*#batch keys d_head"],
    value: Float[Tensor, "*#batch keys d_value"],
    attn_mask: Bool[Tensor, "*#batch #queries #keys"] | Float[Tensor, "*#batch #queries #keys"] | None,
) -> list[Tensor]:
    """Return query, key and value with all axes of the batch, those of the mask too, for kernels that need them."""
    masked = () if attn_mask is None else (attn_mask,)
    batch = torch.broadcast_shapes(*(x.shape[:-2] for x in (query, key, value, *masked)))
    return [x.expand(*batch, *x.shape[-2:]) for x in (query, key, value)]


@share_heads
def native_attention(
    query: Float[Tensor, "*#batch queries d_head"],
    key: Float[Tensor, "*#batch keys d_head"],
    value: Float[Tensor, "*#batch keys d_value"],
    attn_mask: Bool[Tensor, "*#batch #queries #keys"] | Float[Tensor, "*#batch #queries #keys"] | None = None,
    dropout_p: Probability = 0.0,
    is_causal: bool = False,
    scale: Finite | None = None,
    *,
    dropout_key: Int64[Tensor, ""] | None = None,
) -> Float[Tensor, "*batch queries d_value"]:
    """Return `scaled_dot_product_attention` by torch's kernel: once and not twice differentiable, slow under vmap.

    Mask with False or -∞, not with a large negative number such as -1e9: for a row masked so as a whole, torch's kernel
    for CPUs gives other gradients than its own plain path (torch 2.15). ValueError for dropout, whose mask torch would
    draw from its global generator, and for masks as in `attention_weights`.

    >>> query, key, value = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    >>> native_attention(query, key, value, is_causal=True).shape
    torch.Size([2, 3, 6])
    """
    if dropout_p:
        raise ValueError("attention: there is no dropout of weights by torch's kernel, dropout_p must be 0")
    _require_mask(attn_mask, is_causal, query)
    query, key, value = _expand_batch(query, key, value, attn_mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal, scale=scale)


def split_heads(x: Float[Tensor, "*batch seq d_model"], heads: Count) -> Float[Tensor, "*batch {heads} seq d_head"]:
    """Return the columns of each head, d_head = d_model / heads. ValueError if the heads do not divide d_model.

    >>> split_heads(torch.zeros(2, 5, 8), heads=4).shape
    torch.Size([2, 4, 5, 2])
    """
    if x.shape[-1] % heads:
        raise ValueError(f"attention: {heads} heads do not divide a width of {x.shape[-1]}")
    return rearrange(x, "... seq (heads d_head) -> ... heads seq d_head", heads=heads)


def merge_heads(x: Float[Tensor, "*batch heads seq d_head"]) -> Float[Tensor, "*batch seq d_model"]:
    """Return the heads side by side, the inverse of `split_heads`.

    >>> merge_heads(torch.zeros(2, 4, 5, 2)).shape
    torch.Size([2, 5, 8])
    """
    return rearrange(x, "... heads seq d_head -> ... seq (heads d_head)")


def multi_head_attention(
    query: Float[Tensor, "*batch queries d_model"],
    key: Float[Tensor, "*batch keys d_model"],
    value: Float[Tensor, "*batch keys d_model"],
    heads: Count,
    in_proj_weight: Float[Tensor, "3*d_model d_model"],
    in_proj_bias: Float[Tensor, " 3*d_model"],
    out_proj: Params,
    attn_mask: Bool[Tensor, "... #queries #keys"] | Float[Tensor, "... #queries #keys"] | None = None,
    dropout_p: Probability = 0.0,
    is_causal: bool = False,
    *,
    rotary: bool = False,
    need_weights: bool = False,
    dropout_key: Int64[Tensor, ""] | None = None,
    attention: Callable = scaled_dot_product_attention,
) -> tuple[Float[Tensor, "*batch queries d_model"], Float[Tensor, "*batch heads queries keys"] | None]:
    """Return (concat_h(attention(Q W_qʰ, K W_kʰ, V W_vʰ)) W_o, the weights of every head if `need_weights`).

    The parameters are those of nn.MultiheadAttention, by name. A mask broadcasts over (*batch, heads, queries, keys).
    With `rotary`, queries and keys are turned by their positions. Vaswani et al. 2017, section 3.2.2. ValueError unless
    the heads divide d_model, and for a mask with one axis for several of batch and heads, which could be either: give a
    mask per example as (batch, 1, queries, keys), one per head as (1, heads, queries, keys).

    >>> x, params = torch.randn(2, 5, 8), multi_head_attention_init(torch.Generator().manual_seed(0), 8)
    >>> y, weights = multi_head_attention(x, x, x, 4, **params, is_causal=True, need_weights=True)
    >>> y.shape, weights.shape
    (torch.Size([2, 5, 8]), torch.Size([2, 4, 5, 5]))
    """
    _require_clear(attn_mask, query.ndim + 1)
    if query is key is value:
        projected = linear(query, in_proj_weight, in_proj_bias).chunk(3, dim=-1)
    else:
        parts = zip((query, key, value), in_proj_weight.chunk(3), in_proj_bias.chunk(3), strict=True)
        projected = [linear(*part) for part in parts]
    q, k, v = (split_heads(x, heads) for x in projected)
    if rotary:
        q, k = rotary_encoding(q), rotary_encoding(k)
    y = attention(q, k, v, attn_mask, dropout_p, is_causal, dropout_key=dropout_key)
    weights = attention_weights(q, k, attn_mask, is_causal) if need_weights else None
    return linear(merge_heads(y), **out_proj), weights


def _require_clear(attn_mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None, axes: int) -> None:
    """Raise ValueError for a mask that says of some batch axes, or of the heads, but not which of them it is for."""
    if attn_mask is not None and 2 < attn_mask.ndim < axes and any(n > 1 for n in attn_mask.shape[:-2]):
        raise ValueError(
            f"multi_head_attention: attn_mask of shape {tuple(attn_mask.shape)} could be per example or per head: "
            "give it all axes, (batch, 1, queries, keys) or (1, heads, queries, keys)"
        )


def multi_head_attention_init(rng: torch.Generator, d_model: Count, *, gain: Magnitude = 1.0) -> Params:
    """Draw Xavier-uniform weights, as nn.MultiheadAttention has them; `gain` is that of the output projection.

    >>> multi_head_attention_init(torch.Generator().manual_seed(0), 8)["in_proj_weight"].shape
    torch.Size([24, 8])
    """
    return {
        "in_proj_weight": xavier_uniform(rng, (3 * d_model, d_model)),
        "in_proj_bias": torch.zeros(3 * d_model),
        "out_proj": linear_init(rng, d_model, d_model, gain=gain),
    }
