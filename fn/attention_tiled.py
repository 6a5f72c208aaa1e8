"""Attention in tiles of some queries and some keys: the weights are never in memory all at once, forward or backward.

The softmax goes tile by tile. Of each row it keeps m = max(score), s = Σ exp(score - m) and Σ exp(score - m) · value;
where a tile brings a larger m, the sums so far are multiplied by exp(m_old - m_new). The backward pass computes the
weights again from m and s, two numbers per row. Milakov and Gimelshein 2018; Rabe and Staats 2021; Dao et al. 2022,
"FlashAttention".
"""

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.func import vjp

from fn.attention import (
    _expand_batch,
    _require_mask,
    attention_scores,
    causal_mask,
    scaled_dot_product_attention,
    share_heads,
)
from fn.domains import Count, Finite, Natural, Probability
from fn.precision import half_in_float32


@share_heads
@half_in_float32("query")
def tiled_attention(
    query: Float[Tensor, "*#batch queries d_head"],
    key: Float[Tensor, "*#batch keys d_head"],
    value: Float[Tensor, "*#batch keys d_value"],
    attn_mask: Bool[Tensor, "*#batch #queries #keys"] | Float[Tensor, "*#batch #queries #keys"] | None = None,
    dropout_p: Probability = 0.0,
    is_causal: bool = False,
    scale: Finite | None = None,
    *,
    dropout_key: Int64[Tensor, ""] | None = None,
    block_size: Count,
) -> Float[Tensor, "*batch queries d_value"]:
    """Return `scaled_dot_product_attention`, computed in tiles of `block_size` queries and keys.

    ValueError for dropout, and for masks as in `attention_weights`.

    >>> query, key, value = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    >>> tiled_attention(query, key, value, block_size=2).shape
    torch.Size([2, 3, 6])
    """
    if dropout_p:
        raise ValueError("attention: there is no dropout of weights in tiles, dropout_p must be 0")
    _require_mask(attn_mask, is_causal, query)
    if 0 in (key.shape[-2], query.shape[-1]):
        return scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal, scale=scale)
    query, key, value = _expand_batch(query, key, value, attn_mask)
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*attn_mask.shape[:-2], query.shape[-2], key.shape[-2])
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    y, *_ = _Tiled.apply(query, key, value, attn_mask, is_causal, scale, block_size)  # pyright: ignore
    return y


def _tile_scores(
    query: Float[Tensor, "*batch queries d_head"],
    key: Float[Tensor, "*batch keys d_head"],
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None,
    is_causal: bool,
    scale: float,
    first_query: Natural,
    first_key: Natural,
) -> Float[Tensor, "*batch queries keys"]:
    """Return the scores of one tile, at or below the diagonal if causal; `mask` is that of all queries and keys."""
    queries, keys = query.shape[-2], key.shape[-2]
    if is_causal:
        tile = causal_mask(queries, keys, query.device) if first_query == first_key else None
    elif mask is None:
        tile = None
    else:
        tile = mask[..., first_query : first_query + queries, first_key : first_key + keys]
    return attention_scores(query, key, tile, scale)


class _Tiled(torch.autograd.Function):
    """(query, key, value, mask, is_causal, scale, block_size) -> (y, row_max, row_sum)"""

    generate_vmap_rule = True

    @staticmethod
    def forward(query, key, value, mask, is_causal, scale, size):  # pyright: ignore
        """Return (y, row_max, row_sum).

        Of a fully masked row row_max is 0 and row_sum is 1, so that its weights exp(-∞ - 0) / 1 are 0.
        """
        rows = []
        for i, q in enumerate(query.split(size, dim=-2)):
            row_max = torch.full_like(q[..., :1], -math.inf)
            row_sum, weighted = torch.zeros_like(row_max), torch.zeros_like(row_max)
            for j, (k, v) in enumerate(zip(key.split(size, dim=-2), value.split(size, dim=-2), strict=True)):
                if is_causal and j > i:
                    break
                scores = _tile_scores(q, k, mask, is_causal, scale, i * size, j * size)
                new_max = torch.maximum(row_max, scores.amax(dim=-1, keepdim=True))
                finite_max = torch.where(new_max == -math.inf, 0.0, new_max)
                exp, rescale = torch.exp(scores - finite_max), torch.exp(row_max - finite_max)
                row_sum = rescale * row_sum + exp.sum(dim=-1, keepdim=True)
                weighted = rescale * weighted + exp @ v
                row_max = new_max
            fully_masked = row_sum == 0
            row_sum = torch.where(fully_masked, 1.0, row_sum)
            rows.append((weighted / row_sum, torch.where(fully_masked, 0.0, row_max), row_sum))
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
    """Differentiate `_Tiled`: without a Function of its own torch.func.grad would record every tile of this pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore
        query, key, value, mask, y, row_max, row_sum, d_y, mask_needs_grad, is_causal, scale, size
    ):
        """P = exp(S - m) / s;  dV = Pᵀ dY,  dS = P · (dY Vᵀ - Σ dY · Y),  dQ = dS K · scale,  dK = dSᵀ Q · scale"""
        row_shift = (d_y * y).sum(dim=-1, keepdim=True)
        by_row = zip(*(x.split(size, dim=-2) for x in (query, d_y, row_shift, row_max, row_sum)), strict=True)
        keys, values = key.split(size, dim=-2), value.split(size, dim=-2)
        d_queries, d_masks = [], []
        d_keys, d_values = [torch.zeros_like(k) for k in keys], [torch.zeros_like(v) for v in values]
        for i, (q, d_out, shift, m, s) in enumerate(by_row):
            d_q, d_tiles = torch.zeros_like(q), []
            for j, (k, v) in enumerate(zip(keys, values, strict=True)):
                if is_causal and j > i:
                    break
                weights = torch.exp(_tile_scores(q, k, mask, is_causal, scale, i * size, j * size) - m) / s
                d_scores = weights * (d_out @ v.mT - shift)
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
        """Differentiate the plain path, whole: a second derivative needs all weights in memory."""
        *inputs, mask = ctx.saved_tensors
        mask_needs_grad, options = ctx.options
        if mask_needs_grad:
            inputs, f = [*inputs, mask], partial(_plain_gradient, **options)
        else:
            f = partial(_plain_gradient, mask=mask, **options)
        d_query, d_key, d_value, d_y, *d_mask = vjp(f, *inputs)[1](cotangents)
        y_and_rows = (None, None, None)  # y, row_max and row_sum are functions of the inputs, already counted
        not_differentiable = (None, None, None, None)  # mask_needs_grad, is_causal, scale, size
        return d_query, d_key, d_value, *(d_mask or [None]), *y_and_rows, d_y, *not_differentiable


def _plain_gradient(query: Any, key: Any, value: Any, d_y: Any, mask: Any, **options: Any) -> tuple[Tensor, ...]:
    attend = partial(scaled_dot_product_attention, **options)
    if mask is None or mask.dtype == torch.bool:
        return vjp(partial(attend, attn_mask=mask), query, key, value)[1](d_y)
    return vjp(attend, query, key, value, mask)[1](d_y)
