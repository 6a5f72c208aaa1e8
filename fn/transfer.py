"""Transfer learning: a new head on a pretrained backbone, and which parameters of both are trained.

Freezing is differentiation with respect to a sub-tree: frozen parameters move from `params` to `state`. So a frozen
model is a model like any other, with fewer parameters, and every step, optimizer, `jit` and `vmap` takes it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from fn import tree
from fn.conv import adaptive_avg_pool2d
from fn.data.loader import epoch_order
from fn.domains import Count, Integer, Natural, Probability, require_held
from fn.layers import batch_norm, batch_norm_init, dropout, flatten, linear, linear_init, norm_modes
from fn.models import Model
from fn.tree import Params


def head_init(rng: torch.Generator, features: Count, classes: Count, *, cells: Count = 1) -> tuple[Params, Params]:
    """Draw the parameters of `head_apply`, for `features` channels that are pooled to `cells` × `cells`.

    >>> from fn.rng import generator
    >>> params, state = head_init(generator(0), 64, 10, cells=3)
    >>> tuple(params["fc"]["weight"].shape)
    (10, 576)
    """
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
    cells: Count = 1,
    dropout_p: Probability = 0.0,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    """Classify feature maps: average pooling to `cells` × `cells`, batch norm, dropout, linear. `modes`: `norm_modes`.

    >>> from fn.rng import generator
    >>> params, state = head_init(generator(0), 64, 10, cells=3)
    >>> logits, state = head_apply(params, state, torch.zeros(2, 64, 8, 8), train=True, cells=3)
    >>> tuple(logits.shape)
    (2, 10)
    """
    modes = norm_modes(state, train) if modes is None else modes
    x = flatten(adaptive_avg_pool2d(x, cells))
    require_held(f"head: with cells {cells} the number of features", x.shape[1], len(params["norm"]["weight"]))
    x, statistics = batch_norm(x, **params["norm"], **state["norm"], training=modes["norm"])
    return linear(dropout(x, dropout_p, train, key=key), **params["fc"]), {"norm": statistics}


def attach_head(backbone: tuple[Params, Params], head: tuple[Params, Params]) -> tuple[Params, Params]:
    """Join the (params, state) of a backbone and of a head to those that `transfer_apply` takes.

    >>> attach_head(({"conv": {}}, {}), ({"fc": {}}, {"norm": {}}))
    ({'backbone': {'conv': {}}, 'head': {'fc': {}}}, {'backbone': {}, 'head': {'norm': {}}})
    """
    params, state = ({"backbone": b, "head": h} for b, h in zip(backbone, head, strict=True))
    return params, state


def transfer_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, "batch channels height width"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    modes: Params | None = None,
    features: Callable,
    cells: Count = 1,
    dropout_p: Probability = 0.0,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    """Apply the head to features(params["backbone"], state["backbone"], x, train=…, modes=…) -> (maps, new state).

    >>> from fn.rng import generator
    >>> params, state = attach_head(({}, {}), head_init(generator(0), 3, 10))
    >>> double = lambda params, state, x, *, train, modes: (2 * x, state)
    >>> logits, state = transfer_apply(params, state, torch.zeros(2, 3, 8, 8), train=True, features=double)
    >>> tuple(logits.shape)
    (2, 10)
    """
    modes = norm_modes(state, train) if modes is None else modes
    x, backbone = features(params["backbone"], state["backbone"], x, train=train, modes=modes["backbone"])
    options = {"key": key, "modes": modes["head"], "cells": cells, "dropout_p": dropout_p}
    logits, head = head_apply(params["head"], state["head"], x, train=train, **options)
    return logits, {"backbone": backbone, "head": head}


def start_from(model: Model, params: Params, state: Params) -> Model:
    """Replace the model's `init`: it returns these parameters and this state, and draws nothing.

    >>> from fn.models.mlp import mlp
    >>> start_from(mlp((1, 8, 8), 10), {"fc1": {}}, {}).init(None)
    ({'fc1': {}}, {})
    """
    return model._replace(init=lambda rng: (params, state))


def freeze(model: Model, trained: Sequence[str], *, keep_statistics: bool = True) -> Model:
    """Freeze all parameters but those below the dotted prefixes `trained`. The `init` of the frozen model returns

        (the trained parameters, {"frozen": the other parameters, "state": the model's own state})

    A batch norm whose parameters are frozen normalises with its running statistics and keeps them, also in training,
    unless `keep_statistics` is off. `init` raises ValueError for a prefix that matches nothing.

    >>> from fn.models.mlp import mlp
    >>> from fn.rng import generator
    >>> params, state = freeze(mlp((1, 8, 8), 10), ["fc2"]).init(generator(0))
    >>> "fc1" in params, "fc1" in state["frozen"]
    (False, True)
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
    if train and keep_statistics and norm_modes(state["state"], train):  # which is empty without batch norm
        options["modes"] = trained_modes(state["state"], params)
    y, new_state = apply(tree.merge(params, state["frozen"]), state["state"], x, train=train, **options)
    return y, {"frozen": state["frozen"], "state": new_state}


def trained_modes(state: Params, params: Params) -> Params:
    """Mark each batch norm as trained or frozen: True if one of its parameters is among `params`. See `norm_modes`.

    >>> state = {"bn1": {"running_mean": torch.zeros(2)}, "bn2": {"running_mean": torch.zeros(2)}}
    >>> trained_modes(state, {"bn2": {"weight": torch.ones(2)}})
    {'bn1': False, 'bn2': True}
    """
    branches = {name: branch for name, branch in state.items() if isinstance(branch, dict)}
    return {
        name: name in params if "running_mean" in b else trained_modes(b, params.get(name, {}))
        for name, b in branches.items()
    }


def unfreeze(params: Params, state: Params) -> tuple[Params, Params]:
    """Return all parameters and the model's own state, from those of a frozen model: the inverse of `freeze`.

    >>> unfreeze({"fc2": {"bias": 1}}, {"frozen": {"fc1": {"bias": 0}}, "state": {}})
    ({'fc2': {'bias': 1}, 'fc1': {'bias': 0}}, {})
    """
    return tree.merge(params, state["frozen"]), state["state"]


def branches(params: Params, frozen: Params, path: str = "") -> Iterator[tuple[str, int, bool]]:
    """Yield (dotted name, number of parameters, whether frozen) of the largest branches that are wholly either.

    >>> params = {"backbone": {"conv": {"weight": torch.zeros(2, 3)}, "fc": {"bias": torch.zeros(4)}}}
    >>> list(branches(params, {"backbone": {"conv": params["backbone"]["conv"]}}))
    [('backbone.conv', 6, True), ('backbone.fc', 4, False)]
    """
    for name, node in params.items():
        branch, flat = f"{path}{name}", tree.flatten({name: node})
        held = [leaf in tree.flatten({name: frozen.get(name, {})}) for leaf in flat]
        if path and (all(held) or not any(held)):
            yield branch, sum(leaf.numel() for leaf in flat.values()), all(held)
        else:
            yield from branches(node, frozen.get(name, {}), f"{branch}.")


def moved_leaves(before: Params, after: Params) -> list[str]:
    """List the dotted names of the leaves that differ, in any bit, between two trees of one structure.

    >>> moved_leaves({"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.ones(2)})
    ['b']
    """
    new = tree.flatten(after)
    return [name for name, x in tree.flatten(before).items() if not torch.equal(x, new[name])]


def wrongly_moved(before: Params, after: Params, trained: Sequence[str]) -> list[str]:
    """List the leaves that moved though no prefix of `trained` covers them, then those that are covered and did not.

    The trees hold parameters and statistics. Statistics are covered where a parameter of their batch norm is.

    >>> before, after = ({"a": torch.zeros(2), "b": torch.tensor([i, i])} for i in (0.0, 1.0))
    >>> wrongly_moved(before, after, trained=["b"]), wrongly_moved(before, after, trained=["a"])
    ([], ['b', 'a'])
    """
    moved = moved_leaves(before, after)
    kept = [name for name in tree.flatten(before) if name not in moved]
    return [*(x for x in moved if not _is_trained(x, trained)), *(x for x in kept if _is_trained(x, trained))]


def _is_trained(name: str, trained: Sequence[str]) -> bool:
    branch, _, leaf = name.rpartition(".")
    if leaf.startswith("running_"):
        return any(tree.below(branch, prefix) or tree.below(prefix, branch) for prefix in trained)
    return any(tree.below(name, prefix) for prefix in trained)


def few_per_class(
    labels: Int[Tensor, " examples"], classes: Count, shots: Count | None, *, seed: Integer
) -> Int64[Tensor, " few"]:
    """Draw the indices of `shots` examples of each class, class after class; all where there are fewer, or for None.

    >>> labels = torch.tensor([0, 1, 1, 0, 1, 0])
    >>> labels[few_per_class(labels, classes=2, shots=2, seed=0)]
    tensor([0, 0, 1, 1])
    """
    order = epoch_order(len(labels), seed=seed, epoch=2**61).to(labels.device)
    return torch.cat([order[labels[order] == label][:shots] for label in range(classes)])


def batch_size_of(examples: Natural, share: Probability) -> int:
    """Round examples · share so that no batch, the last one too, holds a single example, on which batch norm fails.

    >>> batch_size_of(100, 1 / 4), batch_size_of(101, 1 / 4)
    (25, 26)
    """
    size = max(2, round(examples * share))
    while examples % size == 1:
        size += 1
    return size
