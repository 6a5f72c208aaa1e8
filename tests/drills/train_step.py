"""train_step with the objective closed over its data."""

from torch.func import grad_and_value

from fn import tree
from fn.rng import fold_in
from fn.train import TrainState


def train_step(ts, x, y, *, objective, optimizer, key):
    key = fold_in(key, ts.opt_state["step"])
    grads, (_, aux) = grad_and_value(lambda p: objective(p, ts.state, x, y, key=key), has_aux=True)(ts.params)
    metrics, state = aux
    params, opt_state = optimizer.update(ts.params, grads, ts.opt_state)
    norm = sum((g * g).sum() for g in tree.leaves(grads)) ** 0.5
    return TrainState(params, state, opt_state), {**metrics, "grad_norm": norm}


WRONG = {
    "the statistics are dropped": (
        "TrainState(params, state, opt_state)",
        "TrainState(params, ts.state, opt_state)",
        "result[0].state",
    ),
    "the optimizer forgets": (
        "TrainState(params, state, opt_state)",
        "TrainState(params, state, ts.opt_state)",
        "result[0].opt_state",
    ),
    "nothing is learned": (
        "TrainState(params, state, opt_state)",
        "TrainState(ts.params, state, opt_state)",
        "result[0].params",
    ),
    "one key for all steps": ('    key = fold_in(key, ts.opt_state["step"])\n', "", "keys"),
    "no root": ("** 0.5", "** 1", "grad_norm"),
    "up the hill": (
        "optimizer.update(ts.params, grads,",
        "optimizer.update(ts.params, tree.map(lambda g: -g, grads),",
        "result[0]",
    ),
}
