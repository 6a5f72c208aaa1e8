"""Optimizers: an equation per update, and `Optimizer(init, update)` pairs made of them, as in optax.

    optimizer = adamw(lr=partial(cosine_schedule, lr=3e-4, total_steps=1000))
    opt_state = optimizer.init(params)
    params, opt_state = optimizer.update(params, grads, opt_state)

θ parameters, g gradients, η learning rate, λ weight decay, t the step counted from 1. The state holds `step`, the
number of updates so far. A schedule is a function of that step; `lr` takes a number or a schedule.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fn import tree
from fn.domains import Beta, Count, Factors, NonNegative, Ordinal, Positive, Probability
from fn.precision import common_dtype, upcast
from fn.tree import Params

Rate = NonNegative | Float[Tensor, ""]
"""of a tensor the value is not checked, as in torch: that would wait for the device"""
Step = Ordinal | Int[Tensor, ""]


class Optimizer(NamedTuple):
    init: Callable
    """init(params) -> state"""
    update: Callable
    """update(params, grads, state) -> (params, state)"""


def _zeros(params: Params) -> Params:
    return tree.map(torch.zeros_like, params)


def _step_zero(params: Params) -> Int[Tensor, ""]:
    """Return step 0 on the device of the parameters; ValueError if there are none."""
    tree.require_leaves(params, "params")
    return torch.zeros((), dtype=torch.int64, device=tree.leaves(params)[0].device)


def _require_like(params: Params, grads: Params) -> None:
    """Raise ValueError for a gradient of another shape or dtype than its parameter, which would broadcast silently."""
    flat = tree.flatten(grads)
    tree.require_leaves(params, "params")
    for name, p in tree.flatten(params).items():
        g = flat.get(name, p)  # a missing one is for tree.map to name
        if (g.shape, g.dtype) != (p.shape, p.dtype):
            raise ValueError(f"{name}: gradient {tuple(g.shape)} {g.dtype} for parameter {tuple(p.shape)} {p.dtype}")


def _require_state(state: Params, *parts: str) -> None:
    """Raise ValueError for the state of another optimizer."""
    if not all(part in state for part in parts):
        raise ValueError(f"state holds {', '.join(state)}; this optimizer's own init makes step, {', '.join(parts)}")


def _require_momentum(nesterov: bool, momentum: NonNegative) -> None:
    if nesterov and not momentum:
        raise ValueError("sgd: nesterov needs a momentum")


def _map(f: Callable, x: Params, *rest: Params) -> Params:
    """Map `f` over the leaves in float32 or better; each result has the dtype of the leaf of `x`.

    Without that a 0-d leaf would take the dtype of a 0-d `lr`.
    """
    return tree.map(lambda x, *rest: f(upcast(x), *[upcast(leaf) for leaf in rest]).to(x.dtype), x, *rest)


def sgd_init(params: Params) -> Params:
    """Return the state of `sgd_update`: step 0 and a velocity of zeros.

    >>> sgd_init({"w": torch.ones(2)})
    {'step': tensor(0), 'velocity': {'w': tensor([0., 0.])}}
    """
    return {"step": _step_zero(params), "velocity": _zeros(params)}


def sgd_update(
    params: Params,
    grads: Params,
    state: Params,
    *,
    lr: Rate,
    momentum: NonNegative = 0.0,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
) -> tuple[Params, Params]:
    """Update by stochastic gradient descent: v ← μv + g + λθ,  θ ← θ - ηv;  Nesterov: θ ← θ - η(g + λθ + μv).

    μ is `momentum`. Sutskever et al. 2013.

    >>> params, grads = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([10.0, -10.0])}
    >>> sgd_update(params, grads, sgd_init(params), lr=0.1)
    ({'w': tensor([0., 3.])}, {'step': tensor(1), 'velocity': {'w': tensor([ 10., -10.])}})
    """
    _require_like(params, grads)
    _require_state(state, "velocity")
    _require_momentum(nesterov, momentum)
    if weight_decay:
        grads = _map(lambda g, p: g + weight_decay * p, grads, params)
    velocity = _map(lambda v, g: momentum * v + g, state["velocity"], grads)
    move = _map(lambda g, v: g + momentum * v, grads, velocity) if nesterov else velocity
    params = _map(lambda p, d: p - lr * d, params, move)
    return params, {"step": state["step"] + 1, "velocity": velocity}


def adam_init(params: Params) -> Params:
    """Return the state of `adam_update` and `adamw_update`: step 0, and zeros for both moments, `mean` and `square`.

    Those of fp16 and bf16 are float32: in fp16 the square of 1e-4 is 0, and a step would divide by it.

    >>> adam_init({"w": torch.ones(2)})
    {'step': tensor(0), 'mean': {'w': tensor([0., 0.])}, 'square': {'w': tensor([0., 0.])}}
    """
    mean, square = (tree.map(lambda p: torch.zeros_like(upcast(p)), params) for _ in range(2))
    return {"step": _step_zero(params), "mean": mean, "square": square}


def adam_update(
    params: Params,
    grads: Params,
    state: Params,
    *,
    lr: Rate,
    betas: tuple[Beta, Beta] = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> tuple[Params, Params]:
    """Update by Adam: m ← β₁m + (1-β₁)g,  v ← β₂v + (1-β₂)g²,  θ ← θ - η · m/(1-β₁ᵗ) / (√(v/(1-β₂ᵗ)) + ε)

    The state's `mean` is m, torch's exp_avg and optax's mu; its `square` is v, exp_avg_sq and nu. Weight decay is an
    L2 penalty here, g ← g + λθ, which is then divided by √v too. Kingma and Ba 2015.

    >>> params, grads = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([10.0, -0.1])}
    >>> adam_update(params, grads, adam_init(params), lr=0.1)[0]  # the first step is lr · sign(g)
    {'w': tensor([0.9000, 2.1000])}
    """
    _require_like(params, grads)
    _require_state(state, "mean", "square")
    if weight_decay:
        grads = tree.map(lambda g, p: upcast(g) + weight_decay * upcast(p), grads, params)
    beta1, beta2 = betas
    step = state["step"] + 1
    mean = _map(lambda m, g: beta1 * m + (1 - beta1) * g, state["mean"], grads)
    square = _map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state["square"], grads)
    dtype = torch.promote_types(tree.leaves(params)[0].dtype, torch.float32)
    unbias1, unbias2 = _one_minus_power(beta1, step, dtype), _one_minus_power(beta2, step, dtype)
    params = _map(lambda p, m, v: p - lr * (m / unbias1) / ((v / unbias2).sqrt() + eps), params, mean, square)
    return params, {"step": step, "mean": mean, "square": square}


def _one_minus_power(beta: float, step: Int[Tensor, ""], dtype: torch.dtype) -> Float[Tensor, ""]:
    """Return 1 - βᵗ through expm1: in float32, 1 - 0.999 taken directly is wrong in the fifth digit."""
    return -torch.expm1(step.to(dtype) * (math.log(beta) if beta else -math.inf))


def adamw_update(
    params: Params,
    grads: Params,
    state: Params,
    *,
    lr: Rate,
    betas: tuple[Beta, Beta] = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
) -> tuple[Params, Params]:
    """Update by Adam with decoupled weight decay: θ ← θ - ηλθ, then `adam_update` without decay.

    Every weight shrinks by the same factor. Loshchilov and Hutter 2019.

    >>> params, grads = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.0, 0.0])}
    >>> adamw_update(params, grads, adam_init(params), lr=0.1, weight_decay=0.5)[0]
    {'w': tensor([0.9500, 1.9000])}
    """
    decayed = _map(lambda p: p - lr * weight_decay * p, params)
    return adam_update(decayed, grads, state, lr=lr, betas=betas, eps=eps)


def global_norm(grads: Params) -> Float[Tensor, ""]:
    """Return √Σ g² over all leaves.

    >>> global_norm({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    tensor(5.)
    """
    leaves = tree.leaves(grads)
    if not leaves:
        return torch.zeros(())
    square = torch.stack([upcast(g).square().sum() for g in leaves]).sum()
    root = torch.where(square == 0, 1.0, square).sqrt()  # whose derivative at 0 would be infinite; here it is 0
    return torch.where(square == 0, 0.0, root).to(common_dtype(leaves))


def clip_grad_norm(grads: Params, max_norm: NonNegative) -> tuple[Params, Float[Tensor, ""]]:
    """Return (g · min(1, max_norm / (‖g‖ + 1e-6)), ‖g‖), with the norm before clipping. Pascanu et al. 2013.

    >>> clip_grad_norm({"w": torch.tensor([3.0, 4.0])}, max_norm=1.0)
    ({'w': tensor([0.6000, 0.8000])}, tensor(5.))
    """
    if not tree.leaves(grads):
        return grads, global_norm(grads)
    norm = global_norm(tree.map(upcast, grads))  # which may be beyond fp16
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return _map(lambda g: g * scale, grads), norm.to(common_dtype(tree.leaves(grads)))


def sgd(
    *, lr: Rate | Callable, momentum: NonNegative = 0.0, nesterov: bool = False, weight_decay: NonNegative = 0.0
) -> Optimizer:
    """Return the optimizer whose equation is `sgd_update`. `lr` is a number or a schedule: a function of the step.

    >>> optimizer, params = sgd(lr=0.1, momentum=0.9), {"w": torch.ones(2)}
    >>> optimizer.update(params, params, optimizer.init(params))[0]
    {'w': tensor([0.9000, 0.9000])}
    """
    _require_momentum(nesterov, momentum)
    update = partial(sgd_update, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    return Optimizer(sgd_init, partial(_update_at_step, update=update, lr=lr))


def adam(
    *,
    lr: Rate | Callable,
    betas: tuple[Beta, Beta] = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Optimizer:
    """Return the optimizer whose equation is `adam_update`. `lr` is a number or a schedule.

    >>> optimizer, params = adam(lr=0.1), {"w": torch.ones(2)}
    >>> optimizer.update(params, params, optimizer.init(params))[0]
    {'w': tensor([0.9000, 0.9000])}
    """
    update = partial(adam_update, betas=betas, eps=eps, weight_decay=weight_decay)
    return Optimizer(adam_init, partial(_update_at_step, update=update, lr=lr))


def adamw(
    *,
    lr: Rate | Callable,
    betas: tuple[Beta, Beta] = (0.9, 0.999),
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
) -> Optimizer:
    """Return the optimizer whose equation is `adamw_update`. `lr` is a number or a schedule.

    >>> optimizer = adamw(lr=partial(cosine_schedule, lr=0.1, total_steps=2), weight_decay=0.0)
    >>> params, state = {"w": torch.ones(1)}, optimizer.init({"w": torch.ones(1)})
    >>> for _ in range(2):
    ...     params, state = optimizer.update(params, {"w": torch.ones(1)}, state)
    ...     print(params["w"])
    tensor([0.9000])
    tensor([0.8500])
    """
    update = partial(adamw_update, betas=betas, eps=eps, weight_decay=weight_decay)
    return Optimizer(adam_init, partial(_update_at_step, update=update, lr=lr))


def _update_at_step(
    params: Params, grads: Params, state: Params, *, update: Callable, lr: Rate | Callable
) -> tuple[Params, Params]:
    return update(params, grads, state, lr=_rate_at(lr, state["step"]))


def _rate_at(lr: Rate | Callable, step: Step) -> Rate:
    return lr(step) if callable(lr) else lr


def clip_by_global_norm(optimizer: Optimizer, max_norm: NonNegative) -> Optimizer:
    """Return the optimizer with its gradients clipped by `clip_grad_norm` before every update.

    >>> optimizer, params = clip_by_global_norm(sgd(lr=1.0), 1.0), {"w": torch.zeros(2)}
    >>> optimizer.update(params, {"w": torch.tensor([3.0, 4.0])}, optimizer.init(params))[0]
    {'w': tensor([-0.6000, -0.8000])}
    """
    return Optimizer(optimizer.init, partial(_clipped_update, update=optimizer.update, max_norm=max_norm))


def _clipped_update(
    params: Params, grads: Params, state: Params, *, update: Callable, max_norm: NonNegative
) -> tuple[Params, Params]:
    grads, _ = clip_grad_norm(grads, max_norm)
    return update(params, grads, state)


def lr_by_prefix(optimizer: Callable, *, lr: Rate | Callable, scales: Factors) -> Optimizer:
    """Return optimizer(lr=…) with the learning rate scaled by a factor for all parameters below a dotted prefix.

    `optimizer` is a function such as `adamw`. The longest prefix above a parameter counts; without one its rate is
    `lr`. The parameters of one factor are a group with a state of its own, as in optax's multi_transform. Howard and
    Ruder 2018, section 3.2. ValueError for a prefix without parameters.

    >>> optimizer = lr_by_prefix(sgd, lr=1.0, scales={"backbone": 0.1})
    >>> params = {"backbone": {"w": torch.ones(1)}, "head": {"w": torch.ones(1)}}
    >>> optimizer.update(params, params, optimizer.init(params))[0]
    {'backbone': {'w': tensor([0.9000])}, 'head': {'w': tensor([0.])}}
    """
    options = {"optimizer": optimizer, "lr": lr, "scales": scales}
    return Optimizer(partial(_init_by_prefix, **options), partial(_update_by_prefix, **options))


def _init_by_prefix(params: Params, *, optimizer: Callable, lr: Rate | Callable, scales: Factors) -> Params:
    groups = _groups(params, scales).values()
    states = {str(i): optimizer(lr=lr).init(tree.pick(params, names)) for i, names in enumerate(groups)}
    return {"step": _step_zero(params), "groups": states}


def _update_by_prefix(
    params: Params,
    grads: Params,
    state: Params,
    *,
    optimizer: Callable,
    lr: Rate | Callable,
    scales: Factors,
) -> tuple[Params, Params]:
    lr, parts, states = _rate_at(lr, state["step"]), [], {}
    for i, (factor, names) in enumerate(_groups(params, scales).items()):
        part = tree.pick(params, names), tree.pick(grads, names), state["groups"][str(i)]
        new_params, states[str(i)] = optimizer(lr=lr * factor).update(*part)
        parts.append(new_params)
    return tree.merge(*parts), {"step": state["step"] + 1, "groups": states}


def _groups(params: Params, scales: Factors) -> dict[float, set[str]]:
    """Return the names of the parameters of each factor; ValueError for a prefix without parameters."""
    tree.split(params, list(scales))
    factors = {name: _factor(name, scales) for name in tree.flatten(params)}
    return {factor: {name for name in factors if factors[name] == factor} for factor in sorted(set(factors.values()))}


def _factor(name: str, scales: Factors) -> float:
    above = [prefix for prefix in scales if tree.below(name, prefix)]
    return scales[max(above, key=len)] if above else 1.0


def constant_schedule(step: Step, *, lr: Rate, total_steps: Count) -> Float[Tensor, ""]:
    """Return `lr` at every step.

    >>> constant_schedule(3, lr=0.1, total_steps=10)
    tensor(0.1000)
    """
    return lr if isinstance(lr, Tensor) else torch.tensor(float(lr))


def warmup_schedule(step: Step, *, lr: Rate, warmup_steps: Count) -> Float[Tensor, ""]:
    """Return lr · min(1, (step + 1) / warmup_steps). `lr` may be the value of another schedule at this step.

    >>> torch.stack([warmup_schedule(step, lr=1.0, warmup_steps=4) for step in range(5)])
    tensor([0.2500, 0.5000, 0.7500, 1.0000, 1.0000])
    """
    return torch.clamp((torch.as_tensor(step) + 1) / warmup_steps, max=1.0) * lr


def cosine_schedule(step: Step, *, lr: Rate, total_steps: Count, min_lr: NonNegative = 0.0) -> Float[Tensor, ""]:
    """Return min_lr + (lr - min_lr) · (1 + cos(π · step / total_steps)) / 2, and min_lr after the last step.

    Loshchilov and Hutter 2017.

    >>> torch.stack([cosine_schedule(step, lr=1.0, total_steps=4) for step in range(6)])
    tensor([1.0000, 0.8536, 0.5000, 0.1464, 0.0000, 0.0000])
    """
    return _cosine(torch.as_tensor(step) / total_steps, lr, min_lr)


def one_cycle_schedule(
    step: Step,
    *,
    lr: Rate,
    total_steps: Count,
    pct_start: Probability = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> Float[Tensor, ""]:
    """Return a rate that rises from lr/div_factor to lr, then falls to lr/div_factor/final_div_factor, along cosines.

    `pct_start` is the share of the steps that rise; the rate is highest at step pct_start · total_steps - 1, and only
    falls if that is below 0. Smith 2018.

    >>> torch.stack([one_cycle_schedule(step, lr=1.0, total_steps=5, pct_start=0.6) for step in range(5)])
    tensor([4.0000e-02, 5.2000e-01, 1.0000e+00, 5.0000e-01, 4.0000e-06])
    """
    low, peak, step = lr / div_factor, pct_start * total_steps - 1, torch.as_tensor(step)
    fall = _cosine((step - peak) / max(total_steps - 1 - peak, 1e-6), lr, low / final_div_factor)
    return torch.where(step <= peak, _cosine(step / peak, low, lr), fall) if peak > 0 else fall


def _cosine(progress: Float[Tensor, ""], start: Rate, end: Rate) -> Float[Tensor, ""]:
    """Return `start` at progress 0 and `end` from 1 on, half a cosine between them."""
    return end + (start - end) * (1 + torch.cos(math.pi * progress.clamp(0.0, 1.0))) / 2
