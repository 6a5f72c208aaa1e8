"""How much sooner are K models trained at once than one after the other? `just sweep --bench`

Beside them stands the fastest that torch.nn has for models this small: a module and a fused AdamW, compiled or not.
The clock is on every way in turn, round after round; a ratio is the median of those of the rounds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

from experiments.bench.torch_steps import mlp_module
from experiments.shared import cli, show
from experiments.sweep.run import in_dtype
from fn import tree
from fn.data.datasets import Split
from fn.ensemble import ensemble_init, ensemble_step, member
from fn.gradcheck import relative_error
from fn.jit import jit
from fn.models import Model
from fn.models.mlp import mlp
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
    model = mlp(split.images.shape[1:], sizes[-1], hidden=(width,))
    step = jit(partial(ensemble_step, objective=partial(classification_loss, apply=model.apply), update=adamw))
    # in float64: of a gradient near 0, rounded in two ways in float32, AdamW makes steps that differ
    in_double, modules, in_turn = _contestants(step, model, split._replace(images=split.images.double()))
    in_turn(modules)
    theirs = tree.stack(*(tree.unflatten(module.state_dict()) for module in modules))
    gap = relative_error(in_double(), theirs)

    at_once, modules, in_turn = _contestants(step, model, split)
    compiled = torch.compile(modules[0])  # one in the place of all: each would be compiled anew
    square = torch.ones(PRODUCT, PRODUCT, device=split.images.device)
    ways = {
        "at once": at_once,
        "torch.nn": partial(in_turn, modules),
        "compiled": partial(in_turn, [compiled] * MODELS),
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
        cli.check(f"width {width}: float64 weights beside torch.nn's, {STEPS} steps, relative error", gap, "<=", 1e-5),
        cli.check(f"width {width}: times sooner at once than the fastest torch.nn", min(ratios.values()), ">=", times),
    ]


def _contestants(
    step: Callable, model: Model, split: Split
) -> tuple[Callable[[], Params], list[nn.Module], Callable[[Sequence[Callable]], None]]:
    """(all at once, the same as modules, one after the other if given these), in the dtype of the images"""
    seeds, device, dtype = range(MODELS), split.images.device, split.images.dtype
    start = in_dtype(ensemble_init(model, adam_init, seeds=seeds, device=device), dtype)
    index = torch.randint(len(split.labels), (STEPS, MODELS, BATCH), generator=generator(0)).to(device)
    lr, keys = torch.full((MODELS,), RATE, dtype=dtype), torch.stack([run_key(seed) for seed in seeds])
    at_once = partial(_at_once, step, start, split, index, lr.to(device), keys.to(device))
    modules = [_module(member(start, k).params) for k in range(MODELS)]
    return at_once, modules, partial(_one_after_the_other, split=split, index=index)


def _module(params: Params) -> nn.Module:
    """The same perceptron, its parameters set as ours are."""
    module = mlp_module(params).to(tree.leaves(params)[0])
    module.load_state_dict(tree.flatten(params))
    return module


def _at_once(step: Callable, ts: TrainState, split: Split, index: Tensor, lr: Tensor, key: Tensor) -> Params:
    for rows in index:
        ts, _ = step(ts, *split, rows, lr, key)
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
