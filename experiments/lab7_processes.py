"""Lab 7: many processes, one result: a network trained by one, two and four processes, equal to the bit.

Sum in a fixed order; compare the usual all_reduce; make five classic mistakes, each written out beside its cure in
lab_helpers/lab7/process_mistakes.py; measure the cost of a collective.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value

from experiments.lab_helpers.lab7 import process_mistakes
from experiments.lab_helpers.lab7.collective_pictures import draw_costs
from experiments.shared import cli, collectives, show
from experiments.shared.local_processes import in_processes
from fn import tree
from fn.data.loader import batches
from fn.distributed import data_parallel_step, from_vector, place, sharded, to_vector
from fn.gradcheck import largest, smallest
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.optim import Optimizer, adamw
from fn.train import TrainState, classification_loss, eval_one_epoch, init_train_state, run_key

COUNTS = (1, 2, 4)
PARTS = 4
"""of every batch, however many processes share them"""
BATCH = 64


@dataclass(frozen=True)
class Config(cli.Lab):
    out: Path = Path("runs/lab7")
    """the folder for the pictures and summary.json"""
    epochs: cli.Count = 6
    """of each training"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    if config.device not in ("auto", "cpu"):
        raise cli.UsageError(f"--device {config.device}: the processes of Lab 7 meet on the CPU; leave the flag out")
    runs = {way: [in_processes(train, n, way, config.seed, config.epochs) for n in COUNTS] for way in WAYS}
    checks = [*compare_results(runs), *divide_the_state(runs), *make_mistakes(config)]
    measure_costs(config, runs)
    return checks


def all_reduce_mean(x: Float[Tensor, "*shape"], count: int) -> Float[Tensor, "*shape"]:
    """Return the mean over the examples of all processes, of which this one gives the mean `x` of its `count`.

    Σₚ countₚ xₚ / Σₚ countₚ, the same in every process, by one all_reduce. A process without examples adds nothing,
    whatever its x. Where no group is up, this process is all there are. `x` stays as it was.
    """
    total = x * count if count else torch.zeros_like(x)
    sums = torch.cat([total.reshape(-1), total.new_tensor([count])])
    if dist.is_initialized():
        dist.all_reduce(sums)
    return (sums[:-1] / sums[-1]).reshape(x.shape)


def usual_step(
    ts: TrainState, x: Tensor, y: Tensor, *, key: Tensor, objective: Callable, optimizer: Optimizer
) -> tuple[TrainState, dict]:
    """Do this process's share of the batch, and take the mean gradient by all_reduce, as most code does."""
    rank, processes = place()
    x, y = x.tensor_split(processes)[rank], y.tensor_split(processes)[rank]
    grads, (_, (metrics, state)) = grad_and_value(objective, has_aux=True)(ts.params, ts.state, x, y, key=key)
    grads = from_vector(all_reduce_mean(to_vector(grads), len(y)), grads)
    params, opt_state = optimizer.update(ts.params, grads, ts.opt_state)
    return TrainState(params, state, opt_state), metrics


in_order, rule = partial(data_parallel_step, parts=PARTS), adamw(lr=3e-3)
WAYS = {
    "MLP, in order": (partial(mlp, dropout_p=0.1), in_order, rule),
    "CNN, in order": (partial(cnn, widths=(8, 16, 16), dropout_p=0.1), in_order, rule),
    "MLP, in order, ZeRO-1": (partial(mlp, dropout_p=0.1), in_order, sharded(rule)),
    "MLP, all_reduce": (mlp, lambda **options: partial(usual_step, **options), rule),
}
"""name -> (how the model is made, the step from its objective=… and optimizer=…, the optimizer)"""


class Trained(NamedTuple):
    """The end of a training in one process."""

    params: Tensor
    """end to end"""
    state_numbers: int
    """of its optimizer"""
    accuracy: float
    seconds: float
    """of a step"""


def train(way: str, seed: int, epochs: int) -> Trained:
    """Train on the digits; every process calls this alike, and takes its part of each batch in `step`."""
    digits = cli.load("digits")
    make_model, make_step, optimizer = WAYS[way]
    model = make_model(digits.shape, len(digits.classes))
    step = make_step(objective=partial(classification_loss, apply=model.apply), optimizer=optimizer)
    ts, key = init_train_state(model, optimizer, seed=seed), run_key(seed)
    began = time.perf_counter()
    for epoch in range(epochs):
        for x, y in batches(digits.train, BATCH, seed=seed, epoch=epoch):
            ts, _ = step(ts, x, y, key=key)
    seconds = (time.perf_counter() - began) / int(ts.opt_state["step"])
    test = eval_one_epoch(ts.params, ts.state, batches(digits.test, 512), apply=model.apply)
    return Trained(to_vector(ts.params), tree.size(ts.opt_state), test["accuracy"], seconds)


def digest(params: Tensor) -> str:
    return sha256(params.numpy().tobytes()).hexdigest()


def compare_results(runs: dict[str, list[list[Trained]]]) -> list[cli.Check]:
    """Compare the parameters that 1, 2 and 4 processes end with, by their SHA-256."""
    rows, checks = [], []
    others, least = 0, 1.0
    for way, trained in runs.items():
        by_count = [[digest(one.params) for one in of_count] for of_count in trained]
        least = smallest([least, *(of_count[0].accuracy for of_count in trained)])
        apart = largest(float((of_count[0].params - trained[0][0].params).abs().max()) for of_count in trained)
        held_out = f"{trained[-1][0].accuracy:.1%}"
        rows.append((way, *(digests[0][:8] for digests in by_count), f"{apart:.1e}", held_out))
        others += sum(len(set(digests)) - 1 for digests in by_count)
        results = len({digest for digests in by_count for digest in digests})
        checks.append(cli.check(f"{way}: results of 1, 2, 4", results, "==", 3 if "all_reduce" in way else 1))
    columns = ("way", *map(str, COUNTS), "farthest from 1", "held out")
    show.table("SHA-256 of the parameters, by number of processes", columns, rows)
    return [
        *checks,
        cli.check("processes that differ from the first of their group", others, "==", 0),
        cli.check("held-out accuracy, the least", least, ">=", 0.9),
    ]


def divide_the_state(runs: dict[str, list[list[Trained]]]) -> list[cli.Check]:
    """Compare the optimizer's state whole and divided, ZeRO-1: the same parameters, a share of the memory."""
    whole, divided = runs["MLP, in order"][-1][0], runs["MLP, in order, ZeRO-1"][-1]
    results = len({digest(one.params) for one in (whole, *divided)})
    share = max(one.state_numbers for one in divided) / whole.state_numbers
    return [
        cli.check("ZeRO-1: results with the state whole and divided", results, "==", 1),
        cli.check("ZeRO-1: share of the optimizer's state in each of 4 processes", share, "<=", 0.26),
    ]


def make_mistakes(config: Config) -> list[cli.Check]:
    """Make five classic mistakes, each beside the same thing done right."""
    symptoms = process_mistakes.symptoms(config.seed)
    mistakes = [cli.check(f"made, {s.mistake}: {s.symptom}", s.wrong, *s.expected_wrong) for s in symptoms]
    avoided = [cli.check(f"avoided, {s.mistake}: {s.symptom}", s.right, *s.expected_right) for s in symptoms]
    rows = [(s.mistake, s.symptom, f"{s.wrong:.3g}", f"{s.right:.3g}") for s in symptoms]
    show.table("Five mistakes", ("mistake", "symptom", "made", "avoided"), rows)
    return mistakes + avoided


def measure_costs(config: Config, runs: dict[str, list[list[Trained]]]) -> None:
    """Time three collectives over sizes and processes, fit t = α + β·bytes, and say where processes pay."""
    times = {n: in_processes(collectives.time_collectives, n)[0] for n in COUNTS if n > 1}
    of_most = {name: seconds[max(collectives.SIZES)] for name, seconds in times[4].items()}
    cli.order("collectives: time of 4 MB, 4 processes", of_most)
    costs = {(name, n): collectives.fit(times[n][name]) for n in times for name in times[n]}
    collectives.show_costs(times, costs)
    steps = {way: (runs[way][0][0].params.numel(), [of[0].seconds for of in runs[way]]) for way in list(WAYS)[:2]}
    collectives.show_model(steps, costs)
    draw_costs(times, costs, steps, config.out / "costs.png")


if __name__ == "__main__":
    cli.run(Config, main)
