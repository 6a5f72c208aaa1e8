"""Run a job with several numbers of processes, or a training that is killed again and again:

    python tests/many_processes.py FOLDER steps 1,2,4 [families, compile, shard, short]
    python tests/many_processes.py FOLDER split 2,4
    python tests/many_processes.py FOLDER train 1,2,4 [flags of the trainer]
    python tests/many_processes.py FOLDER kills 30 SEED [flags of the trainer]

FOLDER/1, FOLDER/2 and FOLDER/4 hold what the job wrote there; FOLDER/whole and FOLDER/killed the two trainings. Every
process is a fork of this one, which has imported all that it needs and has taken no gradient. Nothing waits longer than
LIMIT seconds: a process that hangs is ended by SIGALRM.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

import experiments.train.run
from experiments.shared import cli, ranks
from experiments.train import build, together
from experiments.train.__main__ import main
from experiments.train.config import Config, parse
from fn import tree
from fn.checkpoint import to_bytes
from fn.detection.train import detection_loss
from fn.distributed import data_parallel_step, gather_state, place, sharded, whole_batch_norm
from fn.dtensors import split_rows, split_step, whole
from fn.gradcheck import largest
from fn.jit import jit
from fn.metrics import count_targets
from fn.models import Detector, Model
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.models.resnet import resnet
from fn.models.ssd import ssd
from fn.models.transformer import transformer
from fn.optim import adam, adamw, clip_by_global_norm, one_cycle_schedule, sgd
from fn.rng import generator
from fn.train import TrainState, classification_loss, init_train_state, run_key, train_step
from tests import kill_trainer

LIMIT = 900
PATIENCE = 20
"""seconds that the others have to end by themselves where one is killed"""
FAMILIES: dict[str, Callable[..., Any]] = {
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


def join_if_many() -> None:
    if ranks.among_many():
        together.join("gloo")


def steps(out: Path, *options: str) -> None:
    """Take a few steps with every family, or those named, in eight parts; write states and metrics into a file each."""
    join_if_many()
    sizes = SIZES[1:] if "short" in options else SIZES
    for family in [option for option in options if option in FAMILIES] or list(FAMILIES):
        model, rng, history = FAMILIES[family](SHAPES[family], 3), generator(1), {}
        rule = OPTIMIZERS[family](lr=partial(one_cycle_schedule, lr=0.01, total_steps=len(sizes)))
        rule = rule._replace(update=jit(rule.update)) if "compile" in options else rule
        rule = clip_by_global_norm(sharded(rule) if "shard" in options else rule, 1.0)
        compile_for = SIZES[0] if "compile" in options else 0
        accumulate = 1 if family == "ssd" else 2
        step = data_parallel_step(objective_of(model), rule, parts=8, accumulate=accumulate, compile_for=compile_for)
        ts = init_train_state(getattr(model, "model", model), rule, seed=0)
        for i, size in enumerate(sizes):
            ts, history[str(i)] = step(ts, *examples(family, size, rng), key=run_key(0))
        if "shard" in options:
            ts = ts._replace(opt_state=gather_state(ts.opt_state, ts.params))
        if place()[0] == 0:
            content = tree.flatten(ts._asdict() | {"metrics": history})
            (out / f"{family}.safetensors").write_bytes(to_bytes(content))


def exact(out: Path, *_: str) -> None:
    """Write the largest gap to `train_step` on the whole batch in float64, without dropout, of each family.

    With batch norm over all processes for those that have it: ssd's loss is a mean over anchors, not over images.
    """
    join_if_many()
    gaps: dict[str, float] = {}
    processes = place()[1]
    for family in ("mlp", "cnn", "resnet", "transformer"):
        options: dict[str, Any] = {"dropout_p": 0.0} if family != "resnet" else {}
        model, rng, rule = FAMILIES[family](SHAPES[family], 3, **options), generator(1), sgd(lr=0.1, momentum=0.9)
        normed = family in ("cnn", "resnet")
        objective = objective_of(whole_batch_norm(model) if normed else model)
        parts = processes if normed else 8
        step = data_parallel_step(objective, rule, parts=parts, whole_norm=normed)
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
        gaps[family] = largest((a - b).abs().max() for a, b in [*pairs, (metrics["loss"], expected["loss"])])
    (out / f"gaps{place()[0]}.json").write_text(json.dumps(gaps))


def split(out: Path, *_: str) -> None:
    """Write the largest gap to `train_step` in float64 of divided parameters, and the share of them that this one has.

    With dropout, clipping, and a batch that cannot be divided. The gradient of attention's key bias is 0, so what is
    computed of it is rounding, and AdamW divides that by ε: this bias has nearly the whole gap.
    """
    join_if_many()
    found: dict[str, Any] = {}
    rules = {"sgd": sgd(lr=0.1, momentum=0.9), "adamw": adamw(lr=1e-3)}
    for family, (name, rule) in product(("mlp", "transformer"), rules.items()):
        rule = clip_by_global_norm(rule, 1.0)
        model, rng = FAMILIES[family](SHAPES[family], 3), generator(1)
        options = {"objective": objective_of(model), "optimizer": rule, "key": run_key(0)}
        params = tree.to(init_train_state(model, rule, seed=0).params, torch.float64)
        alone = TrainState(params, {}, rule.init(params))
        ours = TrainState(*map(split_rows, alone))
        for size in (12, 7):
            x, y = examples(family, size, rng)
            ours, metrics = split_step(ours, x.double(), y, **options)
            alone, expected = train_step(alone, x.double(), y, **options)
        held = [getattr(leaf, "to_local", lambda leaf=leaf: leaf)() for leaf in tree.leaves(ours._asdict())]
        share = sum(leaf.numel() for leaf in held) / tree.size(ours._asdict())
        pairs = zip(tree.leaves(whole(ours._asdict())), tree.leaves(alone._asdict()), strict=True)
        gap = largest((a - b).abs().max() for a, b in [*pairs, *((metrics[key], expected[key]) for key in metrics)])
        found[f"{family}, {name}"] = [gap, share]
    (out / f"found{place()[0]}.json").write_text(json.dumps(found))


def train(out: Path, *flags: str) -> None:
    """Run the trainer; what the leading process says on stderr goes to a file."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(out / f"stderr{os.environ.get('RANK', '')}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    ranks.hush()
    place_of_run = [] if "--resume" in flags else ["--out", str(out / "run")]
    sys.argv = ["train", *place_of_run, *flags]
    with ranks.telling():
        cli.run(Config, main, parse)


def start(job: Callable, out: Path, processes: int, *options: str) -> list[int]:
    """Fork the processes of a job, and return their ids. They find each other as torchrun's do."""
    out.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    STORES.append(store)  # it serves as long as it lives
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            os.setpgid(0, children[0] if children else 0)
            signal.alarm(LIMIT)
            if processes > 1:
                os.environ |= where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os._exit(status_of(job, out, *options))
        children.append(child)
    return children


def status_of(job: Callable, out: Path, *options: str) -> int:
    try:
        job(out, *options)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 98
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def wait(children: list[int]) -> list[int]:
    """Return the exit statuses of the processes, -9 after SIGKILL.

    As torchrun does, end the others where one is killed: if that was before they met, they would wait for it for long.
    """
    ends: dict[int, int] = {}
    last_end = 0.0
    while len(ends) < len(children):
        child, status = os.waitpid(-1, os.WNOHANG if -signal.SIGKILL in ends.values() else 0)
        if child:
            ends[child] = os.waitstatus_to_exitcode(status)
            last_end = time.monotonic()
        elif time.monotonic() - last_end > PATIENCE:
            for child in set(children) - ends.keys():
                os.kill(child, signal.SIGKILL)
        else:
            time.sleep(0.01)
    return [ends[child] for child in children]


def run(job: Callable, out: Path, processes: int, *options: str) -> None:
    """Run a job to its end; SystemExit if a process fails."""
    statuses = wait(start(job, out, processes, *options))
    if any(statuses):
        said = "".join(path.read_text() for path in sorted(out.glob("stderr*")))
        print(said, file=sys.stderr)
        sys.exit(f"{processes} processes ended with {statuses}")


def kill_at(step: int, everyone: bool, out: Path, *flags: str) -> None:
    """Train, and kill this process, or all of them, at the end of its step of that number, if it gets there."""
    ask, done = together.any_asks, count(1)

    def ask_or_die(asked: bool, device: torch.device) -> bool:
        if next(done) == step:
            os.killpg(0, signal.SIGKILL) if everyone else os.kill(os.getpid(), signal.SIGKILL)
        return ask(asked, device)

    together.any_asks = ask_or_die
    train(out, *flags)


def interrupted(out: Path, step: str, *flags: str) -> None:
    """Train; the process of the highest rank alone is sent a Ctrl-C in its step of that number."""
    done = count(1)

    def interrupted_step(y: Tensor) -> Tensor:
        if next(done) == int(step) and ranks.processes() in (None, int(os.environ.get("RANK", "0")) + 1):
            signal.raise_signal(signal.SIGINT)
        return count_targets(y)

    experiments.train.run.count_targets = interrupted_step
    train(out, *flags)


def disagreeing(out: Path, what: str, *flags: str) -> None:
    """Train, with other flags, threads or data in the process of rank 1."""
    if os.environ["RANK"] == "1" and what == "data":
        build._digest = lambda data: "other"
    other = {"lr": ("--lr", "0.1"), "threads": ("--threads", "2"), "data": ()}
    train(out, *flags, *(other[what] if os.environ["RANK"] == "1" else ()))


def kills(out: Path, number: str, seed: str, *flags: str) -> None:
    """Train once in peace, and once killed so often, each time resumed with another number of processes."""
    run(train, out / "whole", 1, *flags)
    rng, killed, tries = random.Random(int(seed)), out / "killed", []
    for _ in range(int(number)):
        processes, victim = rng.choice((1, 2, 4)), rng.randrange(4)
        resumed = any((killed / "run" / "checkpoints").glob("step-*"))
        options = ["--resume", str(killed / "run")] if resumed else flags
        how = rng.choice(("file", "step", "all"))
        children = start(partial(attempt, how, victim % processes, rng.randint(1, 30)), killed, processes, *options)
        statuses = wait(children)
        tries.append((processes, how, statuses))
        if -signal.SIGKILL not in statuses and any(statuses):
            sys.exit(f"{tries[-1]}: {[path.read_text() for path in sorted(killed.glob('stderr*'))]}")
    print(f"{sum(-9 in statuses for *_, statuses in tries)} kills")
    run(train, killed, rng.choice((1, 2, 4)), "--resume", str(killed / "run"))


def attempt(how: str, victim: int, instant: int, out: Path, *flags: str) -> None:
    """Train; the victim kills itself, or all, at a step; or the leading process itself, at a file operation."""
    rank = int(os.environ.get("RANK", "0"))
    if how == "file" and rank == 0:
        kill_trainer.kill_at(instant, out / "run")
    if how != "file" and rank == victim:
        kill_at(1 + instant // 4, how == "all", out, *flags)
    train(out, *flags)


STORES: list[TCPStore] = []
JOBS = {
    "steps": steps,
    "exact": exact,
    "split": split,
    "train": train,
    "interrupted": interrupted,
    "disagreeing": disagreeing,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, name, *options = sys.argv[1:]
    if name == "kills":
        kills(Path(folder), *options)
    else:
        numbers, options = options[0], options[1:]
        for number in numbers.split(","):
            run(JOBS[name], Path(folder, number), int(number), *options)
