"""The laws of trees, and the places that their errors name."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fn import tree

NAMES = st.text(st.characters(codec="ascii", exclude_characters="."), min_size=1, max_size=3)


def trees(leaves: st.SearchStrategy) -> st.SearchStrategy:
    """Nested dicts; no branch is empty, for `flatten` leaves no trace of those."""
    below = st.recursive(leaves, lambda node: st.dictionaries(NAMES, node, min_size=1, max_size=3), max_leaves=8)
    return st.dictionaries(NAMES, below, max_size=3)


NUMBERS = trees(st.integers())
TENSORS = trees(st.lists(st.floats(-1, 1), max_size=3).map(torch.tensor))


@given(NUMBERS)
def test_flat_and_nested_are_the_same_tree(t):
    assert tree.unflatten(tree.flatten(t)) == t
    assert tree.flatten(tree.unflatten(tree.flatten(t))) == tree.flatten(t)
    assert tree.unflatten(dict(reversed(tree.flatten(t).items()))) == t


@given(NUMBERS)
def test_flat_names_are_paths(t):
    for path, leaf in tree.flatten(t).items():
        node = t
        for name in path.split("."):
            node = node[name]
        assert node is leaf


@given(NUMBERS)
def test_map_is_a_functor(t):
    assert tree.map(lambda x: x, t) == t
    assert tree.map(lambda x: 3 * (x + 1), t) == tree.map(lambda x: 3 * x, tree.map(lambda x: x + 1, t))
    assert tree.leaves(tree.map(str, t)) == [str(x) for x in tree.leaves(t)]


@given(NUMBERS)
def test_map_pairs_leaves_by_name_not_by_order(t):
    turned = tree.unflatten(dict(reversed(tree.flatten(t).items())))
    assert tree.map(lambda a, b, c: (a, b, c), t, turned, t) == tree.map(lambda a: (a, a, a), t)


@given(TENSORS, st.integers(1, 4))
def test_stack_then_index_gives_each_tree_back(t, k):
    copies = [tree.map(lambda x, i=i: x + i, t) for i in range(k)]
    stacked = tree.stack(*copies)
    assert all(x.shape[0] == k for x in tree.leaves(stacked))
    for i, copy in enumerate(copies):
        assert all(map(torch.equal, tree.leaves(tree.map(lambda x, i=i: x[i], stacked)), tree.leaves(copy)))
    assert tree.size(stacked) == k * tree.size(t) == k * sum(x.numel() for x in tree.leaves(t))


@given(TENSORS)
def test_to_changes_the_dtype_of_every_leaf(t):
    assert all(x.dtype == torch.float64 for x in tree.leaves(tree.to(t, torch.float64)))


@given(TENSORS, st.data())
def test_first_non_finite_is_the_first_in_order(t, data):
    assert tree.first_non_finite(t) is None
    flat = tree.flatten(t)
    if not flat:
        return
    bad = data.draw(st.sets(st.sampled_from(list(flat)), min_size=1))
    spoilt = {name: torch.tensor([0.0, data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))]) for name in bad}
    found = tree.first_non_finite(tree.unflatten(flat | spoilt))
    assert found is not None
    name, value = found
    assert name == next(name for name in flat if name in bad)
    assert value is spoilt[name]


@pytest.mark.parametrize(
    ("other", "place"),
    [
        ({"a": {"b": 1}, "d": 3}, r"at a: a dict of \['b', 'c'\] beside a dict of \['b'\]"),
        ({"a": {"b": 1, "c": {"e": 2}}, "d": 3}, r"at a\.c: a leaf beside a dict of \['e'\]"),
        ({"a": 1, "d": 3}, r"at a: a dict of \['b', 'c'\] beside a leaf"),
        ({"a": {"b": 1, "c": 2}}, r"at the root: a dict of \['a', 'd'\] beside a dict of \['a'\]"),
    ],
)
def test_trees_of_two_structures_are_refused_at_the_place_where_they_differ(other, place):
    with pytest.raises(ValueError, match=place):
        tree.map(lambda *leaves: None, {"a": {"b": 1, "c": 2}, "d": 3}, other)


def test_a_name_with_a_dot_is_refused():
    with pytest.raises(ValueError, match=r"'fc\.1' holds a dot"):
        tree.flatten({"block": {"fc.1": 0}})


@pytest.mark.parametrize(("first", "second"), [("a.b", "a.b.c"), ("a.b.c", "a.b")])
def test_a_leaf_cannot_also_be_a_branch(first, second):
    with pytest.raises(ValueError, match=r"'a\.b(\.c)?' (lies below a leaf|is both a leaf and a branch)"):
        tree.unflatten({first: 0, second: 0})


@given(NUMBERS, st.data())
def test_split_and_merge_are_inverses(t, data):
    flat = tree.flatten(t)
    ends = [name.rsplit(".", n)[0] for name in flat for n in range(name.count(".") + 1)]
    prefixes = data.draw(st.lists(st.sampled_from(ends), max_size=3)) if ends else []
    chosen, rest = tree.split(t, prefixes)
    assert tree.merge(chosen, rest) == tree.merge(rest, chosen) == t
    for name in flat:
        parts = [name.split(".")[: prefix.count(".") + 1] == prefix.split(".") for prefix in prefixes]
        assert (name in tree.flatten(chosen)) == any(parts)


def test_a_prefix_ends_where_a_name_does():
    chosen, rest = tree.split({"layer1": {"w": 1}, "layer10": {"w": 2}}, ["layer1"])
    assert (chosen, rest) == ({"layer1": {"w": 1}}, {"layer10": {"w": 2}})


def test_a_prefix_that_matches_nothing_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"below 'backbone\.layr3'; the nearest are 'backbone\.layer3', 'back"):
        tree.split({"backbone": {"layer3": {"w": 1}, "conv1": {"w": 1}}, "head": {"w": 2}}, ["head", "backbone.layr3"])
    with pytest.raises(ValueError, match=r"'a\.b' is in two of the trees"):
        tree.merge({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}})
