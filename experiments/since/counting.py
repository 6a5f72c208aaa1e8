"""Costs that are counted, the same on every machine: operations, and bytes kept for the backward pass."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode


class _Counter(TorchDispatchMode):
    """Counts the operations that reach the kernels, those of some names, or all."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names, self.count = names, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += not self.names or name in self.names
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], Any], *names: str) -> int:
    """Return how many operations `run` does; with names, those alone."""
    with _Counter(names) as counter:
        run()
    return counter.count


def bytes_saved(run: Callable[[], Any], given: Iterable[Tensor] = ()) -> int:
    """Return the bytes that autograd keeps for the backward pass, beside what was given."""
    saved: dict[int, Tensor] = {}  # by place in memory; held, so that no place is used twice

    def keep(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        result = run()
    given_storages = {x.untyped_storage().data_ptr() for x in given}
    del result
    return sum(x.untyped_storage().nbytes() for place, x in saved.items() if place not in given_storages)
