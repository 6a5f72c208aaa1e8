"""A call that passed is looked up, and everything else is checked as at the first call."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from jaxtyping import Float, TypeCheckError, config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fn import checks, tree
from fn.checks import hangs_on_signature, remember, sign
from fn.domains import Count, Counts, Probability
from fn.layers import linear


@pytest.fixture
def full_checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the functions that were checked in full, in order."""
    names: list[str] = []

    def counting(f: Callable) -> Callable:
        checked = full(f)

        def counted(*args: Any, **kwargs: Any) -> Any:
            names.append(f.__name__)
            return checked(*args, **kwargs)

        return counted

    full = checks.check
    monkeypatch.setattr(checks, "check", counting)
    return names


def scale(x: Float[Tensor, "batch d"], by: Float[Tensor, " d"], *, p: Probability = 0.5) -> Float[Tensor, "batch d"]:
    return x * by * p


def test_a_signature_is_checked_once(full_checks: list[str]) -> None:
    f = remember(scale)
    for batch in (2, 3, 2, 3, 2):
        assert torch.equal(f(torch.ones(batch, 4), torch.ones(4)), torch.full((batch, 4), 0.5))
    assert full_checks == ["scale", "scale"]


WRONG: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "shape": ([torch.ones(2, 4), torch.ones(3)], {"p": 0.5}),
    "rank": ([torch.ones(4), torch.ones(4)], {"p": 0.5}),
    "dtype": ([torch.ones(2, 4), torch.ones(4).long()], {"p": 0.5}),
    "type": ([torch.ones(2, 4), np.ones(4, np.float32)], {"p": 0.5}),
    "number": ([torch.ones(2, 4), torch.ones(4)], {"p": 1.5}),
    "a number of numpy": ([torch.ones(2, 4), torch.ones(4)], {"p": np.float64(1.5)}),
    "name": ([torch.ones(2, 4), torch.ones(4)], {"q": 0.5}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_call_is_refused_after_right_ones_in_the_same_words(wrong: str) -> None:
    f, (args, kwargs) = remember(scale), WRONG[wrong]
    for p in (0.5, 1, 1.0, np.float64(0.5)):
        f(torch.ones(2, 4), torch.ones(4), p=p)
    said = []
    for refused in (f, checks.check(scale), f):
        with pytest.raises((TypeCheckError, TypeError)) as error:
            refused(*args, **kwargs)
        said.append(str(error.value))
    assert said == said[:1] * 3


def test_a_wrong_result_is_refused_after_right_ones_and_f_runs_once_a_call() -> None:
    results: Any = iter([torch.ones(2), torch.ones(2), torch.ones(3), torch.ones(2), torch.ones(2).double(), None])
    ran = []

    def draw(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        ran.append(x)
        return next(results)

    f, x = remember(draw), torch.zeros(2)
    for wrong in (False, False, True, False, False, True):
        if wrong:
            with pytest.raises(TypeCheckError, match=r"checking the return value of .*draw\.\n"):
                f(x)
        else:
            f(x)
    assert len(ran) == 6


def test_an_error_of_the_function_itself_passes_through(full_checks: list[str]) -> None:
    def invert(x: float) -> float:
        return 1 / x

    f = remember(invert)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            f(0.0)
    assert f(2.0) == f(2.0) == 0.5
    assert full_checks == ["invert"] * 3


class Pair(NamedTuple):
    first: float
    second: float


def of_count(x: Count) -> int:
    return x


def of_list(x: list[float]) -> int:
    return len(x)


def of_dict(x: dict[str, float]) -> int:
    return len(x)


def of_sizes(x: Counts) -> int:
    return len(x)


def of_pair(x: tuple[Probability, Probability]) -> float:
    return sum(x)


def of_tree(x: dict[str, Any]) -> int:
    return len(x)


CONTAINERS: dict[str, tuple[Callable, Any, Any]] = {
    "True for 1": (of_count, 1, True),
    "list": (of_list, [1.0], ["a"]),
    "dict": (of_dict, {"a": 1.0}, {"a": "b"}),
    "first key": (of_tree, {"a": 1.0}, {1: 1.0}),
    "empty dict": (of_tree, {}, {None: 1}),
    "sizes": (of_sizes, (1, 2), (1, 0)),
    "many sizes": (of_sizes, [1] * 20, [1] * 19 + [0]),
    "range": (of_sizes, range(1, 3), range(3)),
    "pair": (of_pair, (0.5, 1.0), (0.5, 1.5)),
    "named pair": (of_pair, Pair(0.5, 1.0), Pair(0.5, 1.5)),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_are_no_loophole(kind: str) -> None:
    f, right, wrong = CONTAINERS[kind]
    f = remember(f)
    assert f(right) == f(right)
    with pytest.raises(TypeCheckError):
        f(wrong)


def test_a_size_that_an_object_holds_is_looked_at_each_time() -> None:
    class Spec:
        size = 2

    def grid(spec: Spec) -> Float[Tensor, "{spec.size} 1"]:
        return torch.zeros(2, 1)

    assert hangs_on_signature(Float[Tensor, "channels//{groups} {height}"])
    f, spec = remember(grid), Spec()
    f(spec)
    spec.size = 3
    with pytest.raises(TypeCheckError):
        f(spec)


def test_what_passed_without_checks_is_no_pass() -> None:
    f = remember(scale)
    config.update("jaxtyping_disable", True)
    try:
        f(torch.ones(2, 4), torch.ones(2, 1))
    finally:
        config.update("jaxtyping_disable", False)
    with pytest.raises(TypeCheckError):
        f(torch.ones(2, 4), torch.ones(2, 1))


def test_signatures_tell_values_names_and_tuples_apart() -> None:
    assert sign((1, 2), ["a"]) != sign(("a", 1, 2))
    assert sign(((1, 2), 3)) != sign(((1,), 2, 3))
    assert sign([0.0]) != sign([0]) != sign([False])


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, full_checks: list[str]) -> None:
    monkeypatch.setattr(checks, "MANY", 3)
    f = remember(of_pair)
    for _ in range(2):
        for i in range(1, 5):
            f((0.5, 1 / i))
    assert 4 < len(full_checks) <= 8


def test_shapes_that_are_symbols_are_checked_in_full(full_checks: list[str]) -> None:
    f = remember(scale)
    graph = make_fx(lambda x, by: f(x, by), tracing_mode="symbolic")(torch.ones(2, 4), torch.ones(4))
    assert full_checks
    assert torch.equal(graph(torch.ones(3, 4), torch.ones(4)), torch.full((3, 4), 0.5))


def test_tensors_of_another_kind_are_another_signature(full_checks: list[str]) -> None:
    f = remember(scale)
    for _ in range(2):
        f(torch.ones(2, 4), torch.ones(4))
        torch.func.grad(lambda x: f(x, torch.ones(4)).sum())(torch.ones(2, 4))
    assert len(full_checks) == 1
    with FakeTensorMode():
        f(torch.ones(2, 4), torch.ones(4))
    assert len(full_checks) == 2
    mapped = torch.vmap(lambda x: f(x, torch.ones(4)))(torch.ones(5, 3, 4))
    assert mapped.shape == (5, 3, 4)
    with pytest.raises(TypeCheckError):
        torch.vmap(lambda x: f(x, torch.ones(4)))(torch.ones(5, 4))


def test_the_hook_remembers_for_the_functions_of_fn() -> None:
    for f in (linear, tree.flatten):
        assert inspect.unwrap(f, stop=lambda g: g.__code__.co_name == "remembered").__code__.co_name == "remembered"
