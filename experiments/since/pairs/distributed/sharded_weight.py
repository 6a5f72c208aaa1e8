"""A tensor that lies on many processes is one tensor: DTensor

Old: dist.all_gather(parts, x @ shard.mT)

New: distribute_tensor(weight, mesh, [Shard(0)])

Since: 2.5

Today: raises RuntimeError "element 0 of tensors does not require grad"

Why: all_gather fills given tensors, through which no gradient flows: each
layer needed an autograd Function of its own. A DTensor knows how it
is cut up. Its operations communicate as needed, forward and back.

Read: torch.distributed.tensor.distribute_tensor,
torch.distributed.init_device_mesh

Gone: all_gather
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def given(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, 3, requires_grad=True), torch.randn(4, 3)


def old(weight: Tensor, x: Tensor) -> Tensor | None:
    """The gradient of a weight whose rows are cut over the processes"""
    shard = weight.chunk(dist.get_world_size())[dist.get_rank()]
    y = x @ shard.mT
    parts = [torch.empty_like(y) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, y)
    torch.cat(parts, dim=-1).sum().backward()
    return weight.grad


def new(weight: Tensor, x: Tensor) -> Tensor | None:
    """The gradient of a weight whose rows are cut over the processes"""
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    w = distribute_tensor(weight, mesh, [Shard(0)])
    y = distribute_tensor(x, mesh, [Replicate()]) @ w.mT
    y.full_tensor().sum().backward()
    return w.grad.full_tensor()


def wanted(weight: Tensor, x: Tensor) -> Tensor | None:
    return torch.ones(len(x), len(weight)).mT @ x
