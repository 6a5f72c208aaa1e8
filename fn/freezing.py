"""Freezing is differentiation with respect to a sub-tree: what is frozen moves from `params` to `state`.

`params` holds what is differentiated, `state` what is not. So every step, optimizer, `jit` and `vmap` knows what to do
with a frozen model: it is one like any other, with fewer parameters.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fn import tree
from fn.models import Model
from fn.tree import Params


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


def thaw(params: Params, state: Params) -> tuple[Params, Params]:
    """All the parameters and the model's own state, the inverse of what `freeze` did."""
    return tree.merge(params, state["frozen"]), state["state"]
