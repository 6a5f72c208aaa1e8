"""The ReLU of a traced step moves behind the max pooling that follows: values and gradients stay, to the bit."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad_and_value

from fn.conv import max_pool2d
from fn.jit import compiler
from fn.layers import relu

ODD = torch.tensor([-math.inf, -2.0, -1.0, -0.0, 0.0, 1.0, 2.0, math.inf, math.nan])
aten = torch.ops.aten


def pooled(x: Tensor, kernel_size: int) -> Tensor:
    return max_pool2d(relu(x), kernel_size)


def traced(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor], list[torch.Size]]:
    """Return (what a step returns, what its traced graph returns, the shapes of the ReLUs in that).

    Value and gradient of f.
    """
    weights = 1.0 + torch.arange(f(x).numel()).reshape(f(x).shape)

    def step(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            y = f(x)
            return (y * weights).sum(), y

        grads, (_, y) = grad_and_value(objective, has_aux=True)(x)
        return y, grads, x

    graph, *_ = compiler._trace(step, (x, weights), {}, [x, weights], False)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    relus = [n for n in graph.graph.find_nodes(op="call_function", target=aten.where.self) if compiler.is_relu(n)]
    shapes = [n.args[2].meta["val"].shape for n in relus]
    return list(step(x, weights)), list(graph(x, weights)), shapes


def assert_equal(a: list[Tensor], b: list[Tensor]) -> None:
    for own, other in zip(a, b, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 3), st.tuples(st.integers(0, 5), st.integers(0, 5)), st.integers(0, 2**32))
def test_values_and_gradients_stay(kernel_size, more, seed):
    """Ties, NaN, infinity; rows and columns that are left over."""
    rng = torch.Generator().manual_seed(seed)
    x = ODD[torch.randint(len(ODD), (2, 2, kernel_size + more[0], kernel_size + more[1]), generator=rng)]
    eager, moved, shapes = traced(lambda x: pooled(x, kernel_size), x)
    assert_equal(moved, eager)
    assert shapes == [eager[0].shape]


def larger(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a > b, a, b)


X = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
STAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "read twice": lambda x: max_pool2d(y := relu(x), 2) + y[..., ::2, ::2],
    "its condition is read": lambda x: max_pool2d(torch.where(c := x <= 0, 0.0, x), 2) * c[..., ::2, ::2],
    "another function between": lambda x: max_pool2d(relu(x) * 2, 2),
    "the smallest of two": lambda x: torch.minimum(*relu(x).unflatten(-1, (3, 2)).unbind(-1)),
    "one of two": lambda x: larger(*relu(x).unflatten(-1, (3, 2)).unbind(-1)),
    "overlapping windows": lambda x: max_pool2d(relu(x), 3, 1),
}


@pytest.mark.parametrize("f", STAYS.values(), ids=STAYS)
def test_what_is_no_such_pair_stays(f):
    eager, moved, shapes = traced(f, X)
    assert_equal(moved, eager)
    assert X.shape in shapes


def test_a_relu_behind_the_pool_stays_and_two_pools_in_a_row_are_passed():
    for f in (lambda x: relu(max_pool2d(x, 2)), lambda x: max_pool2d(pooled(x, 2), 2)):
        eager, moved, shapes = traced(f, torch.cat([X, X], dim=2))
        assert_equal(moved, eager)
        assert len(shapes) == 1
        assert shapes[0].numel() < 2 * X.numel()


def test_forward_alone_moves_too():
    graph, *_ = compiler._trace(lambda x: pooled(x, 2), (X,), {}, [X], False)
    assert_equal(graph(X), [pooled(X, 2)])
