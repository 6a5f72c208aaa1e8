"""Attention beside torch's: values, gradients, every kind of mask, every way to compute it; and its laws."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.bench.memory import peak_growth
from fn import tree
from fn.attention import (
    attention_weights,
    causal_mask,
    merge_heads,
    multi_head_attention_init,
    native_attention,
    scaled_dot_product_attention,
    split_heads,
    weighted_sum,
)
from fn.attention_tiled import tiled_attention
from fn.rng import generator, key
from tests.strategies import Case, agree, lifts, tensor
from tests.test_positions import by_complex_numbers

MASKS = ["none", "causal", "boolean", "additive", "additive, some -∞"]
WAYS = ["plain", "native", 2]
"""to compute it: the equation, torch's kernel, or tiles of so many queries and keys"""
ways = st.sampled_from(["plain", "native"]) | st.integers(1, 8)


def attention_by(way: str | int) -> Callable[..., Tensor]:
    if isinstance(way, int):
        return partial(tiled_attention, block_size=way)
    return scaled_dot_product_attention if way == "plain" else native_attention


@st.composite
def masked(draw: st.DrawFn, kind: str, *shape: int) -> Tensor | None:
    """Return a mask that broadcasts to `shape`: axes of the batch may be missing, any axis 1, and rows masked whole."""
    if kind in ("none", "causal"):
        return None
    shape = shape[draw(st.integers(0, len(shape) - 2)) :]
    shape = tuple(draw(st.sampled_from([n, n, 1])) for n in shape)
    hidden = draw(tensor(*shape, below=draw(st.integers(1, 3)))) == 0
    if kind == "boolean":
        return ~hidden
    mask = draw(tensor(*shape))
    return mask if kind == "additive" else torch.where(hidden, -math.inf, mask)


@st.composite
def attentions(draw: st.DrawFn, *kinds: str) -> Case:
    """Return (query, key, value, mask) and options; from no batch axis to three, as many keys as one likes."""
    kind = draw(st.sampled_from(kinds or MASKS))
    batch = draw(st.lists(st.integers(1, 3), max_size=3))
    queries, keys, d_head, d_value = draw(st.tuples(*[st.integers(1, 6)] * 4))
    shapes = [(*batch, queries, d_head), (*batch, keys, d_head), (*batch, keys, d_value)]
    mask = draw(masked(kind, *batch, queries, keys))
    options = {"scale": draw(st.none() | st.floats(0.1, 3)), "is_causal": kind == "causal"}
    return Case((*(draw(tensor(*shape)) for shape in shapes), mask), options)


@pytest.mark.parametrize("way", ["plain", "native", "tiled"])
@settings(max_examples=150)
@given(attentions(), st.integers(1, 8))
def test_attention_is_torchs(under_test, way, case: Case, block_size):
    """torch's too gives zeros to a query whose keys are all masked."""
    ours = partial(under_test(attention_by(block_size if way == "tiled" else way)), **case.options)
    agree(ours, partial(F.scaled_dot_product_attention, **case.options), *case.tensors)


@settings(max_examples=20)
@given(attentions("none"))
def test_attention_without_options_is_torchs(scaled_dot_product_attention, case: Case):
    agree(scaled_dot_product_attention, F.scaled_dot_product_attention, *case.tensors[:3])


@settings(max_examples=40)
@given(attentions("boolean", "additive", "causal"))
def test_the_masks_of_attention_are_torchs(scaled_dot_product_attention, case: Case):
    """Where every query may look at the first key."""
    *given, mask = case.tensors
    if mask is not None and mask.dtype == torch.bool:
        mask = mask | (torch.arange(mask.shape[-1]) == 0)
    ours, reference = (
        partial(f, **case.options) for f in (scaled_dot_product_attention, F.scaled_dot_product_attention)
    )
    agree(ours, reference, *given, mask)


@st.composite
def grouped(draw: st.DrawFn) -> Case:
    """Several heads of queries for each of keys, and of values, under any mask."""
    groups, of_values = draw(st.sampled_from([(1, 1), (2, 2), (3, 3), (2, 4), (4, 1)]))
    heads = groups * of_values * draw(st.integers(1, 2))
    batch = draw(st.lists(st.integers(1, 2), max_size=2))
    queries, keys, d_head, d_value = draw(st.tuples(*[st.integers(1, 4)] * 4))
    kind = draw(st.sampled_from(MASKS))
    mask = draw(masked(kind, *batch, heads, queries, keys))
    q = draw(tensor(*batch, heads, queries, d_head))
    k = draw(tensor(*batch, heads // groups, keys, d_head))
    v = draw(tensor(*batch, heads // of_values, keys, d_value))
    return Case((q, k, v, mask), {"is_causal": kind == "causal", "enable_gqa": True})


@pytest.mark.parametrize("way", WAYS, ids=str)
@settings(max_examples=50)
@given(case=grouped())
def test_a_head_of_keys_serves_a_group_of_queries_as_torchs(way, case: Case):
    agree(
        partial(attention_by(way), **case.options),
        partial(F.scaled_dot_product_attention, **case.options),
        *case.tensors,
    )


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("heads", [(), (3,), (0,), (1, 5)])
def test_heads_that_make_no_groups_are_refused(way, heads):
    q, k = torch.ones(2, 4, 3, 8), torch.ones(*heads, 6, 8)
    with pytest.raises(ValueError, match=f"enable_gqa {[0, *heads][-1]} heads of keys or values serve no 4 heads"):
        attention_by(way)(q, k, k, enable_gqa=True)


@st.composite
def broadcast(draw: st.DrawFn) -> Case:
    """Return each of query, key, value and mask lacks some axes of the batch, or has 1 there."""
    batch = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    queries, keys, d_head, d_value = draw(st.tuples(*[st.integers(1, 4)] * 4))
    kind = draw(st.sampled_from(MASKS))
    part = lambda: [draw(st.sampled_from([n, n, 1])) for n in batch[draw(st.integers(0, len(batch))) :]]  # noqa: E731
    shapes = [(queries, d_head), (keys, d_head), (keys, d_value)]
    mask = draw(masked(kind, *batch, queries, keys))
    return Case((*(draw(tensor(*part(), *shape)) for shape in shapes), mask), {"is_causal": kind == "causal"})


@pytest.mark.parametrize("way", WAYS, ids=str)
@settings(max_examples=60)
@given(case=broadcast())
def test_the_axes_of_the_batch_broadcast(way, case: Case):
    """As for torch's on what is expanded before."""

    def expanded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None):
        batch = torch.broadcast_shapes(*(x.shape[:-2] for x in (query, key, value, mask) if x is not None))
        query, key, value = (x.expand(*batch, *x.shape[-2:]) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, mask, **case.options)

    agree(partial(attention_by(way), **case.options), expanded, *case.tensors)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_without_a_key_there_is_nothing_to_take(way, is_causal):
    rng = generator(0)
    q, k, v = (torch.randn(2, n, d, generator=rng) for n, d in ((3, 4), (0, 4), (0, 5)))
    ours = partial(attention_by(way), is_causal=is_causal)
    agree(ours, partial(F.scaled_dot_product_attention, is_causal=is_causal), q, k, v, None)


def test_a_row_masked_by_large_numbers_has_the_gradients_of_torchs_plain_path_and_not_of_its_kernel():
    """The docstring of native_attention warns of this; with -∞ they agree, see test_attention_is_torchs."""
    q, k, v = torch.randn(3, 1, 1, 3, 4, generator=generator(0))  # its kernel is for batches of heads alone
    mask = torch.zeros(3, 3)
    mask[1] = -1e9
    with sdpa_kernel(SDPBackend.MATH):
        agree(scaled_dot_product_attention, F.scaled_dot_product_attention, q, k, v, mask)
    of_query = grad(lambda q, way: way(q, k, v, mask).square().sum())
    assert (of_query(q, scaled_dot_product_attention) - of_query(q, native_attention)).abs().max() > 0.1


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(2, 4), (4, 2)])
def test_causal_counts_from_the_first_key(under_test, queries, keys, way):
    """Not from the last, as where keys of the past are kept: query i may look at keys 0 to i."""
    rng = generator(0)
    q, k, v = (torch.randn(n, 3, generator=rng, dtype=torch.float64) for n in (queries, keys, keys))
    agree(
        partial(under_test(attention_by(way)), is_causal=True),
        partial(F.scaled_dot_product_attention, is_causal=True),
        *(q, k, v),
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's kernel, one example after the other
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("kind", ["none", "causal", "boolean", "additive, some -∞"])
@settings(max_examples=2)
@given(data=st.data())
def test_lifts(kind, way, data):
    tensors, options = data.draw(attentions(kind))
    lifts(partial(attention_by(way), **options), *(t for t in tensors if t is not None))


@pytest.mark.parametrize("kind", MASKS)
@settings(max_examples=15)
@given(data=st.data())
def test_tiles_can_be_differentiated_twice(kind, data):
    """The gradient has the values and gradients of the plain path's, which autograd takes apart op by op."""
    tensors, options = data.draw(attentions(kind))
    present = [t for t in tensors if t is not None]
    floats = tuple(i for i, t in enumerate(present) if t.is_floating_point())

    def gradient(way: str | int):
        attend = partial(attention_by(way), **options)
        return grad(lambda *x: attend(*x).sin().sum(), argnums=floats)

    agree(gradient(2), gradient("plain"), *present)


@pytest.mark.parametrize("way", [*WAYS, 1, 9], ids=str)
@pytest.mark.parametrize("mask", [torch.tensor([[True, False], [False, False]]), torch.tensor([[0, -math.inf]] * 2)])
def test_a_query_that_may_look_nowhere_gets_zeros_and_no_gradient(under_test, mask, way):
    if mask.is_floating_point():
        mask[1] = -math.inf
    q, k, v = torch.randn(3, 2, 4, generator=generator(0)).unbind()
    attend = under_test(attention_by(way))
    y = attend(q, k, v, mask)
    assert torch.equal(y[1], torch.zeros(4))
    torch.testing.assert_close(y[0], v[0])
    for i, g in enumerate(grad(lambda q, k, v: attend(q, k, v, mask)[1].sum(), argnums=(0, 1, 2))(q, k, v)):
        assert torch.equal(g, torch.zeros(2, 4)), i
    if mask.is_floating_point():
        assert grad(lambda m: attend(q, k, v, m).square().sum())(mask).isfinite().all()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_large_scores_do_not_overflow(under_test, way):
    q, k, v = torch.randn(3, 7, 4, generator=generator(0), dtype=torch.float64).unbind()
    attend = partial(under_test(attention_by(way)), is_causal=True)
    torchs = partial(F.scaled_dot_product_attention, is_causal=True)
    agree(attend, torchs, 100 * q, 100 * k, v, tol={torch.float64: 1e-10})


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_in_tiles_the_weights_are_never_all_there(backward, masked):
    """Beyond its inputs the plain path holds several bytes for each of them, the tiles less than one.

    The kernel makes floats of a boolean mask, for all heads together.
    """
    q, k, v = torch.randn(3, 1, 4, 512, 8, generator=generator(0)).unbind()
    mask = torch.ones(512, 512, dtype=torch.bool) if masked else None

    def run(way: str | int) -> Callable:
        attend = partial(attention_by(way), attn_mask=mask, is_causal=not masked)
        loss = lambda *x: attend(*x).square().sum()  # noqa: E731
        return partial(grad(loss, argnums=(0, 1, 2)) if backward else attend, q, k, v)

    run(32)()
    plain, tiled, native = (peak_growth(run(way)) / (4 * 512 * 512) for way in ("plain", 32, "native"))
    assert plain > 8
    assert tiled < 1
    assert native < 1 + masked


@settings(max_examples=60)
@given(attentions())
def test_weights_are_shares_that_make_the_output(case: Case):
    query, key, value, mask = case.tensors
    assert query is not None
    assert key is not None
    assert value is not None
    weights = attention_weights(query, key, mask, **case.options)
    assert weights.shape == (*query.shape[:-1], key.shape[-2])
    totals = weights.sum(dim=-1)
    assert (((totals - 1).abs() < 1e-12) | (totals == 0)).all()
    if mask is None:
        assert totals.all()
    if case.options["is_causal"]:
        assert not weights.triu(1).any()
    y = scaled_dot_product_attention(query, key, value, mask, **case.options)
    torch.testing.assert_close(weighted_sum(weights, value), y)


def test_causal_mask_by_hand(causal_mask):
    assert causal_mask(2, 3).tolist() == [[True, False, False], [True, True, False]]
    assert causal_mask(3, 2).tolist() == [[True, False], [True, True], [True, True]]


def test_a_causal_mask_is_made_where_it_is_asked_for(causal_mask):
    assert causal_mask(3, 2, torch.device("meta")).is_meta


def test_the_weights_of_all_heads_are_dropped_under_the_key(multi_head_attention):
    """At p = 1 all of them: what is left is the bias of the way out."""
    x, params = torch.randn(2, 3, 8, generator=generator(0)), multi_head_attention_init(generator(1), 8)
    params["out_proj"]["bias"] = torch.arange(8.0)
    attend = lambda p, n: multi_head_attention(x, x, x, 2, **params, dropout_p=p, dropout_key=key(n))[0]  # noqa: E731
    assert torch.equal(attend(1.0, 0), params["out_proj"]["bias"].expand(2, 3, 8))
    assert torch.equal(attend(0.5, 0), attend(0.5, 0))
    assert not torch.equal(attend(0.5, 0), attend(0.5, 1))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_of_weights_keeps_their_mean_and_is_a_function_of_its_key(scaled_dot_product_attention, p):
    """With the unit vectors as values, the output is the weights; here each is 1 / 8 before dropout."""
    q, k, v = torch.zeros(5000, 4), torch.zeros(8, 4), torch.eye(8)
    attend = partial(scaled_dot_product_attention, q, k, v)
    y = attend(dropout_p=p, dropout_key=key(0))
    assert y.unique().tolist() == pytest.approx([0, 1 / 8 / (1 - p)])
    assert abs(float(y.mean()) * 8 - 1) < 5 * math.sqrt(p / (1 - p) / y.numel())
    assert torch.equal(y, attend(dropout_p=p, dropout_key=key(0)))
    assert not torch.equal(y, attend(dropout_p=p, dropout_key=key(1)))
    with pytest.raises(ValueError, match="needs a key"):
        attend(dropout_p=p)


def test_a_mask_beside_is_causal_is_refused(under_test):
    q, mask = torch.ones(3, 4), causal_mask(3, 3)
    for way in WAYS:
        with pytest.raises(ValueError, match="is_causal and attn_mask exclude each other"):
            under_test(attention_by(way))(q, q, q, mask, is_causal=True)


def test_a_mask_of_float64_beside_other_queries_is_refused_by_its_name(under_test):
    q, mask = torch.ones(3, 4), torch.zeros(3, 3, dtype=torch.float64)
    for way, dtype in itertools.product(WAYS, [torch.float32, torch.bfloat16]):
        with pytest.raises(ValueError, match=r"attn_mask is torch\.float64, but the queries are torch\.b?float"):
            under_test(attention_by(way))(*[q.to(dtype)] * 3, mask)


def test_what_attention_refuses():
    q, mask = torch.ones(3, 4), causal_mask(3, 3)
    with pytest.raises(ValueError, match="exclude each other"):
        attention_weights(q, q, mask, is_causal=True)
    for way in ("native", 2):
        with pytest.raises(ValueError, match="attention: there is no dropout of weights"):
            attention_by(way)(q, q, q, dropout_p=0.1, dropout_key=key(0))


def test_heads_that_do_not_divide_the_width_are_refused(multi_head_attention):
    q, params = torch.ones(3, 4), multi_head_attention_init(generator(0), 4)
    for refused in (partial(split_heads, q, 3), partial(multi_head_attention, q, q, q, 3, **params)):
        with pytest.raises(ValueError, match="3 heads do not divide a width of 4"):
            refused()


@given(st.lists(st.integers(1, 3), max_size=2), *[st.integers(1, 4)] * 3, st.data())
@settings(max_examples=40)
def test_heads_are_columns(batch, seq, heads, d_head, data):
    x = data.draw(tensor(*batch, seq, heads * d_head))
    split = split_heads(x, heads)
    assert all(torch.equal(split[..., h, :, :], x[..., d_head * h : d_head * (h + 1)]) for h in range(heads))
    assert torch.equal(merge_heads(split), x)


def with_parameters(op: Any, names: list[str]) -> Any:
    """Return the same function, its parameters as further tensors at the end."""
    return lambda *tensors: op(*tensors[: -len(names)], dict(zip(names, tensors[-len(names) :], strict=True)))


@st.composite
def multi_head(draw: st.DrawFn) -> tuple[Case, nn.MultiheadAttention]:
    """Return (query, key, value, mask, parameters…) and options.

    The mask is per example and head; no row is fully masked.
    """
    heads, d_head, queries, keys = draw(st.tuples(*[st.integers(1, 3)] * 4))
    batch, alike = draw(st.tuples(st.integers(1, 3), st.booleans()))
    d_model, keys = heads * d_head, queries if alike else keys
    torch_module = nn.MultiheadAttention(d_model, heads, batch_first=True, dtype=torch.float64)
    parameters = [draw(tensor(*p.shape)) / math.sqrt(d_model) for p in torch_module.parameters()]
    shapes = [(batch, queries, d_model)] + ([] if alike else [(batch, keys, d_model)] * 2)
    visible = draw(tensor(batch, heads, queries, keys, below=2)) == 0
    visible[..., 0] = True
    kind = draw(st.sampled_from(["none", "causal", "boolean", "additive", "padding"]))
    mask = {
        "boolean": visible,
        "padding": visible[:, :1, :1],
        "additive": draw(tensor(batch, heads, queries, keys)),
    }.get(kind)
    inputs = [draw(tensor(*shape)) for shape in shapes]
    return Case((*inputs, mask, *parameters), {"kind": kind, "heads": heads}), torch_module


@settings(max_examples=150)
@given(multi_head(), st.booleans(), ways)
def test_multi_head_attention_is_torchs_on_its_own_parameters(multi_head_attention, case, need_weights, way):
    (tensors, options), module = case
    kind, heads = options["kind"], options["heads"]
    names = [name for name, _ in module.named_parameters()]

    def ours(*given: Any):
        *inputs, mask, params = given
        q, k, v = inputs * 3 if len(inputs) == 1 else inputs
        options = {"is_causal": kind == "causal", "need_weights": need_weights, "attention": attention_by(way)}
        y, weights = multi_head_attention(q, k, v, heads, **tree.unflatten(params), attn_mask=mask, **options)
        assert (weights is None) == (not need_weights)
        return (y, weights) if need_weights else y

    def torchs(*given: Any):
        """Return its boolean masks are True where a query may not look, and have the heads in the batch."""
        *inputs, mask, params = given
        q, k, v = inputs * 3 if len(inputs) == 1 else inputs
        options: dict[str, Any] = {"need_weights": need_weights, "average_attn_weights": False}
        if kind == "causal":
            options["attn_mask"] = ~torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril()
        elif kind == "padding":
            options["key_padding_mask"] = ~mask[:, 0, 0]
        elif mask is not None:
            options["attn_mask"] = (~mask if kind == "boolean" else mask).flatten(0, 1)
        y, weights = functional_call(module, params, (q, k, v), options)
        return (y, weights) if need_weights else y

    agree(with_parameters(ours, names), with_parameters(torchs, names), *tensors)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_rotary_turns_queries_and_keys_of_every_head(multi_head_attention, way):
    rng = generator(0)
    params = tree.flatten(multi_head_attention_init(rng, 8))
    x, bias = torch.randn(2, 5, 8, generator=rng, dtype=torch.float64), torch.randn(24, generator=rng)

    def ours(x: Tensor, bias: Tensor, params: dict[str, Tensor]):
        own = tree.unflatten(params | {"in_proj_bias": bias})
        options = {"is_causal": True, "rotary": True, "need_weights": True, "attention": attention_by(way)}
        return multi_head_attention(x, x, x, 2, **own, **options)

    def reference(x: Tensor, bias: Tensor, params: dict[str, Tensor]):
        q, k, v = (
            h.unflatten(-1, (2, 4)).transpose(1, 2) for h in F.linear(x, params["in_proj_weight"], bias).split(8, -1)
        )
        q, k = by_complex_numbers(q), by_complex_numbers(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        scores = torch.where(torch.ones(5, 5, dtype=torch.bool).tril(), q @ k.mT / 2, -math.inf)
        return F.linear(y, params["out_proj.weight"], params["out_proj.bias"]), scores.softmax(dim=-1)

    tensors = [x, bias, *params.values()]
    agree(*(with_parameters(f, list(params)) for f in (ours, reference)), *(t.double() for t in tensors))


def test_the_first_weights_have_torchs_spread():
    """Xavier-uniform over the three projections at once; `gain` is that of the way out alone."""
    params = multi_head_attention_init(generator(0), 64, gain=0.5)
    bound = float(nn.MultiheadAttention(64, 4).in_proj_weight.detach().abs().max())
    assert float(params["in_proj_weight"].abs().max()) == pytest.approx(bound, rel=0.01)
    assert not params["in_proj_bias"].any()
    once = multi_head_attention_init(generator(0), 64)
    torch.testing.assert_close(params["out_proj"]["weight"], 0.5 * once["out_proj"]["weight"])
    assert torch.equal(params["in_proj_weight"], once["in_proj_weight"])


@pytest.mark.parametrize("attend", [scaled_dot_product_attention, partial(tiled_attention, block_size=4)])
def test_heads_of_width_zero_weigh_all_values_alike(attend):
    query, key, value = torch.ones(2, 4, 0), torch.ones(2, 7, 0), torch.rand(2, 7, 5)
    torch.testing.assert_close(attend(query, key, value), F.scaled_dot_product_attention(query, key, value))
