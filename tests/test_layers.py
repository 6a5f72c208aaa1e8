"""Layers beside torch's over random sizes and memory layouts; dropout and the refusals by their own laws."""

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.func import grad, vmap

from fn.jit import jit
from fn.layers import batch_norm, embedding, flatten, gelu, layer_norm, linear, log_softmax, relu, softmax
from fn.rng import fold_in, generator, key
from tests.strategies import agree, lifts, made_by


def both(op, **options: Any):
    return partial(op, **options), partial(getattr(F, op.__name__), **options)


def over_last(op, axes: int, x: Tensor, *affine: Any, **options: Any):
    return op(x, x.shape[-axes:], *affine, **options)


def ends(axes: int, **options: Any):
    """Layer norm over the last axes, as a function of tensors alone."""
    return [partial(over_last, op, axes, **options) for op in (layer_norm, F.layer_norm)]


def statistics_too(op, x: Tensor, mean: Tensor, var: Tensor, *affine: Any, **options: Any):
    y, state = op(x, mean.detach(), var.detach(), *affine, **options)
    return y, state["running_mean"], state["running_var"]


def torchs_statistics(x: Tensor, mean: Tensor, var: Tensor, *affine: Any, **options: Any):
    """torch moves them in place, knows no gradient for them, and its backward pass misreads a weight with strides."""
    mean, var = mean.detach().clone(), var.detach().clone()
    return F.batch_norm(x, mean, var, *(w.contiguous() for w in affine), **options), mean, var


def normed(**options: Any):
    return partial(statistics_too, batch_norm, **options), partial(torchs_statistics, **options)


def image(t, a, b, c):
    return t(2, a, b, c + 1)


TRAIN = {"training": True, "momentum": 0.3}

# (ours, torch's, the tensors of both for three random sizes)
CASES = {
    "linear": (*both(linear), lambda t, a, b, c: (t(a, b), t(c, b), t(c))),
    "linear, no bias": (*both(linear), lambda t, a, b, c: (t(a, b), t(c, b))),
    "linear, one row": (*both(linear), lambda t, a, b, c: (t(b), t(c, b), t(c))),
    "linear, vector": (*both(linear), lambda t, a, b, c: (t(a, 3, b), t(b))),
    "linear, sequences": (*both(linear), lambda t, a, b, c: (t(a, 3, b), t(c, b), t(c))),
    "embedding": (*both(embedding), lambda t, a, b, c: (t(a, b, below=c), t(c, 3))),
    "embedding, int32": (*both(embedding), lambda t, a, b, c: (t(9, below=c).int(), t(c, b))),
    "embedding, padding": (*both(embedding, padding_idx=0), lambda t, a, b, c: (t(a, b, below=c), t(c, 3))),
    "embedding, padding -1": (*both(embedding, padding_idx=-1), lambda t, a, b, c: (t(a, b, below=c), t(c, 3))),
    "flatten": (flatten, partial(torch.flatten, start_dim=1), lambda *n: (image(*n),)),
    "flatten, flat": (flatten, partial(torch.flatten, start_dim=1), lambda t, a, b, c: (t(a, b),)),
    "relu, away from 0": (*both(relu), lambda t, a, b, c: (t(a, b, c),)),
    "relu": (*both(relu), lambda t, a, b, c: (t(a, b, c, ties=True),)),
    "gelu": (*both(gelu), lambda t, a, b, c: (3 * t(a, b, c),)),
    "gelu, tanh": (*both(gelu, approximate="tanh"), lambda t, a, b, c: (3 * t(a, b, c),)),
    "softmax": (*both(softmax, dim=1), lambda t, a, b, c: (9 * t(a, b, c),)),
    "softmax, last": (*both(softmax, dim=-1), lambda t, a, b, c: (t(a, b),)),
    "log_softmax": (*both(log_softmax, dim=1), lambda t, a, b, c: (9 * t(a, b, c),)),
    "log_softmax, huge": (*both(log_softmax, dim=-1), lambda t, a, b, c: (1e4 * t(a, b, ties=True),)),
    "layer_norm": (*ends(1), lambda t, a, b, c: (t(a, b + 2), t(b + 2), t(b + 2))),
    "layer_norm, plain": (*ends(1), lambda t, a, b, c: (t(a, b, c + 2),)),
    "layer_norm, no bias": (*ends(1), lambda t, a, b, c: (t(a, b + 2), t(b + 2))),
    "layer_norm, two axes": (*ends(2), lambda t, a, b, c: (t(2, a, b, c + 2), t(b, c + 2), t(b, c + 2))),
    "layer_norm, eps": (*ends(2, eps=0.5), lambda t, a, b, c: (t(a, b, c),)),
    "batch_norm": (*normed(**TRAIN), lambda t, a, b, c: (t(a + 2, b, varied=True), t(b), t(b).exp(), t(b), t(b))),
    "batch_norm, plain": (*normed(training=True), lambda t, a, b, c: (t(a + 2, b, varied=True), t(b), t(b).exp())),
    "batch_norm, weight": (*normed(**TRAIN), lambda t, a, b, c: (t(a + 2, b, varied=True), t(b), t(b).exp(), t(b))),
    "batch_norm, sequences": (*normed(**TRAIN), lambda t, a, b, c: (t(a, b, c + 2), t(b), t(b).exp(), t(b), t(b))),
    "batch_norm, images": (*normed(**TRAIN), lambda t, a, b, c: (image(t, a, b, c), t(a), t(a).exp(), t(a), t(a))),
    "batch_norm, eps": (*normed(**TRAIN, eps=0.5), lambda t, a, b, c: (t(a + 1, b), t(b), t(b).exp())),
    "batch_norm, eval": (*normed(), lambda t, a, b, c: (t(a, b), t(b), t(b).exp(), t(b), t(b))),
    "batch_norm, eval, images": (*normed(), lambda t, a, b, c: (image(t, a, b, c), t(a), t(a).exp(), t(a), t(a))),
}
each_case = pytest.mark.parametrize(("ours", "reference", "maker"), CASES.values(), ids=CASES)


@each_case
@settings(max_examples=40)
@given(data=st.data())
def test_is_torchs(under_test, ours, reference, maker, data):
    agree(under_test(ours), reference, *data.draw(made_by(maker)))


@each_case
@settings(max_examples=4)
@given(data=st.data())
def test_lifts(ours, reference, maker, data):
    lifts(ours, *data.draw(made_by(maker)))


ODD = torch.tensor(
    [[0.0, -0.0, 1.0, -1.0], [math.inf, 1.0, 2.0, 3.0], [-math.inf, 0.0, 1.0, 88.8], [math.nan, 0, 1, 2]]
)
EXTREMES = torch.tensor([[1e4, -1e4, 0.0, 9999.0], [1e300, -1e300, 0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("name", ["relu", "softmax", "log_softmax"])
@pytest.mark.parametrize("x", [ODD, EXTREMES, torch.full((2, 3), -math.inf)], ids=["odd", "extreme", "all masked"])
def test_odd_entries_are_treated_as_torch_does(under_test, name, x):
    ours, reference, _ = CASES[name]
    agree(under_test(ours), reference, x, tol={torch.float64: 1e-10})


@pytest.mark.parametrize("name", ["layer_norm", "batch_norm"])
def test_far_from_zero_the_variance_is_as_exact(layer_norm, batch_norm, name):
    """Of E[x²] - E[x]² four digits of float64 would be left."""
    x = 1e6 + torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if name == "layer_norm":
        pairs = [(layer_norm(x, (7,)), F.layer_norm(x, (7,)))]
    else:
        mean, var = torch.zeros(7, dtype=torch.float64), torch.ones(7, dtype=torch.float64)
        y, new = batch_norm(x, mean, var, training=True)
        pairs = [(y, F.batch_norm(x, mean, var, training=True)), (new["running_var"], var)]  # torch's moves in place
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("op", [softmax, log_softmax])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_a_softmax_of_nothing_is_nothing(op, shape):
    agree(partial(op, dim=0), partial(getattr(F, op.__name__), dim=0), torch.ones(shape))


@pytest.mark.parametrize("op", [softmax, log_softmax])
def test_a_softmax_sums_in_the_dtype_that_is_asked_for(under_test, op):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).half()
    ours, torchs = (partial(f, dim=1, dtype=torch.float64) for f in (under_test(op), getattr(F, op.__name__)))
    assert ours(x).dtype == torch.float64
    torch.testing.assert_close(ours(x), torchs(x), rtol=1e-12, atol=1e-12)
    agree(ours, torchs, x, tol={torch.float32: 1e-6})


def test_a_vector_as_weight_takes_no_bias():
    for op in (linear, F.linear):
        with pytest.raises((ValueError, RuntimeError)):
            op(torch.ones(4, 3), torch.ones(3), torch.ones(4))


@pytest.mark.parametrize("row", [3, -4])
def test_a_padding_idx_that_is_no_row_is_refused(row):
    with pytest.raises(ValueError, match=f"padding_idx {row} is none of 3 rows"):
        embedding(torch.tensor([0]), torch.ones(3, 2), padding_idx=row)


def test_layer_norm_refuses_another_shape(layer_norm):
    x, weight = torch.ones(2, 3, 4), torch.ones(4)
    for wrong in ((3,), (2, 4), (4, 3)):
        with pytest.raises(ValueError, match="x has shape"):
            layer_norm(x, wrong)
    with pytest.raises(ValueError, match=r"weight has shape \(4,\), normalized_shape is \(3, 4\)"):
        layer_norm(x, (3, 4), weight)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)])
def test_batch_norm_refuses_to_train_on_one_value_per_channel(batch_norm, shape):
    x, zeros, ones = torch.ones(shape), torch.zeros(3), torch.ones(3)
    for op in (batch_norm, F.batch_norm):
        with pytest.raises(ValueError, match="more than"):
            op(x, zeros, ones, training=True)
    assert batch_norm(x, zeros, ones)[0].shape == shape


def test_batch_norm_of_a_batch_is_standard(batch_norm):
    """Mean 0, biased variance 1 per channel; momentum 1 forgets the past, 0 the batch."""
    x = 5 + 3 * torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    zeros, ones = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    y, new = batch_norm(x, zeros, ones, training=True, momentum=1.0, eps=0.0)
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    torch.testing.assert_close((mean, var), (zeros, ones))
    torch.testing.assert_close(new["running_var"], x.var((0, 2, 3)))
    assert torch.equal(batch_norm(x, zeros, ones, training=True, momentum=0.0)[1]["running_mean"], zeros)


N = 200_000
ONES = torch.ones(N, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_a_share_of_1_minus_p_and_the_mean(dropout, p):
    """The mean of y has standard deviation √(p / (1 - p) / N); five of them would be one accident in a million keys."""
    y = dropout(ONES, p, key=key(0))
    assert torch.isin(y, torch.tensor([0, 1 / (1 - p)], dtype=y.dtype)).all()
    assert abs(float(y.mean()) - 1) < 5 * math.sqrt(p / (1 - p) / N)


@given(p=st.floats(0.05, 0.95), seed=st.integers(0, 2**62))
def test_dropout_is_a_mask_and_a_function_of_its_key(dropout, p, seed):
    x = torch.randn(8, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).transpose(0, 1)
    before, drop = x.clone(), partial(dropout, p=p, key=key(seed))
    mask = drop(torch.ones_like(x))
    torch.testing.assert_close(drop(x), x * mask)
    assert torch.equal(drop(x), drop(x))
    assert torch.equal(drop(x.float()) == 0, mask == 0)  # the same draw in every dtype and memory layout
    assert torch.equal(grad(lambda x: drop(x).sum())(x), mask)
    assert torch.equal(x, before)


def test_each_key_has_its_own_mask_also_under_vmap(dropout):
    keys, x = vmap(fold_in, in_dims=(None, 0))(key(7), torch.arange(6)), ONES[:64]
    masks = vmap(lambda k: dropout(x, key=k))(keys)
    assert torch.equal(masks, torch.stack([dropout(x, key=k) for k in keys]))
    assert len(masks.unique(dim=0)) == len(keys)


def test_dropout_at_its_ends(dropout):
    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 0.9, training=False), x)
    assert torch.equal(dropout(x, 1.0, key=key(0)), torch.zeros(5))
    assert torch.equal(grad(lambda x: dropout(x, 1.0, key=key(0)).sum())(x), torch.zeros(5))
    with pytest.raises(ValueError, match="needs a key"):
        dropout(x, 0.5)
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises((ValueError, TypeCheckError), match=r"'p'|a probability"):
            dropout(x, p, key=key(0))


TABLE = torch.randn(5, 3, generator=generator(0))


@pytest.mark.parametrize("index", [-1, -5, 5, 2**40])
def test_an_index_that_is_no_row_is_refused(index):
    x = torch.tensor([0, index])
    lookups = [embedding, vmap(embedding, (0, None)), grad(lambda x, weight: embedding(x, weight).sum(), argnums=1)]
    for lookup in lookups:
        with pytest.raises(ValueError, match=f"index {index} is none of 5 rows"):
            lookup(x, TABLE)


@pytest.mark.slow
def test_compiled_code_refuses_an_index_that_is_no_row():
    lookup = jit(embedding)
    torch.testing.assert_close(lookup(torch.tensor([0, 4]), TABLE), TABLE[[0, 4]])
    for index in (-1, 5, 2**40):
        with pytest.raises(ValueError, match=f"index {index} is none of 5 rows"):
            lookup(torch.tensor([0, index]), TABLE)
