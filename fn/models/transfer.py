"""A backbone, which somebody trained on other images, and a head of our own: pool → norm → dropout → linear."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fn.conv import adaptive_avg_pool2d
from fn.layers import dropout, flatten, layer_norm, layer_norm_init, linear, linear_init, norm_modes
from fn.tree import Params


def head_init(rng: torch.Generator, features: int, classes: int, *, cells: int = 1) -> Params:
    """For features of so many features, pooled to `cells` × `cells`; the linear layer starts at zero"""
    d_in = features * cells * cells
    fc = linear_init(rng, d_in, classes, gain=1.0)
    return {"norm": layer_norm_init([d_in]), "fc": fc}


def head_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch features height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    cells: int = 1,
    dropout_p: float = 0.0,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    x = flatten(adaptive_avg_pool2d(x, cells))
    x = layer_norm(x, x.shape[1:], **params["norm"])
    return linear(dropout(x, dropout_p, train, key=key), **params["fc"]), state


def transfer_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    modes: Params | None = None,
    features: Callable,
    cells: int = 1,
    dropout_p: float = 0.0,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    """The head's logits on `features(params["backbone"], state["backbone"], x, train=…, modes=…)`"""
    modes = norm_modes(state, train) if modes is None else modes
    x, new_state = features(params["backbone"], state["backbone"], x, train=train, modes=modes["backbone"])
    logits, _ = head_apply(params["head"], {}, x, train=train, key=key, cells=cells, dropout_p=dropout_p)
    return logits, {"backbone": new_state}
