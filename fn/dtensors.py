"""Parameters of which each process holds a slice, as DTensors; the step is the plain `train_step`: ZeRO-3, FSDP.

    ts = TrainState(*(split_rows(part) for part in ts))      # in every process: of each leaf a slice of its rows
    ts, metrics = split_step(ts, x, y, key=key, objective=objective, optimizer=optimizer)
    params = whole(ts.params)                                # plain tensors again, gathered from all processes

A DTensor is a tensor of the whole shape that knows how it lies on the processes, its *placements*. Each operation on it
sends what it needs: a product gathers a weight, uses it and lets it go. So no line of a model is about processes.
The order of sums is torch's own: equal up to rounding to the step of one process, not to the bit as `fn.distributed`.
It runs for linear layers and attention. DTensor has no rule for the windows of our convolutions.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fn import tree
from fn.data.sequences import IGNORED
from fn.distributed import place
from fn.optim import Optimizer
from fn.train import Metrics, TrainState, train_step
from fn.tree import Params


def split_rows(params: Params) -> Params:
    """Return the tree with each leaf cut along its first axis, a slice per process; numbers stay whole.

    All processes give the same tree. Where there is one process, that is the tree itself.

    >>> split_rows({"w": torch.ones(2, 2)})
    {'w': tensor([[1., 1.],
            [1., 1.]])}
    """
    if place()[1] == 1 or not tree.leaves(params):
        return params
    mesh = init_device_mesh(tree.leaves(params)[0].device.type, (place()[1],))
    return tree.map(lambda leaf: _split(leaf, mesh) if leaf.ndim else leaf, params)


def _split(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return the DTensor whose rows are cut over the mesh; nothing is sent, as every process has all of x."""
    from torch.distributed.tensor import Shard, distribute_tensor  # here, not above: it takes a second

    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)  # it warns that gloo gathers more than NCCL
    return distribute_tensor(x, mesh, [Shard(0)], src_data_rank=None)


def whole(params: Params) -> Params:
    """Return the tree as plain tensors, gathered from all processes: the inverse of `split_rows`; all call this.

    >>> whole({"w": torch.ones(2)})
    {'w': tensor([1., 1.])}
    """
    return tree.map(lambda leaf: leaf.full_tensor() if hasattr(leaf, "full_tensor") else leaf, params)


def split_step(
    ts: TrainState, x: Tensor, y: Tensor, *, key: Int64[Tensor, ""], objective: Callable, optimizer: Optimizer
) -> tuple[TrainState, Metrics]:
    """Do `train_step` on a state of `split_rows`: the batch is cut too, and each gradient is laid as its parameter is.

    All processes give the whole batch. One that cannot be cut evenly gets examples whose targets do not count.

    >>> from fn.optim import sgd
    >>> objective = lambda params, state, x, y, key: ((params["w"] * x).mean(), ({"loss": x.mean()}, state))
    >>> ts = TrainState({"w": torch.ones(1)}, {}, sgd(lr=1.0).init({"w": torch.ones(1)}))
    >>> x, y, key = torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), torch.tensor(0)
    >>> split_step(ts, x, y, key=key, objective=objective, optimizer=sgd(lr=1.0))[0].params
    {'w': tensor([-1.])}
    """
    if place()[1] == 1:
        return train_step(ts, x, y, objective=objective, optimizer=optimizer, key=key)
    from torch.distributed.tensor.experimental import implicit_replication

    mesh = next(leaf.device_mesh for leaf in tree.leaves(ts.params) if hasattr(leaf, "device_mesh"))
    missing = -len(x) % place()[1]
    x, y = _lengthen(x, missing, 0), _lengthen(y, missing, IGNORED)
    optimizer = optimizer._replace(update=partial(_update_slices, update=optimizer.update))
    with implicit_replication():  # a plain tensor among DTensors, as a mask of dropout, is the same in all processes
        ts, metrics = train_step(
            ts, _split(x, mesh), _split(y, mesh), objective=objective, optimizer=optimizer, key=key
        )
    return ts, whole(metrics)


def _lengthen(x: Tensor, rows: int, value: int) -> Tensor:
    return torch.nn.functional.pad(x, [0, 0] * (x.ndim - 1) + [0, rows], value=value)


def _update_slices(params: Params, grads: Params, state: Params, *, update: Callable) -> tuple[Params, Params]:
    """Update with gradients laid as the parameters are: what is a sum over processes so far is summed, a slice each."""
    return update(params, tree.map(_lay_like, grads, params), state)


def _lay_like(x: Any, like: Any) -> Tensor:
    return x.redistribute(placements=like.placements) if hasattr(like, "placements") else x
