"""A new Python number is a new constant: compile again

Expect: A step is compiled for tensors whose shapes never change, so
dynamic=False. Its rate falls from step to step. How many graphs do six
steps make?

Cause: The graph holds a Python number as a constant, and a guard compares
it at every call. Without dynamic=False the second value would make it a
variable, at the price of one more graph; with it each value is a graph of
its own. After 8 the compiler gives up, and the function runs as it is.

Find: Count, never time: a backend that counts its calls, as here, or
TORCH_LOGS=recompiles, which names the guard that failed.

Fix: What changes goes in as a tensor: torch.tensor(lr).

Checks: blind: a number is a number. The optimizers of fn.optim keep their
step count as a tensor, and a schedule makes the rate one.
"""

from collections.abc import Callable
from functools import partial

import torch
from experiments.gallery.failures import Seen
from fn.rng import generator
from torch import Tensor
from torch.fx import GraphModule


def step(weight: Tensor, lr: float | Tensor) -> Tensor:
    return weight - lr * (weight - 3)


def count(graphs: list[str], graph: GraphModule, _: list) -> Callable:
    """A backend of torch.compile that keeps a line for every graph"""
    graphs.append(graph.code)
    return graph.forward


def broken(seed: int) -> Seen:
    torch.compiler.reset()
    graphs, weight = [], torch.randn(4, generator=generator(seed))
    compiled = torch.compile(
        step, backend=partial(count, graphs), dynamic=False
    )
    for i in range(6):
        weight = compiled(weight, 0.5 * 0.9**i)
    return {
        "graphs": len(graphs),
        "off by": (weight - 3).abs().max().item(),
    }


def fixed(seed: int) -> Seen:
    torch.compiler.reset()
    graphs, weight = [], torch.randn(4, generator=generator(seed))
    compiled = torch.compile(
        step, backend=partial(count, graphs), dynamic=False
    )
    for i in range(6):
        weight = compiled(weight, torch.tensor(0.5 * 0.9**i))
    return {
        "graphs": len(graphs),
        "off by": (weight - 3).abs().max().item(),
    }


def shows(seen: Seen) -> bool:
    """A compiled step is called six times, each time with tensors of the
    same shape, and is compiled six times."""
    return seen["graphs"] >= 6


def solves(seen: Seen) -> bool:
    """Bring four weights to 3 in six compiled steps, at a rate that falls
    from step to step; one graph serves them all, or two."""
    return 1 <= seen["graphs"] <= 2 and seen["off by"] < 0.5
