"""Nested dicts of tensors: the one container for parameters, gradients, state and optimizer state.

Inside the program a tree is nested, `params["fc1"]["weight"]`; at a file's boundary it is flat,
`{"fc1.weight": …}`, as in a state_dict. No function relies on the order of keys.
"""

import difflib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

Params = dict[str, Any]


def map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `f` leaf by leaf to trees of one structure; ValueError names the first place where they differ.

    >>> map(lambda p, g: p - 0.1 * g, params, grads)
    """
    return _map(f, "", tree, *rest)


def _map(f: Callable[..., Any], path: str, tree: Any, *rest: Any) -> Any:
    keys = tree.keys() if isinstance(tree, dict) else None
    for other in rest:
        if (other.keys() if isinstance(other, dict) else None) != keys:
            raise ValueError(f"trees differ at {path or 'the root'}: {_kind(tree)} beside {_kind(other)}")
    if keys is None:
        return f(tree, *rest)
    return {k: _map(f, f"{path}.{k}" if path else k, tree[k], *(other[k] for other in rest)) for k in keys}


def _kind(tree: Any) -> str:
    return f"a dict of {sorted(tree)}" if isinstance(tree, dict) else "a leaf"


def flatten(tree: Params) -> dict[str, Any]:
    """{"fc1": {"weight": w}} -> {"fc1.weight": w}; empty sub-trees leave no trace."""
    flat = {}
    for name, value in tree.items():
        if "." in name:
            raise ValueError(f"the name {name!r} holds a dot, which separates levels")
        if isinstance(value, dict):
            flat |= {f"{name}.{rest}": leaf for rest, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`; ValueError where a name is both a leaf and a branch."""
    tree: Params = {}
    for path, leaf in flat.items():
        *branches, name = path.split(".")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} lies below a leaf")
        if name in node:
            raise ValueError(f"{path!r} is both a leaf and a branch")
        node[name] = leaf
    return tree


def split(tree: Params, prefixes: Sequence[str]) -> tuple[Params, Params]:
    """(what lies at or below the dotted prefixes, the rest); "layer1" takes in layer1.0.weight, but not layer10.

    ValueError for a prefix at which there is nothing; it lists the nearest.
    """
    flat = flatten(tree)
    for prefix in prefixes:
        if not any(below(name, prefix) for name in flat):
            known = sorted({name.rsplit(".", n)[0] for name in flat for n in range(name.count(".") + 1)})
            nearest = difflib.get_close_matches(prefix, known, n=3, cutoff=0.0)
            raise ValueError(f"nothing lies at or below {prefix!r}; the nearest are {str(nearest)[1:-1]}")
    chosen = {name for name in flat if any(below(name, prefix) for prefix in prefixes)}
    return pick(tree, chosen), pick(tree, flat.keys() - chosen)


def pick(tree: Params, names: Collection[str]) -> Params:
    """The leaves of these dotted names, in the tree's own order."""
    return unflatten({name: leaf for name, leaf in flatten(tree).items() if name in names})


def below(name: str, prefix: str) -> bool:
    """Whether the prefix is the name, or a branch that it lies on."""
    return f"{name}.".startswith(f"{prefix}.")


def merge(*parts: Params) -> Params:
    """The inverse of `split`; ValueError for a leaf that two parts have."""
    flat: dict[str, Any] = {}
    for part in parts:
        for name, leaf in flatten(part).items():
            if name in flat:
                raise ValueError(f"{name!r} is in two of the trees")
            flat[name] = leaf
    return unflatten(flat)


def leaves(tree: Params) -> list[Any]:
    return list(flatten(tree).values())


def size(tree: Params) -> int:
    """How many numbers the tree holds."""
    return sum(leaf.numel() for leaf in leaves(tree))


def stack(*trees: Params) -> Params:
    """K trees of one structure -> one tree whose leaves have a new leading axis of K, ready for `vmap`."""
    return map(lambda *xs: torch.stack(xs), *trees)


def to(tree: Params, *args: Any) -> Params:
    """`Tensor.to` on every leaf: a device, a dtype, or both."""
    return map(lambda x: x.to(*args), tree)


def first_non_finite(tree: Params) -> tuple[str, Tensor] | None:
    """The dotted name and value of the first leaf that holds a NaN or an infinity, or None."""
    return next(((name, x) for name, x in flatten(tree).items() if not x.isfinite().all()), None)
