"""How much sooner are K models trained at once than one after the other? `just sweep --bench`

Beside them stands the fastest that torch.nn has for models this small: a module and a fused AdamW, compiled or not.
The clock is on every way in turn, round after round; a ratio is the median of those of the rounds.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from experiments import cli, show
from fn import tree
from fn.data.datasets import Split
from fn.ensemble import ensemble_init, ensemble_step, member
from fn.gradcheck import relative_error
from fn.jit import jit
from fn.models import mlp
from fn.optim import adam_init, adamw
from fn.rng import generator
from fn.train import TrainState, classification_loss, run_key
from fn.tree import Params

MODELS, BATCH, STEPS, ROUNDS, RATE = 32, 64, 20, 7, 1e-3
TIMES_SOONER = {32: 6.0, 128: 3.5}
"""width of the hidden layer: how many times sooner at least"""
PRODUCT = 2048
"""the size of the square matrices whose product says what the machine can do"""


def compare_speed(split: Split) -> list[cli.Check]:
    rows, checks = [], []
    for width, times in TIMES_SOONER.items():
        show.log.print(f"timing {MODELS} models of width {width}")
        row, more = _race(split, width, times)
        rows.append(row)
        checks += more
    title = f"A step of all {MODELS} models in ms, batches of {BATCH}; medians of {ROUNDS} rounds"
    columns = ("width", "at once", "torch.nn", "torch.nn, compiled", "its products at peak")
    show.table(title, columns, rows)
    return checks


def _race(split: Split, width: int, times: float) -> tuple[list[str], list[cli.Check]]:
    """(the row of the table, the checks) of one width."""
    sizes = (split.images[0].numel(), width, int(split.labels.max()) + 1)
    model, seeds = mlp(split.images.shape[1:], sizes[-1], hidden=(width,)), range(MODELS)
    start = ensemble_init(model, adam_init, seeds=seeds, device=split.images.device)
    index = torch.randint(len(split.labels), (STEPS, MODELS, BATCH), generator=generator(0)).to(split.images.device)
    constants = {"lr": torch.full((MODELS,), RATE), "key": torch.stack([run_key(seed) for seed in seeds])}
    step = jit(partial(ensemble_step, objective=partial(classification_loss, apply=model.apply), update=adamw))
    at_once = partial(_at_once, step, start, split, index, tree.to(constants, split.images.device))

    modules = [_module(sizes, member(start, k).params) for k in range(MODELS)]
    _one_after_the_other(modules, split, index)
    theirs = tree.stack(*(tree.unflatten(module.state_dict()) for module in modules))
    gap = relative_error(at_once(), theirs)

    compiled = torch.compile(modules[0])  # one in the place of all: each would be compiled anew
    square = torch.ones(PRODUCT, PRODUCT, device=split.images.device)
    ways = {
        "at once": at_once,
        "torch.nn": partial(_one_after_the_other, modules, split, index),
        "compiled": partial(_one_after_the_other, [compiled] * MODELS, split, index),
        "product": lambda: square @ square,
    }
    seconds = in_turns(ways, split.images.device)
    ratios = {name: _median_ratio(seconds[name], seconds["at once"]) for name in ("torch.nn", "compiled")}
    share = _flops(sizes) * STEPS / (2 * PRODUCT**3)
    seconds["floor"] = [s * share for s in seconds["product"]]
    to_floor = _median_ratio(seconds["at once"], seconds["floor"])
    notes = {"at once": "", **{name: f" ({r:.1f}×)" for name, r in ratios.items()}, "floor": f" (1/{to_floor:.1f})"}
    row = [f"{width}", *(f"{median(seconds[name]) / STEPS * 1e3:.3g}{note}" for name, note in notes.items())]
    return row, [
        cli.check(f"width {width}: weights beside torch.nn's after {STEPS} steps, relative error", gap, "<=", 1e-5),
        cli.check(f"width {width}: times sooner at once than the fastest torch.nn", min(ratios.values()), ">=", times),
    ]


def _module(sizes: Sequence[int], params: Params) -> nn.Module:
    """The same perceptron, its parameters named and set as ours are."""
    layers = [("flatten", nn.Flatten())]
    for i, (d_in, d_out) in enumerate(pairwise(sizes), start=1):
        layers += [(f"fc{i}", nn.Linear(d_in, d_out)), (f"relu{i}", nn.ReLU())]
    module = nn.Sequential(OrderedDict(layers[:-1]))
    module.load_state_dict(tree.flatten(params))
    return module.to(tree.leaves(params)[0].device)


def _at_once(step: Callable, ts: TrainState, split: Split, index: Tensor, constants: Mapping[str, Any]) -> Params:
    for rows in index:
        ts, _ = step(ts, *split, rows, **constants)
    return ts.params


def _one_after_the_other(modules: Sequence[Callable], split: Split, index: Tensor) -> None:
    """The classic loop over each, written as one writes it for speed; the weights stay in the modules."""
    for k, module in enumerate(modules):
        optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, fused=True)  # pyright: ignore
        for rows in index[:, k]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(split.images[rows]), split.labels[rows]).backward()
            optimizer.step()


def in_turns(ways: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
    """The seconds of each in every round, after two that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 2):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: rounds[2:] for name, rounds in seconds.items()}


def _median_ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return median(a / b for a, b in zip(one, other, strict=True))


def _flops(sizes: Sequence[int]) -> int:
    """Of the matrix products in a step of all models: forward, by the weights, and by the input but for the first."""
    products = [d_in * d_out for d_in, d_out in pairwise(sizes)]
    return MODELS * 2 * BATCH * (3 * sum(products) - products[0])
