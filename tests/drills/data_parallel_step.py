"""parts_step with the parts' vectors weighed at the end."""

import torch

from fn import tree
from fn.distributed import from_vector, own_parts, pairwise_sum, part_shares, place, sum_over_processes, to_vector
from fn.optim import global_norm
from fn.precision import common_dtype
from fn.rng import fold_in
from fn.train import TrainState


def parts_step(ts, x, y, *, key, gradient, optimizer, parts):
    key = fold_in(key, ts.opt_state["step"])
    dtype = torch.promote_types(common_dtype(tree.leaves(ts.params)), torch.float32)
    weights, weighed, given = part_shares(y, parts, dtype), [], {}
    pieces = list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))
    for i in own_parts(parts, *place()):
        of_part = pieces[i] if len(pieces[i][1]) else pieces[0]
        given = gradient((ts.params, ts.state), *of_part, key=fold_in(key, i))
        vector = to_vector(given).to(dtype)
        weighed.append(vector * weights[i] if weights[i] > 0 else torch.zeros_like(vector))
    total = from_vector(sum_over_processes(pairwise_sum(torch.stack(weighed))), given)
    params, opt_state = optimizer.update(ts.params, total["grads"], ts.opt_state)
    state = tree.map(lambda old, moved: old + moved, ts.state, total["moved"])
    return TrainState(params, state, opt_state), {**total["metrics"], "grad_norm": global_norm(total["grads"])}


WRONG = {
    "every part weighs alike": ("vector * weights[i] if", "vector / parts if", "result"),
    "a key of the process": ("key=fold_in(key, i))", "key=fold_in(key, place()[0]))", "a key of its own"),
    "one key for all steps": ('    key = fold_in(key, ts.opt_state["step"])\n', "", "a key of its own"),
    "its own parts alone": (
        "sum_over_processes(pairwise_sum(torch.stack(weighed)))",
        "pairwise_sum(torch.stack(weighed))",
        "one process",
    ),
    "from left to right": (
        "sum_over_processes(pairwise_sum(torch.stack(weighed)))",
        "sum_over_processes(sum(weighed))",
        "one process",
    ),
    "the state stays": ("old + moved", "old", "state"),
    "the optimizer forgets": (
        "TrainState(params, state, opt_state)",
        "TrainState(params, state, ts.opt_state)",
        "opt_state",
    ),
    "an empty part is no number": (
        "of_part = pieces[i] if len(pieces[i][1]) else pieces[0]",
        "of_part = pieces[i]",
        "vector * weights[i] if weights[i] > 0 else torch.zeros_like(vector)",
        "vector * weights[i]",
        "NaN",
    ),
}
