"""A backbone, which somebody trained on other images, and a head of our own: pool → norm → dropout → linear."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fn.conv import adaptive_avg_pool2d
from fn.layers import batch_norm, batch_norm_init, dropout, flatten, linear, linear_init, norm_modes
from fn.tree import Params


def head_init(rng: torch.Generator, features: int, classes: int, *, cells: int = 1) -> tuple[Params, Params]:
    """For so many features, pooled to `cells` × `cells`"""
    d_in = features * cells * cells
    norm, statistics = batch_norm_init(d_in)
    return {"norm": norm, "fc": linear_init(rng, d_in, classes, gain=1.0)}, {"norm": statistics}


def head_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch features height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    modes: Params | None = None,
    cells: int = 1,
    dropout_p: float = 0.0,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    modes = norm_modes(state, train) if modes is None else modes
    x = flatten(adaptive_avg_pool2d(x, cells))
    x, statistics = batch_norm(x, **params["norm"], **state["norm"], training=modes["norm"])
    return linear(dropout(x, dropout_p, train, key=key), **params["fc"]), {"norm": statistics}


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
    """The head's logits on features(params["backbone"], state["backbone"], x, train=…, modes=…)"""
    modes = norm_modes(state, train) if modes is None else modes
    x, backbone = features(params["backbone"], state["backbone"], x, train=train, modes=modes["backbone"])
    options = {"key": key, "modes": modes["head"], "cells": cells, "dropout_p": dropout_p}
    logits, head = head_apply(params["head"], state["head"], x, train=train, **options)
    return logits, {"backbone": backbone, "head": head}
