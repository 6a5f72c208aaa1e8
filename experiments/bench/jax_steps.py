"""The same step in JAX: functions under `jax.jit`, and a module of Equinox with an optimizer of optax.

Both libraries are imported where they are used, as they may be missing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from experiments.bench.torch_steps import BETAS, EPS, LR, WEIGHT_DECAY, Start, Variant
from experiments.shared.registry import resolve
from fn import tree
from fn.tree import Params


def plain_jax(start: Start) -> Variant:
    """Functions, `jax.tree.map` for AdamW, and `jax.jit`."""
    import jax
    import jax.numpy as jnp

    params, state, x, y = for_jax(start)
    loss = partial(jax_objective, apply=resolve(start.row.jax), loss=resolve(start.row.jax_loss))

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
        lambda carry: jax.block_until_ready(carry[-1]),  # one program makes it all
    )


def for_jax(start: Start) -> tuple[dict, dict, Any, Any]:
    """(params, state, x, y) laid out as XLA likes them: images and kernels channels last, matrices (d_in, d_out)."""
    laid, channels = {}, 0
    for name, weight in tree.flatten(start.ts.params).items():
        if weight.ndim == 4:
            weight, channels = weight.permute(2, 3, 1, 0), len(weight)
        elif weight.ndim == 2:
            # what was flattened was an image, and is now in another order
            weight = weight.unflatten(1, (channels or 1, -1)).transpose(1, 2).flatten(1).T
            channels = 0
        laid[name] = weight
    laid = tree.unflatten(laid)
    x = start.x.permute(0, 2, 3, 1) if start.row.images else start.x
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


def jax_mlp(params: dict, state: dict, x: Any) -> tuple[Any, dict]:
    import jax

    x = x.reshape(len(x), -1)
    for i in range(1, len(params)):
        x = jax.nn.relu(x @ params[f"fc{i}"]["weight"] + params[f"fc{i}"]["bias"])
    last = params[f"fc{len(params)}"]
    return x @ last["weight"] + last["bias"], state


def jax_cnn(params: dict, state: dict, x: Any) -> tuple[Any, dict]:
    import jax

    new_state = {}
    for i in range(1, len(state) + 1):
        x = jax_conv(x, params[f"conv{i}"])
        if i < len(state):
            x = jax_pool(x)
        x, new_state[f"bn{i}"] = jax_norm(x, params[f"bn{i}"], state[f"bn{i}"])
        x = jax.nn.relu(x)
    return x.reshape(len(x), -1) @ params["fc"]["weight"] + params["fc"]["bias"], new_state


def jax_conv(x: Any, params: dict, stride: int = 1) -> Any:
    """Padded by half a kernel"""
    import jax

    half = params["weight"].shape[0] // 2
    steps, pads, layout = (stride, stride), [(half, half)] * 2, ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, params["weight"], steps, pads, dimension_numbers=layout) + params.get(
        "bias", 0
    )


def jax_pool(x: Any) -> Any:
    """2×2, the maximum"""
    import jax

    return jax.lax.reduce_window(x, -float("inf"), jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def jax_norm(x: Any, params: dict, old: dict) -> tuple[Any, dict]:
    import jax

    n, mean, var = x.size // x.shape[-1], x.mean((0, 1, 2)), x.var((0, 1, 2))
    now = {"running_mean": mean, "running_var": var * n / (n - 1)}
    y = (x - mean) * jax.lax.rsqrt(var + 1e-5) * params["weight"] + params["bias"]
    return y, {name: 0.9 * old[name] + 0.1 * now[name] for name in now}


def jax_resnet(params: dict, state: dict, x: Any) -> tuple[Any, dict]:
    import jax
    import jax.numpy as jnp

    x, first = jax_norm(jax_conv(x, params["conv1"]), params["bn1"], state["bn1"])
    x, new_state = jax.nn.relu(x), {"bn1": first}
    for stage in [name for name in params if name.startswith("layer")]:
        new_state[stage] = {}
        for i in range(len(params[stage])):
            block, old = params[stage][str(i)], state[stage][str(i)]
            zeros = block["bn1"]["bias"].size - x.shape[-1]
            stride = 2 if zeros else 1
            y, bn1 = jax_norm(jax_conv(x, block["conv1"], stride), block["bn1"], old["bn1"])
            y, bn2 = jax_norm(jax_conv(jax.nn.relu(y), block["conv2"]), block["bn2"], old["bn2"])
            short = jnp.pad(x[:, ::stride, ::stride], [(0, 0)] * 3 + [(zeros // 2, zeros - zeros // 2)])
            x, new_state[stage][str(i)] = jax.nn.relu(short + y), {"bn1": bn1, "bn2": bn2}
    return x.mean((1, 2)) @ params["fc"]["weight"] + params["fc"]["bias"], new_state


def equinox_optax(start: Start) -> Variant:
    """A module of Equinox, an optimizer of optax, `eqx.filter_jit`."""
    import equinox as eqx
    import jax
    import optax

    layers = resolve(start.row.equinox)(_as_jax(start.ts.params))
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


def equinox_mlp(params: Params) -> list[Any]:
    import jax
    from equinox import nn

    key, layers = jax.random.key(0), [nn.Lambda(lambda x: x.ravel())]
    for i in range(1, len(params) + 1):
        d_out, d_in = params[f"fc{i}"]["weight"].shape
        layers += [filled(nn.Linear(d_in, d_out, key=key), params[f"fc{i}"]), nn.Lambda(jax.nn.relu)]
    return layers[:-1]


def equinox_cnn(params: Params) -> list[Any]:
    import jax
    from equinox import nn

    key, layers = jax.random.key(0), []
    blocks = len(params) // 2
    for i in range(1, blocks + 1):
        out_channels, channels, *kernel = params[f"conv{i}"]["weight"].shape
        conv = nn.Conv2d(channels, out_channels, kernel, padding=1, use_bias=False, key=key)
        pool = [nn.MaxPool2d(2, 2)] if i < blocks else []
        norm = nn.BatchNorm(out_channels, "batch", mode="batch")
        layers += [filled(conv, params[f"conv{i}"]), *pool, filled(norm, params[f"bn{i}"]), nn.Lambda(jax.nn.relu)]
    classes, d_in = params["fc"]["weight"].shape
    return [*layers, nn.Lambda(lambda x: x.ravel()), filled(nn.Linear(d_in, classes, key=key), params["fc"])]


def equinox_resnet(params: Params) -> list[Any]:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from equinox import nn

    key = jax.random.key(0)

    def conv(tensors: dict[str, Any], stride: int = 1) -> Any:
        out_channels, channels, *kernel = tensors["weight"].shape
        made = nn.Conv2d(channels, out_channels, kernel, stride, padding=1, use_bias=False, key=key)
        return filled(made, tensors)

    def norm(tensors: dict[str, Any]) -> Any:
        return filled(nn.BatchNorm(tensors["bias"].size, "batch", mode="batch"), tensors)

    class Residual(nn.StatefulLayer):
        conv1: Any
        bn1: Any
        conv2: Any
        bn2: Any
        zeros: int = eqx.field(static=True)

        def __init__(self, block: Params) -> None:
            out_channels, channels, *_ = block["conv1"]["weight"].shape
            self.zeros = out_channels - channels
            self.conv1, self.conv2 = conv(block["conv1"], 2 if self.zeros else 1), conv(block["conv2"])
            self.bn1, self.bn2 = norm(block["bn1"]), norm(block["bn2"])

        def __call__(self, x: Any, state: Any, *, key: Any = None) -> tuple[Any, Any]:
            y, state = self.bn1(self.conv1(x), state)
            y, state = self.bn2(self.conv2(jax.nn.relu(y)), state)
            if self.zeros:
                x = jnp.pad(x[:, ::2, ::2], [(self.zeros // 2, self.zeros - self.zeros // 2), (0, 0), (0, 0)])
            return jax.nn.relu(x + y), state

    layers = [conv(params["conv1"]), norm(params["bn1"]), nn.Lambda(jax.nn.relu)]
    for stage in [name for name in params if name.startswith("layer")]:
        layers += [Residual(params[stage][str(i)]) for i in range(len(params[stage]))]
    classes, d_in = params["fc"]["weight"].shape
    mean = nn.Lambda(lambda x: x.mean((1, 2)))
    return [*layers, mean, filled(nn.Linear(d_in, classes, key=key), params["fc"])]


def filled(layer: Any, tensors: dict[str, Any]) -> Any:
    """The layer with these parameters in place of those that it drew."""
    import equinox as eqx

    return eqx.tree_at(lambda layer: [getattr(layer, name) for name in tensors], layer, list(tensors.values()))
