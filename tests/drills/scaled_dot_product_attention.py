"""scaled_dot_product_attention in one piece."""

import math

import torch
import torch.nn.functional as F

from fn.attention import causal_mask
from fn.layers import dropout


def scaled_dot_product_attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    *,
    dropout_key=None,
):
    if is_causal and attn_mask is not None:
        raise ValueError("two masks")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.mT * scale
    if is_causal:
        scores = scores.masked_fill(~causal_mask(*scores.shape[-2:]), -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    blind = (scores == -math.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    return dropout(weights, dropout_p, key=dropout_key).matmul(value)


def torchs(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    *,
    dropout_key=None,
):
    if is_causal and attn_mask is not None:  # torch raises a RuntimeError
        raise ValueError
    if dropout_p:  # torch's draws from the global generator
        weights = F.scaled_dot_product_attention(query, key, torch.eye(key.shape[-2]).expand(*key.shape[:-2], -1, -1))
        return dropout(weights, dropout_p, key=dropout_key) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, scale=scale)


WRONG = {
    "causal from the last key": (
        "~causal_mask(*scores.shape[-2:])",
        "~torch.ones(scores.shape[-2:]).tril(scores.shape[-1] - scores.shape[-2]).bool()",
        "wrong in",
    ),
    "masked with -1e9": (
        "scores.masked_fill(~attn_mask, -math.inf)",
        "scores.masked_fill(~attn_mask, -1e9)",
        "`attn_mask`",
    ),
    "not scaled": ("query.shape[-1] ** -0.5 if scale is None", "1.0 if scale is None", "`scale = 1`"),
    "scaled by d, not √d": ("query.shape[-1] ** -0.5", "1 / query.shape[-1]", "`scale = 1 / d_head`"),
    "mask ignored": ("scores = scores.masked_fill(~attn_mask, -math.inf)", "pass", "`attn_mask"),
    "mask inverted": ("masked_fill(~attn_mask", "masked_fill(attn_mask", "`attn_mask"),
    "softmax over the queries": (".softmax(-1)", ".softmax(-2)", "wrong in"),
    "two masks, one taken": (
        '    if is_causal and attn_mask is not None:\n        raise ValueError("two masks")\n',
        "",
        "this is to be refused",
    ),
    "not causal": ("    if is_causal:\n", "    if False:\n", "`is_causal=False`"),
    "a blind query looks everywhere": (".softmax(-1).masked_fill(blind, 0.0)", ".softmax(-1)", "wrong"),
    "masked with 0": ("masked_fill(~attn_mask, -math.inf)", "masked_fill(~attn_mask, 0.0)", "wrong"),
    "weights never dropped": (
        "dropout(weights, dropout_p, key=dropout_key).matmul",
        "weights.matmul",
        "`dropout_p=0.0`",
    ),
}
