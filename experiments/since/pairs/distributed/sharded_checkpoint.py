"""A model that is cut up keeps its names, and a function gathers it

Old: FullyShardedDataParallel.set_state_dict_type(model, …)

New: get_model_state_dict(model, options=…)

Since: 2.4

Today: warns "FSDP.state_dict_type() and FSDP.set_state_dict_type()"

Why: The first FSDP made one flat tensor of all parameters, and gave names
back on saving, if told so. fully_shard (FSDP2, public since 2.6) makes of
each a DTensor, cut along its first axis, with its name: it can be frozen
or decayed by name. get_model_state_dict gathers the whole, for DDP too.

Read: torch.distributed.fsdp.fully_shard,
torch.distributed.checkpoint.state_dict.get_model_state_dict

Gone: set_state_dict_type
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    StateDictType,
    fully_shard,
)


def given(seed: int) -> tuple[nn.Module]:
    """A layer whose rows lie on all processes"""
    torch.manual_seed(seed)
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    return (fully_shard(nn.Linear(3, 2), mesh=mesh),)


def old(model: nn.Module) -> Tensor:
    FullyShardedDataParallel.set_state_dict_type(
        model, StateDictType.FULL_STATE_DICT
    )
    return model.state_dict()["weight"]


def new(model: nn.Module) -> Tensor:
    options = StateDictOptions(full_state_dict=True)
    return get_model_state_dict(model, options=options)["weight"]


def wanted(model: nn.Module) -> Tensor:
    return next(model.parameters()).full_tensor().detach()
