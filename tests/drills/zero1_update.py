"""zero1_update by indices."""

import torch

from fn import tree
from fn.distributed import from_vector, gather, place, to_vector


def zero1_update(params, grads, state, *, update):
    if len({leaf.dtype for leaf in tree.leaves(params)}) > 1:
        raise ValueError("zero1_update: one dtype, please")
    rank, processes = place()
    length = -(-tree.size(params) // processes)

    def own(whole):
        padded = torch.zeros(length * processes, dtype=tree.leaves(params)[0].dtype)
        padded[: tree.size(params)] = to_vector(whole)
        return {"slice": padded[rank * length : (rank + 1) * length]}

    new, state = update(own(params), own(grads), state)
    return from_vector(torch.cat(list(gather(new["slice"]))), params), state


WRONG = {
    "the first slice everywhere": ("padded[rank * length : (rank + 1) * length]", "padded[:length]", "whole one"),
    "nothing is gathered": (
        "torch.cat(list(gather(new",
        "torch.cat(processes * [(new",
        '["slice"]))), params)',
        '["slice"])]), params)',
        "whole one",
    ),
    "the state stays": (
        "    return from_vector",
        "    state = dict(state)\n    return from_vector",
        "new, state = update",
        "new, _ = update",
        "result[1]",
    ),
    "cut off": (
        "length = -(-tree.size(params) // processes)",
        "length = tree.size(params) // processes",
        "must match the existing size",
    ),
    "any dtype": ("    if len({leaf.dtype for leaf in tree.leaves(params)}) > 1:", "    if False:", "refused"),
    "gradients of all, summed": (
        "own(params), own(grads), state",
        "own(params), {'slice': gather(own(grads)['slice']).sum(0)}, state",
        "whole one",
    ),
}
