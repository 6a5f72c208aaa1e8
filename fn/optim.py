"""Optimizers as pairs: `state = sgd_init(params)`, `params, state = sgd(params, grads, state, lr=…)`.

θ parameters, g gradients, η learning rate, λ weight decay, t the step counted from 1. The state holds `step`, how many
updates were made, from which a schedule gives the next rate:

    rate = partial(cosine_schedule, lr=3e-4, total_steps=1000)
    params, state = scheduled(params, grads, state, update=adamw, rate=rate)
"""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fn import tree
from fn.tree import Params

Rate = float | Float[Tensor, ""]
Step = int | Int[Tensor, ""]


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


def sgd(
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


def adam(
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


adamw_init = adam_init


def adamw(
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
    return adam(decayed, grads, state, lr=lr, betas=betas, eps=eps)


def global_norm(grads: Params) -> Float[Tensor, ""]:
    """√Σ g² over all leaves"""
    return torch.stack([g.square().sum() for g in tree.leaves(grads)]).sum().sqrt()


def clip_grad_norm(grads: Params, max_norm: float) -> tuple[Params, Float[Tensor, ""]]:
    """(g · min(1, max_norm / (‖g‖ + 1e-6)), ‖g‖): the norm is the one before clipping. Pascanu et al. 2013."""
    norm = global_norm(grads)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return tree.map(lambda g: g * scale, grads), norm


def scheduled(
    params: Params, grads: Params, state: Params, *, update: Callable, rate: Callable, clip_norm: float | None = None
) -> tuple[Params, Params]:
    """`update` at the rate of its step, the gradients scaled down to `clip_norm` first if one is given."""
    if clip_norm is not None:
        grads, _ = clip_grad_norm(grads, clip_norm)
    return update(params, grads, state, lr=rate(state["step"]))


def by_prefix(
    params: Params, grads: Params, state: Params, *, update: Callable, lr: Rate, scales: Mapping[str, float]
) -> tuple[Params, Params]:
    """`update`, the rate scaled by a factor for what lies at or below a dotted prefix: scales={"backbone": 0.1}.

    Of several prefixes above a leaf the longest counts; under none it has the rate itself. Howard and Ruder 2018.
    ValueError for a prefix at which there is nothing.
    """
    tree.split(params, list(scales))
    factors = {name: _factor(name, scales) for name in tree.flatten(params)}
    parts = []
    for factor in sorted(set(factors.values())):
        names = {name for name in factors if factors[name] == factor}
        part = [tree.pick(each, names) for each in (params, grads)]
        part_state = {k: tree.pick(v, names) if isinstance(v, dict) else v for k, v in state.items()}
        parts.append(update(*part, part_state, lr=lr * factor))
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
