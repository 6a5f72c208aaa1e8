"""Run the old way and the new one, and tell whether a pair's statements hold."""

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from experiments.drill.explain import show
from experiments.drill.values import alike
from experiments.shared import cli
from experiments.since.pairs import Pair


class Outcome(NamedTuple):
    """The result of a call."""

    result: Any = None
    error: Exception | None = None
    warned: tuple[str, ...] = ()
    """the type and the words of each warning, once"""
    cost: int | None = None

    @property
    def is_clean(self) -> bool:
        """Return whether there was neither an error nor a warning."""
        return self.error is None and not self.warned


def run(pair: Pair, f: Callable[..., Any], seed: int = 0) -> Outcome:
    """Call `f` with the pair's arguments, and count what it costs if the pair says how."""
    run_of = pair.load()
    with _as_started(pair), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result, error = f(*run_of.given(seed)), None
        except Exception as raised:
            result, error = None, raised
    warned = dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught)
    cost = None
    if run_of.cost is not None and error is None:
        with _as_started(pair), warnings.catch_warnings(action="ignore"):
            cost = run_of.cost(f, *run_of.given(seed))
    return Outcome(result, error, tuple(warned), cost)


@contextmanager
def _as_started(pair: Pair) -> Iterator[None]:
    """Put torch's settings back afterwards; let a pair about processes find the group that torchrun makes, of one."""
    dtype, cudnn, always = torch.get_default_dtype(), torch.backends.cudnn.deterministic, torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else torch says some things once per process
    with ExitStack() as after:
        after.callback(torch.set_warn_always, always)
        after.callback(_set_deterministic, torch.are_deterministic_algorithms_enabled())
        after.callback(setattr, torch.backends.cudnn, "deterministic", cudnn)
        after.callback(torch.set_default_device, None)
        after.callback(torch.set_default_dtype, dtype)
        if pair.theme == "distributed":
            after.callback(setattr, sys, "excepthook", sys.excepthook)  # which the group puts its rank into
            alone = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group("gloo", store=alone, rank=0, world_size=1)
            after.callback(dist.destroy_process_group)
        yield


def _set_deterministic(mode: bool) -> None:
    """Set the mode if it is another: torch's function imports its compiler first, which takes seconds."""
    if torch.are_deterministic_algorithms_enabled() != mode:
        torch.use_deterministic_algorithms(mode)


def wanted(pair: Pair, seed: int = 0) -> Any:
    """Return the result to reach."""
    run_of = pair.load()
    with _as_started(pair):
        return run_of.wanted(*run_of.given(seed))


def in_words(x: Any, most: int = 200) -> str:
    """Return a value in one line; of a tensor with a class of its own, which may lie elsewhere, class and shape."""
    if isinstance(x, Tensor) and type(x) not in (Tensor, Parameter):
        return f"{type(x).__name__}{list(x.shape)}"
    text = " ".join(show(x).split())
    return text if len(text) <= most else f"{text[:most]}…"


def given_in_words(pair: Pair, seed: int) -> str:
    """Return the arguments of a pair in one line."""
    with _as_started(pair):
        return ", ".join(map(in_words, pair.load().given(seed)))


def reaches(result: Any, right: Any) -> bool:
    """Return whether a result is the one that is wanted, up to rounding; what cannot be compared with it is not."""
    try:
        return alike(result, right)
    except Exception:
        return False


def does_as_stated(pair: Pair, old: Outcome, new: Outcome, right: Any) -> bool:
    """Return whether the old way does today what the pair says."""
    today = pair.today
    match today.does:
        case "warns":
            return old.error is None and any(today.words in said for said in old.warned)
        case "raises":
            return type(old.error).__name__ == today.error and today.words in str(old.error)
        case "is wrong":
            return old.is_clean and not reaches(old.result, right)
    costs = old.cost is not None and new.cost is not None and old.cost >= today.times * max(new.cost, 1)
    return old.is_clean and reaches(old.result, right) and costs


def evaluate(pair: Pair, old: Outcome, new: Outcome, right: Any) -> list[cli.Check]:
    """Check the three statements of a pair."""
    said = len(new.warned) + (new.error is not None)
    return [
        cli.check(f"{pair.name}: old does as it says", does_as_stated(pair, old, new, right), "==", 1),
        cli.check(f"{pair.name}: new gives what is wanted", reaches(new.result, right), "==", 1),
        cli.check(f"{pair.name}: warnings and errors of new", said, "==", 0),
    ]


def in_one(checks: Sequence[cli.Check]) -> cli.Check:
    """Return one check of a pair: how many of its statements hold."""
    return cli.check(checks[0].name.partition(":")[0] + ": statements that hold", sum(c.ok for c in checks), "==", 3)
