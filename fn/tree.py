"""Nested dicts of tensors: the one container for parameters, gradients, state and optimizer state.

Inside the program a tree is nested, `params["fc1"]["weight"]`; in a file it is flat, `{"fc1.weight": …}`, as in a
state_dict. No function relies on the order of keys.
"""

import difflib
from collections.abc import Callable, Collection, Sequence
from typing import Any, no_type_check

import torch
from torch import Tensor

Params = dict[str, Any]


def map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply `f` leaf by leaf to trees of one structure; ValueError names the first place where they differ.

    >>> params, grads = {"fc": {"weight": 1.0, "bias": 2.0}}, {"fc": {"weight": 10.0, "bias": 0.0}}
    >>> map(lambda p, g: p - 0.1 * g, params, grads)
    {'fc': {'weight': 0.0, 'bias': 2.0}}
    """
    return _map(f, "", tree, *rest)


@no_type_check  # it runs for every leaf, and `map` has checked f
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
    """Return the leaves by their dotted names; empty sub-trees are lost. ValueError for a name that holds a dot.

    >>> flatten({"fc1": {"weight": 1, "bias": 2}, "scale": 3})
    {'fc1.weight': 1, 'fc1.bias': 2, 'scale': 3}
    """
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
    """Return the tree of dotted names, the inverse of `flatten`; ValueError where a name is both a leaf and a branch.

    >>> unflatten({"fc1.weight": 1, "fc1.bias": 2, "scale": 3})
    {'fc1': {'weight': 1, 'bias': 2}, 'scale': 3}
    """
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
    """Return (the leaves at or below the dotted prefixes, the rest).

    "layer1" takes in layer1.0.weight, not layer10. ValueError for a prefix that matches nothing; it lists the nearest.

    >>> split({"backbone": {"conv": 1, "fc": 2}, "head": 3}, ["backbone.fc", "head"])
    ({'backbone': {'fc': 2}, 'head': 3}, {'backbone': {'conv': 1}})
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
    """Return the leaves of these dotted names, in the tree's own order.

    >>> pick({"fc1": {"weight": 1, "bias": 2}, "scale": 3}, {"scale", "fc1.bias"})
    {'fc1': {'bias': 2}, 'scale': 3}
    """
    return unflatten({name: leaf for name, leaf in flatten(tree).items() if name in names})


def below(name: str, prefix: str) -> bool:
    """Return whether `name` is the prefix, or lies on the branch of that name.

    >>> below("layer1.0.weight", "layer1"), below("layer10.0.weight", "layer1")
    (True, False)
    """
    return f"{name}.".startswith(f"{prefix}.")


def merge(*parts: Params) -> Params:
    """Return the union of the trees, the inverse of `split`; ValueError for a leaf that two of them have.

    >>> merge({"fc1": {"weight": 1}}, {"fc1": {"bias": 2}})
    {'fc1': {'weight': 1, 'bias': 2}}
    """
    flat: dict[str, Any] = {}
    for part in parts:
        for name, leaf in flatten(part).items():
            if name in flat:
                raise ValueError(f"{name!r} is in two of the trees")
            flat[name] = leaf
    return unflatten(flat)


def leaves(tree: Params) -> list[Any]:
    """Return the leaves as a list.

    >>> leaves({"fc1": {"weight": 1, "bias": 2}, "scale": 3})
    [1, 2, 3]
    """
    return list(flatten(tree).values())


def require_leaves(tree: Params, name: str) -> None:
    """Raise ValueError, with this name for the tree, if it holds no leaf.

    >>> require_leaves({"fc": {"weight": 1}}, "params")
    """
    if not leaves(tree):
        raise ValueError(f"{name} hold no leaf")


def size(tree: Params) -> int:
    """Return how many numbers the tree holds.

    >>> size({"weight": torch.zeros(5, 3), "bias": torch.zeros(5)})
    20
    """
    return sum(leaf.numel() for leaf in leaves(tree))


def stack(*trees: Params) -> Params:
    """Stack K trees of one structure: each leaf gets a new leading axis of K, ready for `vmap`.

    >>> stack({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    {'w': tensor([[0., 0., 0.],
            [1., 1., 1.]])}
    """
    return map(lambda *xs: torch.stack(xs), *trees)


def to(tree: Params, *args: Any) -> Params:
    """Apply `Tensor.to` to every leaf: a device, a dtype, or both.

    >>> to({"w": torch.tensor([1, 2])}, torch.float64)
    {'w': tensor([1., 2.], dtype=torch.float64)}
    """
    return map(lambda x: x.to(*args), tree)


def first_non_finite(tree: Params) -> tuple[str, Tensor] | None:
    """Return the dotted name and the value of the first leaf that holds a NaN or an infinity, or None.

    >>> first_non_finite({"fc": {"weight": torch.ones(2), "bias": torch.tensor([0.0, torch.nan])}})
    ('fc.bias', tensor([0., nan]))
    """
    return next(((name, x) for name, x in flatten(tree).items() if not x.isfinite().all()), None)
