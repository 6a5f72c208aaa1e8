"""Variants of the training step: from parts of a batch, compiled, several in one call, in bfloat16.

Each does the work of `train_step` (fn/train.py) with less memory or in less time.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.func import grad_and_value

from fn import tree
from fn.domains import Count
from fn.jit import jit
from fn.metrics import count_targets
from fn.optim import Optimizer, global_norm
from fn.rng import fold_in
from fn.train import Metrics, TrainState
from fn.tree import Params


def accumulated_step(
    ts: TrainState,
    x: Tensor,
    y: Tensor,
    *,
    objective: Callable,
    optimizer: Optimizer,
    key: Int64[Tensor, ""],
    parts: Count,
) -> tuple[TrainState, Metrics]:
    """Run `train_step` with the gradient from `parts` of the batch in turn: see `accumulated`."""
    key = fold_in(key, ts.opt_state["step"])
    grads, (_, (metrics, state)) = accumulated(objective, ts.params, ts.state, x, y, key=key, parts=parts)
    params, opt_state = optimizer.update(ts.params, grads, ts.opt_state)
    return TrainState(params, state, opt_state), metrics | {"grad_norm": global_norm(grads)}


def accumulated(
    objective: Callable,
    params: Params,
    state: Params,
    x: Float[Tensor, " batch *shape"] | Int[Tensor, " batch *shape"],
    y: Int[Tensor, " batch *positions"] | Float[Tensor, " batch *objects"],
    *,
    key: Int64[Tensor, ""],
    parts: Count,
) -> tuple[Params, tuple[Tensor, tuple[Metrics, Params]]]:
    """Compute grad_and_value(objective) of a batch from `parts` of it in turn, which takes less memory.

    The loss and the metrics are means over the targets that count, so each part weighs as many as it has of them, and
    one without any adds nothing. Batch norm normalises each part on its own.
    """
    total: Params = {}
    counts = torch.stack([count_targets(part) for part in y.chunk(parts)])
    counts = torch.where(counts.any(), counts, 1)  # if none counts, every part gives what the batch does
    gradients = grad_and_value(objective, has_aux=True)
    for i, (x_part, y_part) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
        grads, (loss, (metrics, state)) = gradients(params, state, x_part, y_part, key=fold_in(key, i))
        share = {"grads": grads, "loss": loss, "metrics": metrics}
        share = tree.map(partial(_share, count=counts[i], total=counts.sum()), share)
        total = tree.map(torch.add, total, share) if total else share
    return total["grads"], (total["loss"], (total["metrics"], state))


def _share(x: Float[Tensor, "..."], count: Int[Tensor, ""], total: Int[Tensor, ""]) -> Float[Tensor, "..."]:
    """Return x · count / total in the dtype of x; 0 where the count is 0, though x may be NaN."""
    dtype = torch.promote_types(x.dtype, torch.float32)  # half precision cannot count beyond 2,048
    share = x.to(dtype) * (count.to(dtype) / total.to(dtype))
    return torch.where(count > 0, share, 0.0).to(x.dtype)


def gradient_function(objective: Callable, parts: Count = 1) -> Callable:
    """Return grad_and_value(objective), or the same computed from so many parts of the batch in turn."""
    if parts == 1:
        return grad_and_value(objective, has_aux=True)
    return partial(accumulated, objective, parts=parts)


def compiled(step: Callable, batch_size: Count) -> Callable:
    """Return `step`, compiled for batches of `batch_size`; a shorter last batch runs without compilation."""
    whole = jit(step)

    @wraps(step)
    @no_type_check
    def whole_or_rest(ts, x, y, *, key):
        return (whole if len(y) == batch_size else step)(ts, x, y, key=key)

    return whole_or_rest


def several_steps(
    ts: TrainState,
    x: Float[Tensor, "steps batch *shape"] | Int[Tensor, "steps batch *shape"],
    y: Int[Tensor, "steps batch *positions"],
    *,
    step: Callable,
    key: Int64[Tensor, ""],
) -> tuple[TrainState, Metrics]:
    """Run `step` on one batch after the other; each metric has an entry per step.

    Under `jit` this saves time for small models, where a call costs as much as the computation. The loop is unrolled,
    so compilation takes `steps` times as long.
    """
    metrics = []
    for x_step, y_step in zip(x, y, strict=True):
        ts, measured = step(ts, x_step, y_step, key=key)
        metrics.append(measured)
    return ts, tree.stack(*metrics)


def mixed_precision(apply: Callable, dtype: torch.dtype) -> Callable:
    """Return `apply` with its matrix products in `dtype`. Parameters, gradients, sums and logits stay in float32."""
    return partial(_autocast, apply=apply, dtype=dtype)


def _autocast(
    params: Params,
    state: Params,
    x: Float[Tensor, " batch *shape"],
    *,
    apply: Callable,
    dtype: torch.dtype,
    **options: Any,
) -> tuple[Float[Tensor, "..."], Params]:
    with torch.autocast(x.device.type, dtype=dtype):
        logits, state = apply(params, state, x, **options)
    return logits.float(), state
