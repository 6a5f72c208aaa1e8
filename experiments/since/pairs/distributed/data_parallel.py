"""A process for each device, in place of threads that share one Python

Old: nn.DataParallel(model)

New: DistributedDataParallel(model), started by torchrun

Since: 1.10

Today: raises RuntimeError "Missing key(s) in state_dict"

Why: DataParallel copies the model to each GPU at every step, from threads
of one process; without GPUs it does nothing. Its checkpoints have
module. before each name, so that the plain model does not load them.
DDP has a process per device, and averages gradients while the backward
pass runs; save its .module. For a model too large for one device
there is fully_shard: just since sharded_checkpoint.

Read: torch.nn.parallel.DistributedDataParallel,
torch.distributed.fsdp.fully_shard

Gone: nn.DataParallel
"""

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def given(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return nn.Linear(3, 1), torch.randn(4, 3)


def old(model: nn.Module, x: Tensor) -> Tensor:
    model = nn.DataParallel(model)
    model(x).sum().backward()
    plain = nn.Linear(3, 1)
    plain.load_state_dict(model.state_dict())
    return plain(x)


def new(model: nn.Module, x: Tensor) -> Tensor:
    model = DistributedDataParallel(model)
    model(x).sum().backward()
    plain = nn.Linear(3, 1)
    plain.load_state_dict(model.module.state_dict())
    return plain(x)


def wanted(model: nn.Linear, x: Tensor) -> Tensor:
    return x @ model.weight.mT + model.bias
