"""Keys: the published stream, uniform and independent draws, no hidden state, the same under every transform."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.func import vmap

from fn.rng import fold_in, generator, key, randint, uniform

# The first five outputs of the reference implementation, https://prng.di.unimi.it/splitmix64.c, from seed 1234567.
SPLITMIX64 = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
N = 100_000


def test_reference_stream():
    assert [int(fold_in(key(1234567), i)) % 2**64 for i in range(5)] == SPLITMIX64
    assert uniform(key(1234567), (5,)).tolist() == [(word >> 40) / 2**24 for word in SPLITMIX64]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62))
def test_every_key_follows_the_published_algorithm(seed, index):
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    assert int(fold_in(key(seed), index)) % 2**64 == z ^ (z >> 31)


@pytest.mark.parametrize("k", [key(0), key(1), key(-1), key(7, 1, 2)])
def test_draws_are_uniform(k):
    """The keys are fixed, so a p-value below 1e-4 is a fault and no accident."""
    draws = uniform(k, (N,))
    assert draws.dtype == torch.float32
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert stats.kstest(draws.double().numpy(), "uniform").pvalue > 1e-4
    assert stats.chisquare(torch.histc(draws, 256, 0, 1).numpy()).pvalue > 1e-4
    lowest_bits = (draws * 2**24).long() % 256
    assert stats.chisquare(torch.bincount(lowest_bits, minlength=256).numpy()).pvalue > 1e-4


@pytest.mark.parametrize(
    ("k1", "k2"),
    [
        (key(0, 0), key(0, 1)),  # siblings
        (key(0), key(0, 0)),  # parent and child
        (key(0), key(1)),  # neighbours
        (key(0, 1, 2), key(0, 2, 1)),
    ],
)
def test_draws_of_two_keys_are_independent(k1, k2):
    """√N r is a standard normal variable; pairs fill an 8 × 8 grid evenly, also when one is shifted by a draw."""
    a, b = uniform(k1, (N,)), uniform(k2, (N,))
    for x, y in ((a, b), (a[1:], b[:-1]), (a[:-1], b[1:]), (a[1:], a[:-1])):
        assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 4 / N**0.5
        cells = (x * 8).long() * 8 + (y * 8).long()
        assert stats.chisquare(torch.bincount(cells, minlength=64).numpy()).pvalue > 1e-4


def test_children_in_a_row_draw_uniformly_and_all_differently():
    children = fold_in(key(3).expand(N), torch.arange(N))
    assert len(children.unique()) == N
    first = uniform(children, ())
    assert stats.kstest(first.double().numpy(), "uniform").pvalue > 1e-4


def test_a_draw_is_a_function_of_key_and_shape():
    k = key(5)
    before = torch.random.get_rng_state()
    assert torch.equal(uniform(k, (2, 3)), uniform(k, (2, 3)))
    assert torch.equal(uniform(k, (2, 3)).flatten(), uniform(k, (6,)))
    assert uniform(k, ()).shape == ()
    assert uniform(k, (0, 3)).shape == (0, 3)
    assert int(k) == 5
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_path_is_fold_in_repeated():
    assert torch.equal(key(7, 3, 1), fold_in(fold_in(key(7), 3), torch.tensor(1)))
    assert len({int(key(s, e, i)) for s in range(5) for e in range(5) for i in range(5)}) == 125


def test_many_keys_at_once_equal_a_loop():
    """Under vmap and as a tensor of any shape and layout: each key draws as if it were alone."""
    keys = fold_in(key(0).expand(24), torch.arange(24)).view(4, 3, 2).transpose(0, 2)
    for f in (partial(uniform, shape=(3, 2)), partial(uniform, shape=()), partial(randint, low=-3, high=9, shape=(5,))):
        each = torch.stack([f(k) for k in keys.flatten()])
        assert torch.equal(f(keys), each.view(*keys.shape, *each.shape[1:]))
        assert torch.equal(vmap(f)(keys.flatten()), each)
    each = torch.stack([fold_in(k, k) for k in keys.flatten()])
    assert torch.equal(fold_in(keys, keys), each.view(keys.shape))
    assert torch.equal(vmap(fold_in)(keys.flatten(), keys.flatten()), each)
    assert torch.equal(fold_in(keys, 5), torch.stack([fold_in(k, 5) for k in keys.flatten()]).view(keys.shape))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 2), (-3, 4), (5, 15), (-1000, 0), (0, 2**12)])
def test_whole_numbers_are_even_from_low_to_below_high(low, high):
    draws = randint(key(2), low, high, (N,))
    assert (int(draws.min()), int(draws.max())) == (low, high - 1)
    assert high - low == 1 or stats.chisquare(torch.bincount(draws - low, minlength=high - low)).pvalue > 1e-4


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**24))
def test_no_whole_number_reaches_high(low, many):
    """Not even from the greatest uniform number, and from the least comes `low`."""
    with pytest.MonkeyPatch.context() as extreme:
        extreme.setattr("fn.rng.uniform", lambda key, shape: torch.tensor([0, 1 - 2**-24]))
        least, greatest = randint(key(0), low, low + many, (2,)).tolist()
    assert least == low
    assert greatest == low + many - 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler warns about itself
def test_compiled_draws_are_the_same_bits():
    draw = torch.compiler.nonstrict_trace(lambda k: uniform(fold_in(k, 1), (3, 5)))
    compiled = torch.compile(lambda k: draw(k), backend="aot_eager", fullgraph=True)
    for seed in (0, -1):
        assert torch.equal(compiled(key(seed)), uniform(key(seed, 1), (3, 5)))


def test_a_generator_is_a_function_of_its_arguments():
    before = torch.random.get_rng_state()
    draw = lambda *path: torch.rand(4, generator=generator(*path)).tolist()  # noqa: E731
    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16
    assert torch.equal(torch.random.get_rng_state(), before)
