"""Seconds of a call, and of loaders taken in turns, and their table."""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from experiments.shared import cli, show

Result = TypeVar("Result")
Name = TypeVar("Name", bound=Hashable)
Loader = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def timed(f: Callable[[], Result]) -> tuple[float, Result]:
    """Return (seconds, result) of `f()`"""
    began = time.perf_counter()
    result = f()
    return time.perf_counter() - began, result


def time_loaders(
    loaders: Mapping[Name, Loader], rounds: int
) -> tuple[dict[Name, list[float]], dict[Name, list[float]], dict[Name, tuple[Tensor, Tensor]]]:
    """Load an epoch from each loader in turns: (seconds of each round, of the processor too, the last epoch), by name.

    Torch has one thread meanwhile, as in each worker of a loader.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in loaders}
    busy: dict[Name, list[float]] = {name: [] for name in loaders}
    epochs: dict[Name, tuple[Tensor, Tensor]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(rounds):
        for name, loader in loaders.items():
            began = time.process_time()
            duration, loaded = timed(lambda loader=loader: list(loader()))
            busy[name].append(time.process_time() - began)
            seconds[name].append(duration)
            epochs[name] = torch.cat([x for x, _ in loaded]), torch.cat([y for _, y in loaded])
    torch.set_num_threads(threads)
    return seconds, busy, epochs


def show_loaders(
    title: str,
    images_per_second: Mapping[tuple[str, int], float],
    times: Mapping[tuple[str, int], float],
    alike: Mapping[tuple[str, int], Sequence[bool]],
) -> None:
    """Show a row per loader, (name, workers): its speed, its time beside ours, whether (values, order) are the same."""
    said = {True: "same", False: "others"}
    cli.order("loaders: time of an epoch without workers", {name: times[name, n] for name, n in times if n == 0})
    columns = ("loader", "workers", "images/s", "time / ours", "order", "values")
    rows = [
        (n[0], f"{n[1]}", f"{images_per_second[n]:,.0f}", f"{times[n]:.3g}×", said[order], said[values])
        for n, (values, order) in alike.items()
    ]
    show.table(title, columns, rows)
