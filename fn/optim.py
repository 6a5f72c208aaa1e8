"""Optimizers: an equation per update, and `Optimizer(init, update)` pairs made of them, as in optax.

    optimizer = adamw(lr=partial(cosine_schedule, lr=3e-4, total_steps=1000))
    opt_state = optimizer.init(params)
    params, opt_state = optimizer.update(params, grads, opt_state)

θ parameters, g gradients, η learning rate, λ weight decay, t the step counted from 1. The state holds `step`, the
number of updates so far. A schedule is a function of that step; `lr` takes a number or a schedule.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fn import tree
from fn.tree import Params

Rate = float | Float[Tensor, ""]
Step = int | Int[Tensor, ""]


class Optimizer(NamedTuple):
    init: Callable
    """init(params) -> state"""
    update: Callable
    """update(params, grads, state) -> (params, state)"""


def _zeros(params: Params) -> Params:
    return tree.map(torch.zeros_like, params)


def _step_zero(params: Params) -> Int[Tensor, ""]:
    return torch.zeros((), dtype=torch.int64, device=tree.leaves(params)[0].device)


def _require_like(params: Params, grads: Params) -> None:
    """ValueError for a gradient of another shape or dtype than its parameter, which would broadcast unseen."""
    flat = tree.flatten(grads)
    for name, p in tree.flatten(params).items():
        g = flat.get(name, p)  # a missing one is for tree.map to name
        if (g.shape, g.dtype) != (p.shape, p.dtype):
            raise ValueError(f"{name}: gradient {tuple(g.shape)} {g.dtype} for parameter {tuple(p.shape)} {p.dtype}")


def sgd_init(params: Params) -> Params:
    return {"step": _step_zero(params), "velocity": _zeros(params)}


def sgd_update(
    params: Params,
    grads: Params,
    state: Params,
    *,
    lr: Rate,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> tuple[Params, Params]:
    """v ← μv + g + λθ,  θ ← θ - ηv;  Nesterov: θ ← θ - η(g + λθ + μv). Sutskever et al. 2013."""
    _require_like(params, grads)
    if weight_decay:
        grads = tree.map(lambda g, p: g + weight_decay * p, grads, params)
    velocity = tree.map(lambda v, g: momentum * v + g, state["velocity"], grads)
    move = tree.map(lambda g, v: g + momentum * v, grads, velocity) if nesterov else velocity
    params = tree.map(lambda p, d: p - lr * d, params, move)
    return params, {"step": state["step"] + 1, "velocity": velocity}


def adam_init(params: Params) -> Params:
    return {"step": _step_zero(params), "mean": _zeros(params), "square": _zeros(params)}


def adam_update(
    params: Params,
    grads: Params,
    state: Params,
    *,
    lr: Rate,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Params, Params]:
    """m ← β₁m + (1-β₁)g,  s ← β₂s + (1-β₂)g²,  θ ← θ - η · m/(1-β₁ᵗ) / (√(s/(1-β₂ᵗ)) + ε)

    Kingma and Ba 2015. Here weight decay is an L2 penalty, g ← g + λθ, which the division by √s then distorts.
    """
    _require_like(params, grads)
    if weight_decay:
        grads = tree.map(lambda g, p: g + weight_decay * p, grads, params)
    beta1, beta2 = betas
    step = state["step"] + 1
    mean = tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state["mean"], grads)
    square = tree.map(lambda s, g: beta2 * s + (1 - beta2) * g * g, state["square"], grads)
    dtype = torch.promote_types(tree.leaves(params)[0].dtype, torch.float32)
    unbias1, unbias2 = _one_minus_power(beta1, step, dtype), _one_minus_power(beta2, step, dtype)
    params = tree.map(lambda p, m, s: p - lr * (m / unbias1) / ((s / unbias2).sqrt() + eps), params, mean, square)
    return params, {"step": step, "mean": mean, "square": square}


def _one_minus_power(beta: float, step: Int[Tensor, ""], dtype: torch.dtype) -> Float[Tensor, ""]:
    """1 - βᵗ through expm1: in float32, 1 - 0.999 taken directly is wrong in the fifth digit."""
    return -torch.expm1(step.to(dtype) * (math.log(beta) if beta else -math.inf))


def adamw_update(
    params: Params,
    grads: Params,
    state: Params,
    *,
    lr: Rate,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> tuple[Params, Params]:
    """θ ← θ - ηλθ, then Adam's step without decay: every weight shrinks alike. Loshchilov and Hutter 2019."""
    decayed = tree.map(lambda p: p - lr * weight_decay * p, params)
    return adam_update(decayed, grads, state, lr=lr, betas=betas, eps=eps)


def global_norm(grads: Params) -> Float[Tensor, ""]:
    """√Σ g² over all leaves"""
    return torch.stack([g.square().sum() for g in tree.leaves(grads)]).sum().sqrt()


def clip_grad_norm(grads: Params, max_norm: float) -> tuple[Params, Float[Tensor, ""]]:
    """(g · min(1, max_norm / (‖g‖ + 1e-6)), ‖g‖): the norm is the one before clipping. Pascanu et al. 2013."""
    norm = global_norm(grads)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return tree.map(lambda g: g * scale, grads), norm


def sgd(*, lr: Rate | Callable, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Optimizer:
    """SGD with momentum; the equation is that of `sgd_update`."""
    update = partial(sgd_update, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    return Optimizer(sgd_init, partial(_update_at_step, update=update, lr=lr))


def adam(
    *,
    lr: Rate | Callable,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam; the equation is that of `adam_update`."""
    update = partial(adam_update, betas=betas, eps=eps, weight_decay=weight_decay)
    return Optimizer(adam_init, partial(_update_at_step, update=update, lr=lr))


def adamw(
    *,
    lr: Rate | Callable,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> Optimizer:
    """Adam with decoupled weight decay; the equation is that of `adamw_update`."""
    update = partial(adamw_update, betas=betas, eps=eps, weight_decay=weight_decay)
    return Optimizer(adam_init, partial(_update_at_step, update=update, lr=lr))


def _update_at_step(
    params: Params, grads: Params, state: Params, *, update: Callable, lr: Rate | Callable
) -> tuple[Params, Params]:
    return update(params, grads, state, lr=_rate_at(lr, state["step"]))


def _rate_at(lr: Rate | Callable, step: Step) -> Rate:
    return lr(step) if callable(lr) else lr


def clip_by_global_norm(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """Clip the gradients with `clip_grad_norm` before every update of the optimizer."""
    return Optimizer(optimizer.init, partial(_clipped_update, update=optimizer.update, max_norm=max_norm))


def _clipped_update(
    params: Params, grads: Params, state: Params, *, update: Callable, max_norm: float
) -> tuple[Params, Params]:
    grads, _ = clip_grad_norm(grads, max_norm)
    return update(params, grads, state)


def lr_by_prefix(optimizer: Callable, *, lr: Rate | Callable, scales: Mapping[str, float]) -> Optimizer:
    """Scale the learning rate below each dotted prefix: lr_by_prefix(adamw, lr=1e-3, scales={"backbone": 0.1}).

    Of several prefixes above a parameter the longest counts; without one it has `lr` itself. `optimizer` is a function
    such as `adamw`. Howard and Ruder 2018, section 3.2. An update raises ValueError for a prefix without parameters.
    """
    return Optimizer(optimizer(lr=lr).init, partial(_update_by_prefix, optimizer=optimizer, lr=lr, scales=scales))


def _update_by_prefix(
    params: Params,
    grads: Params,
    state: Params,
    *,
    optimizer: Callable,
    lr: Rate | Callable,
    scales: Mapping[str, float],
) -> tuple[Params, Params]:
    tree.split(params, list(scales))
    lr = _rate_at(lr, state["step"])
    factors = {name: _factor(name, scales) for name in tree.flatten(params)}
    parts = []
    for factor in sorted(set(factors.values())):
        names = {name for name in factors if factors[name] == factor}
        part_params, part_grads = (tree.pick(whole, names) for whole in (params, grads))
        part_state = {k: tree.pick(v, names) if isinstance(v, dict) else v for k, v in state.items()}
        parts.append(optimizer(lr=lr * factor).update(part_params, part_grads, part_state))
    merged = {k: tree.merge(*(s[k] for _, s in parts)) for k, v in state.items() if isinstance(v, dict)}
    return tree.merge(*(p for p, _ in parts)), parts[0][1] | merged


def _factor(name: str, scales: Mapping[str, float]) -> float:
    above = [prefix for prefix in scales if tree.below(name, prefix)]
    return scales[max(above, key=len)] if above else 1.0


def constant_schedule(step: Step, *, lr: Rate, total_steps: int) -> Float[Tensor, ""]:
    """η at every step"""
    return torch.as_tensor(lr)


def warmup_schedule(step: Step, *, lr: Rate, warmup_steps: int) -> Float[Tensor, ""]:
    """η · min(1, (step + 1) / warmup_steps). Give it another schedule as `lr` to warm that up."""
    return torch.clamp((torch.as_tensor(step) + 1) / warmup_steps, max=1.0) * lr


def cosine_schedule(step: Step, *, lr: Rate, total_steps: int, min_lr: float = 0.0) -> Float[Tensor, ""]:
    """From lr to min_lr along half a cosine, and min_lr from then on; also under vmap. Loshchilov and Hutter 2017."""
    return _cosine(torch.as_tensor(step) / total_steps, lr, min_lr)


def one_cycle_schedule(
    step: Step,
    *,
    lr: Rate,
    total_steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Float[Tensor, ""]:
    """Up from lr/div_factor to lr during the first `pct_start`, then down to lr/div_factor/final_div_factor.

    Smith 2018.
    """
    low = lr / div_factor
    peak = max(pct_start * total_steps - 1, 1e-6)  # a run too short to warm up starts at lr in its second step
    step = torch.as_tensor(step)
    rise = _cosine(step / peak, low, lr)
    fall = _cosine((step - peak) / (total_steps - 1 - peak), lr, low / final_div_factor)
    return torch.where(step <= peak, rise, fall)


def _cosine(progress: Float[Tensor, ""], start: Rate, end: Rate) -> Float[Tensor, ""]:
    """From `start` at 0 to `end` at 1 and beyond."""
    return end + (start - end) * (1 + torch.cos(math.pi * progress.clamp(0.0, 1.0))) / 2
