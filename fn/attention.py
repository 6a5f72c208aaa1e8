"""Attention, from one dot product to many heads, in the names and order of torch.nn.functional.

A boolean mask is True where a query may look, as it is there; nn.MultiheadAttention's means the opposite. A query that
may look nowhere gets zeros, and passes no gradient on. Masks broadcast over the batch.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.func import vjp

from fn.initializers import xavier_uniform
from fn.layers import dropout, linear, linear_init, softmax
from fn.positions import rotary_encoding
from fn.tree import Params


def attention_scores(
    query: Float[Tensor, "*batch queries d_head"],
    key: Float[Tensor, "*batch keys d_head"],
    attn_mask: Bool[Tensor, "*#batch #queries #keys"] | Float[Tensor, "*#batch #queries #keys"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch queries keys"]:
    """Q Kᵀ · scale, then -∞ where the mask is False, or the mask added; the scale is 1/√d_head unless given.

    Products of independent entries of variance 1 have variance d_head; unscaled, softmax would pick one key.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = einsum(query * scale, key, "... queries d_head, ... keys d_head -> ... queries keys")
    if attn_mask is None:
        return scores
    return torch.where(attn_mask, scores, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask


def causal_mask(queries: int, keys: int, device: torch.device | None = None) -> Bool[Tensor, "{queries} {keys}"]:
    """Query i may look at keys 0 to i: itself and the past"""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril()


def attention_weights(
    query: Float[Tensor, "*batch queries d_head"],
    key: Float[Tensor, "*batch keys d_head"],
    attn_mask: Bool[Tensor, "*#batch #queries #keys"] | Float[Tensor, "*#batch #queries #keys"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "*batch queries keys"]:
    """softmax(Q Kᵀ / √d_head + mask) over the keys. ValueError for a mask beside `is_causal`."""
    _require_one_mask(attn_mask, is_causal)
    if is_causal:
        attn_mask = causal_mask(query.shape[-2], key.shape[-2], query.device)
    scores = attention_scores(query, key, attn_mask, scale)
    if scores.shape[-1] == 0:
        return scores  # no key, no weight
    if attn_mask is None or is_causal:  # every query may look somewhere
        return softmax(scores, dim=-1)
    blind = (scores == -math.inf).all(dim=-1, keepdim=True)
    return torch.where(blind, 0.0, softmax(torch.where(blind, 0.0, scores), dim=-1))


def _require_one_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    if is_causal and attn_mask is not None:
        raise ValueError("attention: is_causal and attn_mask exclude each other; make one mask of them")


def weighted_sum(
    weights: Float[Tensor, "*batch queries keys"], value: Float[Tensor, "*batch keys d_value"]
) -> Float[Tensor, "*batch queries d_value"]:
    """Σ_keys weight · value: what each query takes from the values"""
    return einsum(weights, value, "... queries keys, ... keys d_value -> ... queries d_value")


def scaled_dot_product_attention(
    query: Float[Tensor, "*batch queries d_head"],
    key: Float[Tensor, "*batch keys d_head"],
    value: Float[Tensor, "*batch keys d_value"],
    attn_mask: Bool[Tensor, "*#batch #queries #keys"] | Float[Tensor, "*#batch #queries #keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    dropout_key: Int64[Tensor, ""] | None = None,
    block_size: int | None = None,
    native: bool = False,
) -> Float[Tensor, "*batch queries d_value"]:
    """softmax(Q Kᵀ / √d_head + mask) V, with dropout of the weights. Vaswani et al. 2017, section 3.2.1.

    With `block_size` the weights are made in tiles of that many queries and keys, forward and backward, and never all
    there at once; so too with `native`, by torch's kernel. ValueError for a mask beside `is_causal`, both ways at once,
    or dropout in either.
    """
    if block_size is None and not native:
        weights = attention_weights(query, key, attn_mask, is_causal, scale)
        return weighted_sum(dropout(weights, dropout_p, key=dropout_key), value)
    if dropout_p or (block_size is not None and block_size < 1):
        raise ValueError("attention: in tiles there is no dropout of weights, and block_size is at least 1")
    if native and block_size is not None:
        raise ValueError("attention: native and block_size exclude each other; torch chooses its own tiles")
    _require_one_mask(attn_mask, is_causal)
    if native:
        return native_attention(query, key, value, attn_mask, is_causal, scale)
    if key.shape[-2] == 0:
        return scaled_dot_product_attention(query, key, value)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*attn_mask.shape[:-2], query.shape[-2], key.shape[-2])
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    y, *_ = _Tiled.apply(query, key, value, attn_mask, is_causal, scale, block_size)  # pyright: ignore
    return y


def native_attention(
    query: Float[Tensor, "*batch queries d_head"],
    key: Float[Tensor, "*batch keys d_head"],
    value: Float[Tensor, "*batch keys d_value"],
    attn_mask: Bool[Tensor, "*#batch #queries #keys"] | Float[Tensor, "*#batch #queries #keys"] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "*batch queries d_value"]:
    """torch's own: in tiles, once and not twice differentiable, and under vmap one example after the other.

    Mask with False or -∞, not with a large negative number such as -1e9: of a row that is masked so as a whole, torch's
    kernel for CPUs gives other gradients than its own plain path (torch 2.15).
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal, scale=scale)


def _tile_scores(
    query: Float[Tensor, "*batch queries d_head"],
    key: Float[Tensor, "*batch keys d_head"],
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None,
    is_causal: bool,
    scale: float,
    first_query: int,
    first_key: int,
) -> Float[Tensor, "*batch queries keys"]:
    """The scores of one tile, at or below the diagonal if causal; `mask` is that of all queries and keys."""
    queries, keys = query.shape[-2], key.shape[-2]
    if is_causal:
        tile = causal_mask(queries, keys, query.device) if first_query == first_key else None
    elif mask is None:
        tile = None
    else:
        tile = mask[..., first_query : first_query + queries, first_key : first_key + keys]
    return attention_scores(query, key, tile, scale)


class _Tiled(torch.autograd.Function):
    """softmax piece by piece: keep of each row the largest score m, s = Σ exp(score - m) and Σ exp(score - m) · value.

    Where a tile brings a larger m, what was summed is multiplied by exp(m_old - m_new). The backward pass makes the
    weights anew from m and s, two numbers per row. Milakov and Gimelshein 2018; Rabe and Staats 2021; Dao et al. 2022.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(query, key, value, mask, is_causal, scale, size):  # pyright: ignore
        """(y, m, s); of a row that may look nowhere m is 0 and s is 1, so that its weights exp(-∞ - m) / s are 0"""
        rows = []
        for i, q in enumerate(query.split(size, dim=-2)):
            top = torch.full_like(q[..., :1], -math.inf)
            total, mix = torch.zeros_like(top), torch.zeros_like(top)
            for j, (k, v) in enumerate(zip(key.split(size, dim=-2), value.split(size, dim=-2), strict=True)):
                if is_causal and j > i:
                    break
                scores = _tile_scores(q, k, mask, is_causal, scale, i * size, j * size)
                higher = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
                finite = torch.where(higher == -math.inf, 0.0, higher)
                exp, fade = torch.exp(scores - finite), torch.exp(top - finite)
                total, mix, top = fade * total + exp.sum(dim=-1, keepdim=True), fade * mix + exp @ v, higher
            blind = total == 0
            total = torch.where(blind, 1.0, total)
            rows.append((mix / total, torch.where(blind, 0.0, top), total))
        return tuple(torch.cat(parts, dim=-2) for parts in zip(*rows, strict=True))

    @staticmethod
    def setup_context(ctx, inputs, output):  # pyright: ignore
        ctx.save_for_backward(*inputs[:4], *output)
        ctx.options = inputs[4:]
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx, d_y, *_):  # pyright: ignore
        gradients = _TiledGradient.apply(*ctx.saved_tensors, d_y, ctx.needs_input_grad[3], *ctx.options)
        d_query, d_key, d_value, *d_mask = gradients  # pyright: ignore
        not_differentiable = (None, None, None)  # is_causal, scale, size
        return d_query, d_key, d_value, *(d_mask or [None]), *not_differentiable


class _TiledGradient(torch.autograd.Function):
    """An op of its own: torch.func.grad notes the ops of a backward pass, each with its tensors, for a second one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(query, key, value, mask, y, top, total, d_y, mask_needs_grad, is_causal, scale, size):  # pyright: ignore
        """P = exp(S - m) / s;  dV = Pᵀ dY,  dS = P · (dY Vᵀ - Σ dY · Y),  dQ = dS K · scale,  dK = dSᵀ Q · scale"""
        shift = (d_y * y).sum(dim=-1, keepdim=True)
        by_row = zip(*(x.split(size, dim=-2) for x in (query, d_y, shift, top, total)), strict=True)
        keys, values = key.split(size, dim=-2), value.split(size, dim=-2)
        d_queries, d_masks = [], []
        d_keys, d_values = [torch.zeros_like(k) for k in keys], [torch.zeros_like(v) for v in values]
        for i, (q, d_out, subtract, m, s) in enumerate(by_row):
            d_q, d_tiles = torch.zeros_like(q), []
            for j, (k, v) in enumerate(zip(keys, values, strict=True)):
                if is_causal and j > i:
                    break
                weights = torch.exp(_tile_scores(q, k, mask, is_causal, scale, i * size, j * size) - m) / s
                d_scores = weights * (d_out @ v.mT - subtract)
                d_q = d_q + d_scores @ k * scale
                d_keys[j] = d_keys[j] + d_scores.mT @ q * scale
                d_values[j] = d_values[j] + weights.mT @ d_out
                if mask_needs_grad:
                    d_tiles.append(d_scores.sum_to_size(*mask.shape[:-2], *d_scores.shape[-2:]))
            d_queries.append(d_q)
            d_masks += [torch.cat(d_tiles, dim=-1)] if mask_needs_grad else []
        parts = (d_queries, d_keys, d_values, d_masks) if mask_needs_grad else (d_queries, d_keys, d_values)
        return tuple(torch.cat(part, dim=-2) for part in parts)

    @staticmethod
    def setup_context(ctx, inputs, output):  # pyright: ignore
        query, key, value, mask, *_, d_y, mask_needs_grad, is_causal, scale, _ = inputs
        ctx.save_for_backward(query, key, value, d_y, mask)
        ctx.options = mask_needs_grad, {"is_causal": is_causal, "scale": scale}

    @staticmethod
    def backward(ctx, *cotangents):  # pyright: ignore
        """Of the plain path, whole: a second derivative is not lean."""
        *inputs, mask = ctx.saved_tensors
        mask_needs_grad, how = ctx.options
        given = (*inputs, mask) if mask_needs_grad else inputs
        f = partial(_plain_gradient, **how) if mask_needs_grad else partial(_plain_gradient, mask=mask, **how)
        d_query, d_key, d_value, d_y, *d_mask = vjp(f, *given)[1](cotangents)
        y_top_total, options = (None, None, None), (None, None, None, None)  # of which y is a function, as m and s are
        return d_query, d_key, d_value, *(d_mask or [None]), *y_top_total, d_y, *options


def _plain_gradient(query: Any, key: Any, value: Any, d_y: Any, mask: Any, **options: Any) -> tuple[Tensor, ...]:
    attend = partial(scaled_dot_product_attention, **options)
    if mask is None or mask.dtype == torch.bool:
        return vjp(partial(attend, attn_mask=mask), query, key, value)[1](d_y)
    return vjp(attend, query, key, value, mask)[1](d_y)


def split_heads(x: Float[Tensor, "*batch seq d_model"], heads: int) -> Float[Tensor, "*batch {heads} seq d_head"]:
    """Head h has d_head = d_model / heads columns; ValueError if they do not divide."""
    if x.shape[-1] % heads:
        raise ValueError(f"attention: {heads} heads do not divide a width of {x.shape[-1]}")
    return rearrange(x, "... seq (heads d_head) -> ... heads seq d_head", heads=heads)


def merge_heads(x: Float[Tensor, "*batch heads seq d_head"]) -> Float[Tensor, "*batch seq d_model"]:
    """The inverse of `split_heads`"""
    return rearrange(x, "... heads seq d_head -> ... seq (heads d_head)")


def multi_head_attention(
    query: Float[Tensor, "*batch queries d_model"],
    key: Float[Tensor, "*batch keys d_model"],
    value: Float[Tensor, "*batch keys d_model"],
    heads: int,
    in_proj_weight: Float[Tensor, "3*d_model d_model"],
    in_proj_bias: Float[Tensor, " 3*d_model"],
    out_proj: Params,
    attn_mask: Bool[Tensor, "... #queries #keys"] | Float[Tensor, "... #queries #keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    rotary: bool = False,
    need_weights: bool = False,
    dropout_key: Int64[Tensor, ""] | None = None,
    block_size: int | None = None,
    native: bool = False,
) -> tuple[Float[Tensor, "*batch queries d_model"], Float[Tensor, "*batch heads queries keys"] | None]:
    """(concat_h(attention(Q W_qʰ, K W_kʰ, V W_vʰ)) W_o, the weights of every head if asked for)

    The parameters are those of nn.MultiheadAttention, by name. A mask broadcasts over (*batch, heads, queries, keys).
    With `rotary`, queries and keys are turned by their positions. Vaswani et al. 2017, section 3.2.2. ValueError unless
    the heads divide d_model.
    """
    if query is key is value:
        projected = linear(query, in_proj_weight, in_proj_bias).chunk(3, dim=-1)
    else:
        parts = zip((query, key, value), in_proj_weight.chunk(3), in_proj_bias.chunk(3), strict=True)
        projected = [linear(*part) for part in parts]
    q, k, v = (split_heads(x, heads) for x in projected)
    if rotary:
        q, k = rotary_encoding(q), rotary_encoding(k)
    y = scaled_dot_product_attention(
        q, k, v, attn_mask, dropout_p, is_causal, dropout_key=dropout_key, block_size=block_size, native=native
    )
    weights = attention_weights(q, k, attn_mask, is_causal) if need_weights else None
    return linear(merge_heads(y), **out_proj), weights


def multi_head_attention_init(rng: torch.Generator, d_model: int, *, gain: float = 1.0) -> Params:
    """Xavier-uniform into the heads, as nn.MultiheadAttention has it; `gain` is that of the way out"""
    return {
        "in_proj_weight": xavier_uniform(rng, (3 * d_model, d_model)),
        "in_proj_bias": torch.zeros(3 * d_model),
        "out_proj": linear_init(rng, d_model, d_model, gain=gain),
    }
