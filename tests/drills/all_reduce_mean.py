"""all_reduce_mean in two collectives."""

import torch
import torch.distributed as dist


def all_reduce_mean(x, count):
    total, examples = x.clone() * count, torch.tensor(count, dtype=x.dtype)
    if count == 0:
        total = x.new_zeros(x.shape)
    if dist.is_initialized():
        dist.all_reduce(total)
        dist.all_reduce(examples)
    return total / examples


WRONG = {
    "the sum": ("return total / examples", "return total", "factor"),
    "divided by the processes": (
        "return total / examples",
        "return total / dist.get_world_size()",
        "which is count",
    ),
    "mean of means": ("x.clone() * count, torch.tensor(count,", "x.clone(), torch.tensor(1.0,", "unequal"),
    "in place": ("total, examples = x.clone() * count", "total, examples = x.mul_(count)", "in place"),
    "not a number": ("    if count == 0:\n        total = x.new_zeros(x.shape)\n", "", "none in one"),
    "a group is needed": ("    if dist.is_initialized():\n", "    if True:\n", "has not been initialized"),
    "no sum at all": ("        dist.all_reduce(total)\n", "", "the values differ"),
}
