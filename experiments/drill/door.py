"""Your function in the place of ours: whoever holds ours calls yours, and what passes through is watched.

A test may hold our function in a module, a `partial`, a table of cases or a default. So it is not looked for in those
places: the code of the function object itself is exchanged.
"""

import inspect
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped
from torch import Tensor
from torch.overrides import TorchFunctionMode

from experiments.drill.values import leaves

ANSWER = "drill_answer"
"""the name of the module that an answer is loaded as"""


class Refused(Exception):
    """Says which function that is to be written was called instead."""


def exchange(function: Any, by: Callable) -> Callable:
    """From now on whoever calls `function` calls `by`; what it was is returned."""
    original = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    original.__kwdefaults__ = function.__kwdefaults__
    original.__dict__.update(function.__dict__)

    function.__code__ = _code_that_calls(by, function.__code__.co_freevars)
    return original


def _code_that_calls(target: Callable, free: tuple[str, ...]) -> CodeType:
    """Of a function with as many free variables, or it could not stand in for one that has them."""
    declared = "; ".join(f"{name} = None" for name in free) or "pass"
    mention = ", ".join(free) or "None"
    stub = f"def stub(*args, **kwargs): return 'target'(*args, **kwargs); {mention}"
    text = f"def outer():\n {declared}\n {stub}\n return stub"
    space: dict[str, Any] = {}
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # a text is no function: it is replaced
        exec(compile(text, "<door>", "exec"), space)
    code = space["outer"]().__code__
    return code.replace(co_consts=tuple(target if constant == "target" else constant for constant in code.co_consts))


def checked(yours: Callable, ours: Callable) -> Callable:
    """`yours` under the checks that every function of fn has; where it has no annotation, ours stands in."""
    own, model = inspect.unwrap(yours), inspect.unwrap(ours)
    own.__name__ = model.__name__  # a lambda has none that one could define
    own.__annotations__ = {**model.__annotations__, **getattr(own, "__annotations__", {})}
    return jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))(yours)


class Call(NamedTuple):
    """One call: what went in, what yours made of it and what ours, each an exception if it raised one"""

    arguments: dict[str, Any]
    yours: Any
    ours: Any
    before: dict[str, Any]
    """the arguments as they were"""
    gradients: tuple[dict[str, Tensor | None], dict[str, Tensor | None]] = ({}, {})
    """of yours and of ours, for each tensor that had one to give"""


class Watch(TorchFunctionMode):
    """Notices torch's own functions that do what is to be written."""

    def __init__(self, door: "Door", names: frozenset[str]) -> None:
        super().__init__()
        self.door, self.names = door, names

    def __torch_function__(self, func, types, args=(), kwargs=None):  # pyright: ignore
        name = getattr(func, "__name__", "").partition(".")[0]
        if any(forbidden in name for forbidden in self.names):  # _native_batch_norm_legit too
            raise self.door.refuse(f"torch's own `{name}`")
        return func(*args, **(kwargs or {}))


class Door:
    """Stands where our function stood; `calls` counts what went through, `judging` lets ours answer and compares."""

    def __init__(self, ours: Any, yours: Callable, forbidden: frozenset[str] = frozenset()) -> None:
        self.yours, self.forbidden, self.name = yours, forbidden, f"{ours.__module__}.{ours.__qualname__}"
        self.inside, self.calls, self.judging = False, 0, False
        self.refusal: Refused | None = None
        self.error: tuple[BaseException, dict[str, Any]] | None = None
        self.seen: list[Call] = []
        self.printed = io.StringIO()
        bare = inspect.unwrap(ours)
        self.signature = inspect.signature(bare)
        if bare is not ours and inspect.isfunction(bare):  # what the checks are wrapped around
            self.guard(bare, f"our own `{self.name}`")
        self.ours = exchange(ours, self._call)

    @classmethod
    def of_class(cls, ours: type, yours: type) -> "Door":
        """Whoever makes one of ours gets one of yours."""
        original = type(ours.__name__, ours.__bases__, {k: v for k, v in vars(ours).items() if k != "__dict__"})
        made = lambda *args, **kwargs: original(*args, **kwargs)  # noqa: E731
        made.__module__, made.__qualname__ = ours.__module__, ours.__qualname__
        made.__dict__["__wrapped__"] = original
        door = cls(made, yours)
        ours.__new__ = staticmethod(lambda _, *args, **kwargs: made(*args, **kwargs))  # pyright: ignore
        return door

    def refuse(self, what: str) -> Refused:
        self.refusal = Refused(what)
        return self.refusal

    def guard(self, function: Any, what: str, *, direct: bool = False) -> None:
        """Another function that yours is to do without; where `direct`, others that yours calls may use it."""

        def guarded(*args, **kwargs):
            caller = sys._getframe(2)  # past the code that was exchanged
            if self.inside and not (direct and caller.f_globals.get("__name__") != ANSWER):
                raise self.refuse(what)
            return original(*args, **kwargs)

        original = exchange(function, guarded)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self.inside:
            raise self.refuse(f"our own `{self.name}`")
        self.calls += 1
        if self.judging:
            return self._judge(args, kwargs)
        with self._within(args, kwargs):
            result = self.yours(*args, **kwargs)
        return self._watched(result, args, kwargs) if inspect.isgenerator(result) else result

    @contextmanager
    def _within(self, args: Any, kwargs: Any) -> Iterator[None]:
        self.inside = True
        watch = Watch(self, self.forbidden) if self.forbidden else nullcontext()
        try:
            with redirect_stdout(self.printed), watch:
                yield
        except (Exception, SystemExit) as error:
            self.error = error, self._bound(args, kwargs)
            raise
        finally:
            self.inside = False

    def _watched(self, generator: Iterator, args: Any, kwargs: Any) -> Iterator:
        """A generator runs later, a piece at a time: each piece is watched."""
        end = object()
        while True:
            with self._within(args, kwargs):
                item = next(generator, end)
            if item is end:
                return
            yield item

    def _bound(self, args: Any, kwargs: Any) -> dict[str, Any]:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError:
            return {"args": args, **kwargs}
        bound.apply_defaults()
        return dict(bound.arguments)

    def _judge(self, args: Any, kwargs: Any) -> Any:
        args, kwargs = _listed(args), _listed(kwargs)
        if torch._C._functorch.maybe_current_level() is None:  # pyright: ignore
            given = [copied((args, kwargs)) for _ in range(3)]
            self.inside = True
            try:
                yours = outcome(self.yours, *given[0])
            finally:
                self.inside = False
            arguments, before = (self._bound(*some) for some in (given[0], given[2]))
            ours = outcome(self.ours, *given[1])
            gradients = gradients_of(yours, given[0]), gradients_of(ours, given[1])
            self.seen.append(Call(arguments, yours, ours, before, gradients))
        return self.ours(*_iterated(args), **_iterated(kwargs))


def outcome(f: Callable, args: Any, kwargs: Any) -> Any:
    try:
        result = f(*_iterated(args), **_iterated(kwargs))
        if isinstance(result, torch.utils.data.Dataset):
            return [result[i] for i in range(len(result))]  # pyright: ignore
        return list(result) if inspect.isgenerator(result) else result
    except (Exception, SystemExit) as error:
        return error


def gradients_of(result: Any, given: Any) -> dict[str, Tensor | None]:
    """Of Σ ⟨fixed random numbers, result⟩"""
    live = [y for _, y in leaves(result) if isinstance(y, Tensor) and y.requires_grad]
    inputs = {path: x for path, x in leaves(given, "") if isinstance(x, Tensor) and x.requires_grad and x.is_leaf}
    if not live or not inputs:
        return {}
    rng = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(y.shape, generator=rng, dtype=torch.float64).to(y.dtype) for y in live]
    try:
        grads = torch.autograd.grad(live, list(inputs.values()), cotangents, allow_unused=True)
    except RuntimeError:  # something was changed in place that the gradient needs
        return {}
    return dict(zip(inputs, grads, strict=True))


class _Once(list):
    """What an iterator would have given."""


def _listed(x: Any) -> Any:
    return _over(lambda leaf: _Once(leaf) if hasattr(leaf, "__next__") else leaf, x)


def _iterated(x: Any) -> Any:
    return _over(lambda leaf: iter(leaf) if isinstance(leaf, _Once) else leaf, x)


def copied(x: Any) -> Any:
    """The same values in new tensors, layouts kept, which are leaves where they had a gradient."""
    return _over(_copy, x)


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, _Once):
        return _Once(copied(list(leaf)))
    if isinstance(leaf, torch.nn.Module):
        import copy

        return copy.deepcopy(leaf)
    if not isinstance(leaf, Tensor):
        return leaf
    apart = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
    apart = leaf.detach().clone() if 0 in leaf.stride() else apart.copy_(leaf.detach())
    return apart.requires_grad_(leaf.requires_grad)


def _over(f: Callable, x: Any) -> Any:
    """`f` on every leaf of tuples, lists and dicts."""
    if isinstance(x, dict):
        return {name: _over(f, value) for name, value in x.items()}
    if isinstance(x, tuple):
        parts = [_over(f, value) for value in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if type(x) is list:
        return [_over(f, value) for value in x]
    return f(x)
