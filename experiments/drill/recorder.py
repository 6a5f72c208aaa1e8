"""A callable that stands in for our function in its tests: it calls the answer, counts, and compares the two."""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped
from torch import Tensor

from experiments.drill.limits import memory_limited
from experiments.drill.values import leaves

Arguments = dict[str, Any]


class Call(NamedTuple):
    """One call: the arguments afterwards, both results (an exception if one was raised), and the arguments before."""

    arguments: Arguments
    yours: Any
    ours: Any
    before: Arguments
    gradients: tuple[dict[str, Tensor | None], dict[str, Tensor | None]] = ({}, {})
    """of yours and of ours, for each tensor that requires one"""


class Recorder:
    """Calls the answer in place of ours. While `comparing`, calls both, keeps each Call and returns our result."""

    def __init__(self, yours: Callable, ours: Callable) -> None:
        self.yours = yours if inspect.isclass(ours) else checked(yours, ours)
        self.ours = ours
        self.signature = inspect.signature(inspect.unwrap(ours))
        self.calls, self.comparing = 0, False
        self.most: int | None = None
        """calls that are compared in a test, which ends with the next one; None for all"""
        self.cut = False
        """whether a test was ended so"""
        self.seen: list[Call] = []
        self.error: tuple[BaseException, Arguments] | None = None
        """the last exception of the answer, and the arguments of that call"""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.comparing:
            return self._compare(args, kwargs)
        with self._recorded(args, kwargs):
            result = self.yours(*args, **kwargs)
        return self._iterate(result, args, kwargs) if inspect.isgenerator(result) else result

    @contextmanager
    def _recorded(self, args: Any, kwargs: Any) -> Iterator[None]:
        try:
            with memory_limited():
                yield
        except (Exception, SystemExit) as error:
            self.error = error, self._bind(args, kwargs)
            raise

    def _iterate(self, generator: Iterator, args: Any, kwargs: Any) -> Iterator:
        with self._recorded(args, kwargs):
            yield from generator

    def _bind(self, args: Any, kwargs: Any) -> Arguments:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError:
            return {"args": args, **kwargs}
        bound.apply_defaults()
        return dict(bound.arguments)

    def _compare(self, args: Any, kwargs: Any) -> Any:
        if self.most is not None and self.calls > self.most:
            self.cut = True
            pytest.skip("enough calls are compared")
        args, kwargs = _over(_as_list, args), _over(_as_list, kwargs)
        # under vmap or grad a tensor has no values that one could compare
        if torch._C._functorch.maybe_current_level() is None:  # pyright: ignore
            for_yours, for_ours, unused = (copied((args, kwargs)) for _ in range(3))
            yours, ours = outcome(self.yours, *for_yours), outcome(self.ours, *for_ours)
            gradients = gradients_of(yours, for_yours), gradients_of(ours, for_ours)
            self.seen.append(Call(self._bind(*for_yours), yours, ours, self._bind(*unused), gradients))
        return self.ours(*_over(_as_iterator, args), **_over(_as_iterator, kwargs))


RECORDER = pytest.StashKey[Recorder]()
"""where pytest's config holds it for the fixture `under_test`"""


def checked(yours: Callable, ours: Callable) -> Callable:
    """Return `yours` under the shape checks of fn; an argument that it does not annotate is checked as in ours."""
    own, model = inspect.unwrap(yours), inspect.unwrap(ours)
    own.__name__ = model.__name__  # a lambda has none that fits
    own.__annotations__ = {**model.__annotations__, **getattr(own, "__annotations__", {})}
    return jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))(yours)


def outcome(f: Callable, args: Any, kwargs: Any) -> Any:
    """Return f(*args, **kwargs), a generator or a data set as a list, an exception as a value."""
    try:
        with memory_limited():
            result = f(*_over(_as_iterator, args), **_over(_as_iterator, kwargs))
            if isinstance(result, torch.utils.data.Dataset):
                return [result[i] for i in range(len(result))]  # pyright: ignore
            return list(result) if inspect.isgenerator(result) else result
    except (Exception, SystemExit) as error:
        return error


def gradients_of(result: Any, given: Any) -> dict[str, Tensor | None]:
    """Return ∂/∂x Σ ⟨fixed random numbers, result⟩ for each tensor x of `given` that requires a gradient."""
    live = [y for _, y in leaves(result) if isinstance(y, Tensor) and y.requires_grad]
    inputs = {path: x for path, x in leaves(given, "") if isinstance(x, Tensor) and x.requires_grad and x.is_leaf}
    if not live or not inputs:
        return {}
    rng = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(y.shape, generator=rng, dtype=torch.float64).to(y.dtype) for y in live]
    try:
        grads = torch.autograd.grad(live, list(inputs.values()), cotangents, allow_unused=True)
    except RuntimeError:  # a tensor that the gradient needs was changed in place
        return {}
    return dict(zip(inputs, grads, strict=True))


class _Items(list):
    """Return the items of an iterator, which could be read only once."""


def _as_list(leaf: Any) -> Any:
    return _Items(leaf) if hasattr(leaf, "__next__") else leaf


def _as_iterator(leaf: Any) -> Any:
    return iter(leaf) if isinstance(leaf, _Items) else leaf


def copied(x: Any) -> Any:
    """Copy all tensors and modules in `x`: equal values and strides, a leaf wherever a gradient is required."""
    return _over(_copy, x)


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, _Items):
        return _Items(copied(list(leaf)))
    if isinstance(leaf, torch.nn.Module):
        return copy.deepcopy(leaf)
    if not isinstance(leaf, Tensor):
        return leaf
    if 0 in leaf.stride():
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    empty = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
    return empty.copy_(leaf.detach()).requires_grad_(leaf.requires_grad)


def _over(f: Callable, x: Any) -> Any:
    """Return `f` on every leaf of tuples, lists and dicts."""
    if isinstance(x, dict):
        return {name: _over(f, value) for name, value in x.items()}
    if isinstance(x, tuple):
        parts = [_over(f, value) for value in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if type(x) is list:
        return [_over(f, value) for value in x]
    return f(x)
