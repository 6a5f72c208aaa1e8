"""Run one job with several numbers of processes: python tests/many.py FOLDER JOB [arguments]

FOLDER/1, FOLDER/2 and FOLDER/4 hold what the job wrote there. Every process is a fork of this one, which has imported
all that it needs and has taken no gradient. Nothing waits longer than LIMIT seconds: a process that hangs is killed.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist
from torch import Tensor

from fn import tree
from fn.checkpoint import to_bytes
from fn.detection.train import detection_loss
from fn.distributed import data_parallel_step, place, sharded, unshard_state, whole_batch_norm
from fn.models import Detector, Model
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.models.resnet import resnet
from fn.models.ssd import ssd
from fn.models.transformer import transformer
from fn.optim import adam, adamw, clip_by_global_norm, one_cycle_schedule, sgd
from fn.rng import generator
from fn.train import TrainState, classification_loss, init_train_state, run_key, train_step

LIMIT = 300
FAMILIES = {
    "mlp": partial(mlp, hidden=(9,), dropout_p=0.2),
    "cnn": partial(cnn, widths=(4, 6), dropout_p=0.2),
    "resnet": partial(resnet, depth=8, widths=(4, 6, 8)),
    "transformer": partial(transformer, d_model=8, layers=1, heads=2, dropout_p=0.2),
    "ssd": partial(ssd, widths=(3, 4, 4, 5, 5, 6), width=5),
}
OPTIMIZERS = {"mlp": partial(sgd, momentum=0.9), "cnn": adam, "resnet": adamw, "transformer": adamw, "ssd": sgd}
SHAPES = dict.fromkeys(FAMILIES, (1, 8, 8)) | {"ssd": (1, 32, 32)}
SIZES = (16, 11, 3)
"""batches: whole ones, a ragged one, and one that leaves parts empty"""


def examples(family: str, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a random batch in the shape that the family takes; ssd's targets are two boxes an image."""
    x = torch.randn(size, *SHAPES[family], generator=rng)
    if family != "ssd":
        return x, torch.randint(0, 3, (size,), generator=rng)
    corner = torch.rand(size, 2, 2, generator=rng) * 16
    return x, torch.cat([corner, corner + 12, torch.randint(0, 3, (size, 2, 1), generator=rng)], dim=2)


def objective_of(model: Model | Detector) -> Callable:
    if isinstance(model, Detector):
        return partial(detection_loss, apply=model.model.apply, loss=model.loss)
    return partial(classification_loss, apply=model.apply)


def steps(out: Path, *options: str) -> None:
    """Take a few steps with every family, or those named, in eight parts; write states and metrics into a file each."""
    for family in [option for option in options if option in FAMILIES] or FAMILIES:
        model, rng, history = FAMILIES[family](SHAPES[family], 3), generator(1), {}
        rule = OPTIMIZERS[family](lr=partial(one_cycle_schedule, lr=0.01, total_steps=len(SIZES)))
        rule = clip_by_global_norm(sharded(rule) if "shard" in options else rule, 1.0)
        compile_for = SIZES[0] if "compile" in options else 0
        accumulate = 1 if family == "ssd" else 2
        step = data_parallel_step(objective_of(model), rule, parts=8, accumulate=accumulate, compile_for=compile_for)
        ts = init_train_state(getattr(model, "model", model), rule, seed=0)
        for i, size in enumerate(SIZES):
            ts, history[str(i)] = step(ts, *examples(family, size, rng), key=run_key(0))
        if "shard" in options:
            ts = ts._replace(opt_state=unshard_state(ts.opt_state, ts.params))
        if place()[0] == 0:
            content = tree.flatten(ts._asdict() | {"metrics": history})
            (out / f"{family}.safetensors").write_bytes(to_bytes(content))


def exact(out: Path, *_: str) -> None:
    """Write the largest gap to `train_step` on the whole batch in float64, without dropout, of each family.

    With batch norm over all processes for those that have it: ssd's loss is a mean over anchors, not over images.
    """
    gaps, (_, processes) = {}, place()
    for family in ("mlp", "cnn", "resnet", "transformer"):
        options = {"dropout_p": 0.0} if family != "resnet" else {}
        model, rng, rule = FAMILIES[family](SHAPES[family], 3, **options), generator(1), sgd(lr=0.1, momentum=0.9)
        normed = family in ("cnn", "resnet")
        together = objective_of(whole_batch_norm(model) if normed else model)
        parts = processes if normed else 8
        step = data_parallel_step(together, rule, parts=parts, whole_norm=normed)
        first = init_train_state(model, rule, seed=0)
        params, state = (tree.to(part, torch.float64) for part in first[:2])
        ours = alone = TrainState(params, state, rule.init(params))
        for size in (24, 19):
            x, y = examples(family, size, rng)
            ours, metrics = step(ours, x.double(), y, key=run_key(0))
            alone, expected = train_step(
                alone, x.double(), y, objective=objective_of(model), optimizer=rule, key=run_key(0)
            )
        pairs = zip(tree.leaves(ours._asdict()), tree.leaves(alone._asdict()), strict=True)
        gaps[family] = max(float((a - b).abs().max()) for a, b in [*pairs, (metrics["loss"], expected["loss"])])
    (out / f"gaps{place()[0]}.json").write_text(json.dumps(gaps))


def run(job: Callable, out: Path, processes: int, *options: str) -> None:
    """Fork the processes of a job, joined in a group unless there is one alone; SystemExit if one fails."""
    out.mkdir(parents=True, exist_ok=True)
    children = [fork(job, out, rank, processes, options) for rank in range(processes)]
    failed = [status for status in (os.waitpid(child, 0)[1] for child in children) if status]
    if failed:
        sys.exit(f"{processes} processes: {[os.waitstatus_to_exitcode(status) for status in failed]}")


def fork(job: Callable, out: Path, rank: int, processes: int, options: tuple[str, ...]) -> int:
    child = os.fork()
    if child:
        return child
    signal.alarm(LIMIT)
    status = 1
    try:
        if processes > 1:
            where = {"init_method": f"file://{out}/.store", "rank": rank, "world_size": processes}
            dist.init_process_group("gloo", **where, timeout=timedelta(seconds=LIMIT))
        job(out, *options)
        if processes > 1:
            dist.barrier()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


JOBS = {"steps": steps, "exact": exact}

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, name, *options = sys.argv[1:]
    numbers = [int(option) for option in options if option.isdigit()] or [1, 2, 4]
    for number in numbers:
        run(
            JOBS[name],
            Path(folder, str(number)),
            number,
            *options,
        )
