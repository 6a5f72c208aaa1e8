"""Transfer learning: a head on a backbone that was trained on other images, and what of both is trained.

Freezing is differentiation with respect to a sub-tree: what is frozen moves from `params` to `state`. So every step,
optimizer, `jit` and `vmap` knows what to do with a frozen model: it is one like any other, with fewer parameters.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fn import tree
from fn.conv import adaptive_avg_pool2d
from fn.layers import batch_norm, batch_norm_init, dropout, flatten, linear, linear_init, norm_modes
from fn.models import Model
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


def freeze(model: Model, trained: Sequence[str], *, keep_statistics: bool = True) -> Model:
    """The model with all but what lies below the dotted prefixes `trained` frozen; its `init` gives

        (the trained parameters, {"frozen": the others, "state": the model's own state})

    A batch norm whose parameters are frozen normalises with its running statistics and keeps them, also in training,
    unless `keep_statistics` is off. ValueError for a prefix that matches nothing.
    """
    init = partial(_frozen_init, init=model.init, trained=tuple(trained))
    return Model(init, partial(_frozen_apply, apply=model.apply, keep_statistics=keep_statistics))


def _frozen_init(rng: torch.Generator, *, init: Callable, trained: Sequence[str]) -> tuple[Params, Params]:
    params, state = init(rng)
    chosen, frozen = tree.split(params, trained)
    return chosen, {"frozen": frozen, "state": state}


def _frozen_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, " batch *shape"],
    *,
    train: bool,
    apply: Callable,
    keep_statistics: bool,
    **options: Any,
) -> tuple[Float[Tensor, "..."], Params]:
    if train and keep_statistics and state["state"]:
        options["modes"] = trained_modes(state["state"], params)
    y, new_state = apply(tree.merge(params, state["frozen"]), state["state"], x, train=train, **options)
    return y, {"frozen": state["frozen"], "state": new_state}


def trained_modes(state: Params, params: Params) -> Params:
    """`norm_modes` in training: a batch norm trains where one of its parameters is among `params`."""
    return {
        name: name in params if "running_mean" in branch else trained_modes(branch, params.get(name, {}))
        for name, branch in state.items()
    }


def unfreeze(params: Params, state: Params) -> tuple[Params, Params]:
    """All the parameters and the model's own state, the inverse of what `freeze` did."""
    return tree.merge(params, state["frozen"]), state["state"]
