"""The training step in JAX: functions under `jax.jit`, and a module of Equinox with an optimizer of optax.

The libraries are imported where they are used, as they may be missing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from experiments.bench.torch_steps import BETAS, EPS, LR, WEIGHT_DECAY, Start, Variant, part
from experiments.shared.registry import resolve
from fn import tree


def plain_jax(start: Start) -> Variant:
    """Return the step as functions: `jax.tree.map` for AdamW, `jax.jit` for the whole."""
    import jax
    import jax.numpy as jnp

    params, state, x, y = for_jax(start)
    loss = partial(jax_objective, apply=part(start.workload.jax), loss=resolve(start.workload.jax_loss))

    @jax.jit
    def step(carry: tuple, x: Any, y: Any) -> tuple:
        params, state, mean, square, t = carry
        grads, state = jax.grad(loss, has_aux=True)(params, state, x, y)
        params, mean, square = _jax_adamw(params, grads, mean, square, t + 1)
        return params, state, mean, square, t + 1

    zeros = jax.tree.map(jnp.zeros_like, params)
    return Variant(
        lambda carry: step(carry, x, y),
        (params, state, zeros, zeros, jnp.zeros((), jax.tree.leaves(params)[0].dtype)),
        lambda carry: jax.tree.leaves(carry[0]),
        lambda carry: jax.block_until_ready(carry[-1]),  # one program computes all of the carry
    )


def for_jax(start: Start) -> tuple[dict, dict, Any, Any]:
    """Return (params, state, x, y) laid out as XLA likes them.

    Images and kernels channels last, matrices (d_in, d_out).
    """
    laid, channels = {}, 0
    for name, weight in tree.flatten(start.ts.params).items():
        if weight.ndim == 4:
            weight, channels = weight.permute(2, 3, 1, 0), len(weight)
        elif weight.ndim == 2:
            # a flattened image has its pixels in another order when channels come last
            weight = weight.unflatten(1, (channels or 1, -1)).transpose(1, 2).flatten(1).T
            channels = 0
        laid[name] = weight
    laid = tree.unflatten(laid)
    x = start.x.permute(0, 2, 3, 1) if start.workload.images else start.x
    return _as_jax(laid), _as_jax(start.ts.state), _as_jax(x), _as_jax(start.y)


def _as_jax(tensors: Any) -> Any:
    import jax.numpy as jnp

    return tree.map(lambda t: jnp.asarray(t.cpu().contiguous().numpy()), tensors)


def jax_objective(params: dict, state: dict, x: Any, y: Any, *, apply: Callable, loss: Callable) -> tuple[Any, dict]:
    output, state = apply(params, state, x)
    return loss(output, y), state


def jax_cross_entropy(logits: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], -1).mean()


def _jax_adamw(params: dict, grads: dict, mean: dict, square: dict, t: Any) -> tuple[dict, dict, dict]:
    import jax
    import jax.numpy as jnp

    beta1, beta2 = BETAS
    mean = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, mean, grads)
    square = jax.tree.map(lambda s, g: beta2 * s + (1 - beta2) * g * g, square, grads)
    step = jax.tree.map(lambda m, s: LR * (m / (1 - beta1**t)) / (jnp.sqrt(s / (1 - beta2**t)) + EPS), mean, square)
    return jax.tree.map(lambda p, d: (1 - LR * WEIGHT_DECAY) * p - d, params, step), mean, square


def equinox_optax(start: Start) -> Variant:
    """Return the step as a module of Equinox with an optimizer of optax, under `eqx.filter_jit`."""
    import equinox as eqx
    import jax
    import optax

    layers = resolve(start.workload.equinox)(_as_jax(start.ts.params))
    model, state = eqx.nn.make_with_state(eqx.nn.Sequential)(layers)
    x, y = _as_jax(start.x), _as_jax(start.y)
    optimizer = optax.adamw(LR, *BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)

    def loss(model: Any, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        logits, state = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    @eqx.filter_jit
    def step(carry: tuple, x: Any, y: Any) -> tuple:
        model, state, moments = carry
        grads, state = eqx.filter_grad(loss, has_aux=True)(model, state, x, y)
        updates, moments = optimizer.update(grads, moments, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, moments

    return Variant(
        lambda carry: step(carry, x, y),
        (model, state, optimizer.init(eqx.filter(model, eqx.is_inexact_array))),
        lambda carry: jax.tree.leaves(eqx.filter(carry[0], eqx.is_inexact_array)),
        lambda carry: jax.block_until_ready(carry[2][0].count),
    )
