"""Time K models trained at once against K trained one after the other: `just sweep --bench`.

The comparison is with the fastest that torch.nn has for models this small: a module and a fused AdamW, compiled or not.
Each way is timed in turn, round after round; a ratio is the median of the ratios of the rounds.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.torch_models import mlp_module
from experiments.shared import cli, show
from experiments.sweep.compare import in_dtype
from fn import tree
from fn.data.datasets import Split
from fn.ensemble import ensemble_init, ensemble_key, ensemble_step, member
from fn.gradcheck import relative_error, smallest
from fn.jit import jit
from fn.models import Model
from fn.models.mlp import mlp
from fn.optim import adamw
from fn.rng import generator
from fn.train import TrainState, classification_loss
from fn.tree import Params

MODELS, BATCH, STEPS, ROUNDS, LR = 32, 64, 20, 7, 1e-3
TIMES_FASTER = {32: 6.0, 128: 3.5}
"""width of the hidden layer: how many times faster at least"""
PRODUCT = 2048
"""the size of the square matrices whose product says what the machine can do"""


def compare_speed(split: Split) -> list[cli.Check]:
    """Time every width in TIMES_FASTER, print a table, and return the checks."""
    rows, checks = [], []
    for width, times in TIMES_FASTER.items():
        show.log.print(f"timing {MODELS} models of width {width}")
        row, more = _race(split, width, times)
        rows.append(row)
        checks += more
    title = f"A step of all {MODELS} models in ms, batches of {BATCH}; medians of {ROUNDS} rounds"
    columns = ("width", "at once", "torch.nn", "torch.nn, compiled", "its products at peak")
    show.table(title, columns, rows)
    return checks


def _race(split: Split, width: int, times: float) -> tuple[list[str], list[cli.Check]]:
    """Return (the row of the table, the checks) of one width."""
    model = mlp(split.images.shape[1:], int(split.labels.max()) + 1, hidden=(width,))
    step = partial(ensemble_step, objective=partial(classification_loss, apply=model.apply), optimizer=adamw)
    at_once, modules, in_turn = _contestants(jit(step), model, split)
    compiled = torch.compile(modules[0])  # one in the place of all: each would be compiled anew
    square = torch.ones(PRODUCT, PRODUCT, device=split.images.device)
    ways = {
        "at once": at_once,
        "torch.nn": partial(in_turn, modules),
        "compiled": partial(in_turn, [compiled] * MODELS),
        "product": lambda: square @ square,
    }
    gap = _gap_to_modules(step, model, split)
    seconds = in_turns(ways, split.images.device)
    ratios = {name: _median_ratio(seconds[name], seconds["at once"]) for name in ("torch.nn", "compiled")}
    share = flop(step, model, split) * STEPS / (2 * PRODUCT**3)
    seconds["floor"] = [s * share for s in seconds["product"]]
    to_floor = _median_ratio(seconds["at once"], seconds["floor"])
    notes = {"at once": "", **{name: f" ({r:.1f}×)" for name, r in ratios.items()}, "floor": f" (1/{to_floor:.1f})"}
    row = [f"{width}", *(f"{median(seconds[name]) / STEPS * 1e3:.3g}{note}" for name, note in notes.items())]
    return row, [
        cli.check(f"width {width}: float64 weights beside torch.nn's, {STEPS} steps, relative error", gap, "<=", 1e-5),
        cli.check(
            f"width {width}: times faster at once than the fastest torch.nn", smallest(ratios.values()), ">=", times
        ),
    ]


def _gap_to_modules(step: Callable, model: Model, split: Split) -> float:
    """Return the relative error of the ensemble's weights beside those of the modules after the same steps.

    In float64: of a gradient near 0, rounded in two ways in float32, AdamW makes steps that differ.
    """
    at_once, modules, in_turn = _contestants(jit(step), model, split._replace(images=split.images.double()))
    in_turn(modules)
    return relative_error(at_once(), tree.stack(*(tree.unflatten(module.state_dict()) for module in modules)))


def flop(step: Callable, model: Model, split: Split) -> int:
    """Return the operations of the matrix products in a step of all models, a multiply-add being two."""
    at_once, _, _ = _contestants(step, model, split, steps=1)
    with FlopCounterMode(display=False) as counter:
        at_once()
    return counter.get_total_flops()


def _contestants(
    step: Callable, model: Model, split: Split, steps: int = STEPS
) -> tuple[Callable[[], Params], list[nn.Module], Callable[[Sequence[Callable]], None]]:
    """Return (what trains all at once, the same models as modules, what trains modules in turn)."""
    seeds, device, dtype = range(MODELS), split.images.device, split.images.dtype
    start = in_dtype(ensemble_init(model, adamw, seeds=seeds, device=device), dtype)
    index = torch.randint(len(split.labels), (steps, MODELS, BATCH), generator=generator(0)).to(device)
    lr = torch.full((MODELS,), LR, dtype=dtype, device=device)
    at_once = partial(_at_once, step, start, split, index, lr, ensemble_key(seeds, device))
    modules = [_module(member(start, k).params) for k in range(MODELS)]
    return at_once, modules, partial(_one_after_the_other, split=split, index=index)


def _module(params: Params) -> nn.Module:
    """Return the perceptron of torch.nn with these parameters."""
    module = mlp_module(params).to(tree.leaves(params)[0])
    module.load_state_dict(tree.flatten(params))
    return module


def _at_once(step: Callable, ts: TrainState, split: Split, index: Tensor, lr: Tensor, key: Tensor) -> Params:
    for batch in index:
        ts, _ = step(ts, *split, batch, lr, key)
    return ts.params


def _one_after_the_other(modules: Sequence[Callable], split: Split, index: Tensor) -> None:
    """Train each module in the classic loop, written for speed; the weights stay in the modules."""
    for k, module in enumerate(modules):
        optimizer = torch.optim.AdamW(module.parameters(), lr=LR, fused=True)  # pyright: ignore
        for batch in index[:, k]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(split.images[batch]), split.labels[batch]).backward()
            optimizer.step()


def in_turns(ways: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each way in every round, after two rounds that do not count."""
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
