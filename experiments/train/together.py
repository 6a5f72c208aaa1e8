"""The processes of one run: they join, agree, let one of them lead, and stop together. One alone does all that too."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from experiments.shared import cli, ranks
from experiments.train.config import Config
from fn.distributed import place

TIMEOUT = timedelta(minutes=10)
"""how long a process waits for one that hangs; one that is gone is noticed at once"""
NETWORK = re.compile(r"gloo|nccl|connection|store|socket|timed? ?out|peer|process group", re.IGNORECASE)


@contextlib.contextmanager
def joined(config: Config, device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun has started, and leave them at the end; nothing for a process of its own.

    RunError if one of them is lost.
    """
    if not ranks.among_many():
        yield
        return
    require_device(device)
    try:
        join("nccl" if device.type == "cuda" else "gloo")
        yield
        dist.barrier()
    except RuntimeError as error:
        if not NETWORK.search(str(error)):
            raise
        ranks.Told.lost = True
        raise cli.RunError(f"a process of this run was lost; --resume {config.out} continues") from error
    dist.destroy_process_group()


def join(backend: str) -> None:
    """Meet the others under the number of this attempt: the store remembers processes of an earlier one."""
    try:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        taken = "is taken" if "in use" in str(error) or "EADDRINUSE" in str(error) else "cannot be reached"
        raise cli.UsageError(f"the address {where}, where the processes are to meet, {taken}") from None
    attempt = PrefixStore(f"attempt{ranks.attempt()}", store)
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=TIMEOUT)


def require_device(device: torch.device) -> None:
    """Take this process's own accelerator; UsageError if there is none for it."""
    if device.type == "mps":
        raise cli.UsageError("many processes train on cpu or cuda: --device cpu")
    if device.type == "cuda":
        own, present = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= present:
            raise cli.UsageError(f"process {own} has no GPU, as {present} are here: fewer processes, or --device cpu")
        torch.cuda.set_device(own)


def agree(config: Config, digest: str) -> None:
    """Raise UsageError, the same in all processes, unless they have the same flags, data and threads."""
    settings = cli.as_json(config) | {"data": digest, "threads": torch.get_num_threads()}
    gathered: list[Any] = [settings] * place()[1]
    if place()[1] > 1:
        dist.all_gather_object(gathered, settings)
    for rank, other in enumerate(gathered):
        for name, value in other.items():
            if value != gathered[0][name]:
                what = "its data is other" if name == "data" else f"its {name} is {value}, not {gathered[0][name]}"
                raise cli.UsageError(f"process {rank} does not agree with process 0: {what}")


def lead(f: Callable, *args: Any, **options: Any) -> Any:
    """Return f(…) as the leading process computes it; the others wait. An error of it is raised in all of them."""
    return lead_and_keep(lambda: (f(*args, **options), None))[0]


def lead_and_keep(f: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return f() as the leading process computes it, of which the others get the first part alone, and None."""
    shared, kept, error = None, None, None
    if ranks.leads():
        try:
            shared, kept = f()
        except (cli.UsageError, cli.RunError, FloatingPointError) as raised:
            error = raised
    if place()[1] > 1:
        box = [(shared, error)]
        dist.broadcast_object_list(box, src=0)
        shared, error = box[0]
    if error:
        raise error
    return shared, kept


def leader_first(f: Callable, *args: Any) -> Any:
    """Return f(…) as each process computes it, the others after the leader: what it downloads is there for them."""
    _, found = lead_and_keep(lambda: (None, f(*args)))
    return found if ranks.leads() else f(*args)


def any_asks(asked: bool, device: torch.device) -> bool:
    """Return whether any process is asked to stop: one that stopped alone would leave the others waiting."""
    if place()[1] == 1:
        return asked
    flag = torch.tensor(int(asked), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)
