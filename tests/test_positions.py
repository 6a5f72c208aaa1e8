"""Positional encodings by their laws: a shift is a linear map, a rotary score knows the distance alone."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fn.positions import add_positions, rotary_encoding
from tests.strategies import agree, lifts, made_by, tensor

widths = st.integers(1, 8).map(lambda pairs: 2 * pairs)
bases = st.floats(2, 1e5)


@pytest.fixture(scope="module")
def sinusoidal(sinusoidal_encoding):
    return partial(sinusoidal_encoding, dtype=torch.float64)


@settings(max_examples=50)
@given(st.integers(1, 40), widths, bases)
def test_sinusoidal_is_its_formula(sinusoidal, length, d_model, base):
    expected = [
        [(math.cos if i % 2 else math.sin)(t / base ** (2 * (i // 2) / d_model)) for i in range(d_model)]
        for t in range(length)
    ]
    torch.testing.assert_close(sinusoidal(length, d_model, base), torch.tensor(expected, dtype=torch.float64))


def test_the_clocks_are_those_of_the_paper(sinusoidal):
    """Of a base of 10,000: a pair in four has a hundredth of the first one's speed."""
    p = [[math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100)] for t in range(3)]
    torch.testing.assert_close(sinusoidal(3, 4), torch.tensor(p, dtype=torch.float64))
    x = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64).expand(3, 4)
    turned = [[math.cos(t), math.sin(t), math.cos(t / 100), math.sin(t / 100)] for t in range(3)]
    torch.testing.assert_close(rotary_encoding(x), torch.tensor(turned, dtype=torch.float64))


@settings(max_examples=50)
@given(widths, bases, st.integers(0, 30))
def test_a_shift_of_sinusoidal_positions_turns_each_pair(sinusoidal, d_model, base, k):
    p = sinusoidal(64, d_model, base)
    turns = [k / base ** (2 * i / d_model) for i in range(d_model // 2)]
    pairs = [[[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]] for a in turns]
    shift = torch.block_diag(*torch.tensor(pairs, dtype=torch.float64))
    torch.testing.assert_close(p[k:], p[: len(p) - k] @ shift.T)


@settings(max_examples=20)
@given(st.sampled_from([2, 4, 8, 16]), st.integers(1, 30))
def test_least_squares_finds_the_shift(sinusoidal, d_model, k):
    """One linear map for 100 positions, which a table of as many random rows does not have."""
    table = torch.randn(130, d_model, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    errors = []
    for p in (sinusoidal(130, d_model), table):
        now, later = p[:100], p[k : 100 + k]
        shift = torch.linalg.lstsq(now, later).solution
        errors.append(float((now @ shift - later).abs().max()))
    assert errors[0] < 1e-9
    assert errors[1] > 0.5


def by_complex_numbers(x, base=1e4):
    d_head = x.shape[-1]
    frequencies = base ** -(torch.arange(d_head // 2, dtype=torch.float64) * 2 / d_head)
    angles = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), frequencies)
    turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex(x[:0], x[:0]).dtype)
    pairs = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 9), widths, bases, st.data())
def test_rotary_is_a_product_of_complex_numbers(batch, seq, d_head, base, data):
    x = data.draw(tensor(*batch, seq, d_head))
    agree(partial(rotary_encoding, base=base), partial(by_complex_numbers, base=base), x)
    torch.testing.assert_close(rotary_encoding(x).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotary_encoding(x)[..., 0, :], x[..., 0, :])


@settings(max_examples=60)
@given(widths, st.data())
def test_rotary_scores_depend_on_the_distance_alone(d_head, data):
    """One query and one key, standing everywhere: the scores are equal along the diagonals, and differ across them."""
    query, key = (data.draw(tensor(d_head, varied=True)).expand(20, d_head) for _ in range(2))
    scores = rotary_encoding(query) @ rotary_encoding(key).T
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1])
    assert (scores[0, 1:] - scores[0, 0]).abs().max() > 1e-3


@settings(max_examples=5)
@given(made_by(lambda t, a, b, c: (t(a, b, 2 * c),)))
def test_rotary_lifts(tensors):
    lifts(rotary_encoding, *tensors)


@settings(max_examples=40)
@given(made_by(lambda t, a, b, c: (t(a, b, 2 * c), t(b + 2, 2 * c))))
def test_positions_are_added(sinusoidal, tensors):
    agree(lambda x, table: add_positions(x, "learned", table), lambda x, table: x + table[: x.shape[1]], *tensors)
    x = tensors[0]
    agree(partial(add_positions, positions="sinusoidal"), lambda x: x + sinusoidal(*x.shape[-2:]).to(x.dtype), x)
    assert torch.equal(add_positions(x, "none"), x)
    assert torch.equal(add_positions(x, "rotary"), x)


def test_what_cannot_be_placed_is_refused(sinusoidal_encoding):
    x = torch.ones(2, 5, 3)
    for refused in (partial(sinusoidal_encoding, 5, 3), partial(rotary_encoding, x)):
        with pytest.raises(ValueError, match="a width of 3 does not divide into pairs"):
            refused()
    with pytest.raises(ValueError, match="a sequence of 5 is longer than the 4 that were learned"):
        add_positions(x, "learned", torch.ones(4, 3))
