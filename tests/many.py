"""Run one job with several numbers of processes: python tests/many.py FOLDER JOB [arguments]

FOLDER/1, FOLDER/2 and FOLDER/4 hold what the job wrote there. Every process is a fork of this one, which has imported
all that it needs and has taken no gradient. Nothing waits longer than LIMIT seconds: a process that hangs is killed.
"""

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

from experiments.shared.registry import resolve
from fn import tree
from fn.checkpoint import to_bytes
from fn.detection.train import detection_loss
from fn.distributed import data_parallel_step, place, sharded, shard_state, unshard_state
from fn.models import Detector
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.models.resnet import resnet
from fn.models.ssd import ssd
from fn.models.transformer import transformer
from fn.optim import adam, adamw, clip_by_global_norm, one_cycle_schedule, sgd
from fn.rng import generator
from fn.train import TrainState, classification_loss, init_train_state, run_key

LIMIT = 300
FAMILIES = {
    "mlp": partial(mlp, hidden=(9,), dropout_p=0.2),
    "cnn": partial(cnn, widths=(4, 6), dropout_p=0.2),
    "resnet": partial(resnet, depth=8, widths=(4, 6, 8)),
    "transformer": partial(transformer, d_model=8, layers=1, heads=2, dropout_p=0.2),
    "ssd": partial(ssd, widths=(3, 4, 4, 5, 5, 6), width=5),
}
OPTIMIZERS = {"sgd": partial(sgd, momentum=0.9), "adam": adam, "adamw": adamw}
SIZES = (24, 24, 19, 3)
"""batches: whole ones, a ragged one, and one that leaves parts empty"""


def train(family: str, *, parts: int, optimizer: str = "adamw", shard: bool = False, compile: bool = False) -> dict:
    """Return the state and the metrics after a few steps of a small model, the optimizer's state whole."""
    shape = (1, 32, 32) if family == "ssd" else (1, 8, 8)
    model, rng = FAMILIES[family](shape, 3), generator(1)
    rule = OPTIMIZERS[optimizer](lr=partial(one_cycle_schedule, lr=0.01, total_steps=len(SIZES)))
    rule = clip_by_global_norm(sharded(rule) if shard else rule, 1.0)
    if isinstance(model, Detector):
        objective = partial(detection_loss, apply=model.model.apply, loss=model.loss)
    else:
        objective = partial(classification_loss, apply=model.apply)
    step = data_parallel_step(objective, rule, parts=parts, accumulate=2, compile_for=SIZES[0] if compile else 0)
    ts = init_train_state(getattr(model, "model", model), rule, seed=0)
    history = {}
    for i, size in enumerate(SIZES):
        x = torch.randn(size, *shape, generator=rng)
        y = torch.randint(0, 3, (size,), generator=rng)
        if family == "ssd":
            corner = torch.rand(size, 2, 2, generator=rng) * 16
            y = torch.cat([corner, corner + 12, torch.randint(0, 3, (size, 2, 1), generator=rng)], dim=2)
        ts, history[str(i)] = step(ts, x, y, key=run_key(0))
    opt_state = unshard_state(ts.opt_state, ts.params) if shard else ts.opt_state
    return ts._replace(opt_state=opt_state)._asdict() | {"metrics": history}


def steps(out: Path, *options: str) -> None:
    """Train every family, or the one named; write the tensors of each into a file."""
    chosen = [option for option in options if option in FAMILIES] or list(FAMILIES)
    for family in chosen:
        result = train(family, parts=8, shard="shard" in options, compile="compile" in options)
        if place()[0] == 0:
            (out / f"{family}.safetensors").write_bytes(to_bytes(tree.flatten(result)))


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, name, *options = sys.argv[1:]
    numbers = [int(option) for option in options if option.isdigit()] or [1, 2, 4]
    for number in numbers:
        run(
            resolve(f"tests.many:{name}") if ":" in name else globals()[name],
            Path(folder, str(number)),
            number,
            *options,
        )
