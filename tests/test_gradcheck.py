"""Central differences beside autograd."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad

from fn import tree
from fn.gradcheck import relative_error
from fn.rng import generator


def curved(params: tree.Params) -> torch.Tensor:
    """Return every entry has a slope of its own, and a curvature."""
    weight, bias = params["fc"]["weight"], params["bias"]
    return (weight @ bias).sin().sum() + (weight**3).sum() + bias.exp().sum()


@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000), st.sampled_from([1, 3, 256]))
def test_numerical_grad_is_autograds(numerical_grad, rows, columns, seed, chunk_size):
    rng = generator(seed)
    weight = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    params = {"fc": {"weight": weight.T.contiguous().T}, "bias": torch.randn(columns, generator=rng).double()}
    slopes = numerical_grad(curved, params, eps=1e-5, chunk_size=chunk_size)
    for slope, leaf in zip(tree.leaves(slopes), tree.leaves(params), strict=True):
        assert (slope.shape, slope.dtype) == (leaf.shape, leaf.dtype)
    assert relative_error(slopes, grad(curved)(params)) < 1e-8


def test_nothing_is_left_moved(numerical_grad):
    params = {"fc": {"weight": torch.ones(2, 2).double()}, "bias": torch.zeros(2).double()}
    numerical_grad(curved, params)
    assert torch.equal(params["fc"]["weight"], torch.ones(2, 2).double())
    assert not params["bias"].any()
