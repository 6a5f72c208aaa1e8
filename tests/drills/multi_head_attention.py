"""multi_head_attention with views and transposes."""

import torch
import torch.nn.functional as F

from fn.attention import attention_weights, scaled_dot_product_attention
from fn.layers import linear
from fn.positions import rotary_encoding


def multi_head_attention(
    query, key, value, heads, in_proj_weight, in_proj_bias, out_proj, attn_mask=None, dropout_p=0.0, is_causal=False,
    *, rotary=False, need_weights=False, dropout_key=None, attention=scaled_dot_product_attention,
):  # fmt: skip
    width = query.shape[-1]
    if width % heads:
        raise ValueError("heads that do not divide the width")
    q, k, v = (
        linear(x, in_proj_weight[i * width : (i + 1) * width], in_proj_bias[i * width : (i + 1) * width])
        .unflatten(-1, (heads, -1))
        .transpose(-2, -3)
        for i, x in enumerate((query, key, value))
    )
    if rotary:
        q, k = rotary_encoding(q), rotary_encoding(k)
    y = attention(q, k, v, attn_mask, dropout_p, is_causal, dropout_key=dropout_key)
    y = y.transpose(-2, -3).flatten(-2)
    weights = attention_weights(q, k, attn_mask, is_causal) if need_weights else None
    return linear(y, **out_proj), weights


WRONG = {
    "any number of heads": (
        '        raise ValueError("heads that do not divide the width")',
        "        heads = 1",
        "refused",
    ),
    "heads not merged": ("y.transpose(-2, -3).flatten(-2)", "y.reshape(query.shape)", "differ"),
    "heads split the wrong way": (
        ".unflatten(-1, (heads, -1))",
        ".unflatten(-1, (-1, heads)).transpose(-1, -2)",
        "differ",
    ),
    "no way out": ("linear(y, **out_proj), weights", "y, weights", "result[0]"),
    "keys and values swapped": (
        "enumerate((query, key, value))",
        "enumerate((query, value, key))",
        "gradient of `key`",
    ),
    "mask not passed on": (
        "attention(q, k, v, attn_mask,",
        "attention(q, k, v, None,",
        "calls with `attn_mask`",
    ),
    "dropout forgotten": (
        "attn_mask, dropout_p, is_causal, dropout",
        "attn_mask, 0.0, is_causal, dropout",
        "`dropout_p=0.0`",
    ),
    "values turned too": (
        "q, k = rotary_encoding(q), rotary_encoding(k)",
        "q, k, v = map(rotary_encoding, (q, k, v))",
        "only index 0 of axis 1 is right",
    ),
    "causal forgotten": ("dropout_p, is_causal, dropout_key", "dropout_p, dropout_key", "`is_causal=True`"),
}
