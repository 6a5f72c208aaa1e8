"""The networks in JAX: functions of parameters laid out as `for_jax` of jax_steps.py lays them, channels last.

JAX is imported where it is used, as it may be missing.
"""

from collections.abc import Sequence
from typing import Any


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


def jax_drawn(params: dict, state: dict, x: Any, *, convs: Sequence[Any]) -> tuple[Any, dict]:
    """Return the logits of the convolutions of a network of grid.py."""
    import jax

    new_state = {}
    for i, conv in enumerate(convs, start=1):
        x = jax_conv(x, params[f"conv{i}"], conv.stride, conv.padding, conv.groups)
        if conv.norm:
            x, new_state[f"bn{i}"] = jax_norm(x, params[f"bn{i}"], state[f"bn{i}"])
        x = jax.nn.relu(x)
        if conv.pool:
            x = jax_pool(x)
    return x.reshape(len(x), -1) @ params["fc"]["weight"] + params["fc"]["bias"], new_state


def jax_conv(x: Any, params: dict, stride: int = 1, padding: int | None = None, groups: int = 1) -> Any:
    """Return a convolution; it is padded by half a kernel where no padding is given."""
    import jax

    padding = params["weight"].shape[0] // 2 if padding is None else padding
    steps, pads, layout = (stride, stride), [(padding, padding)] * 2, ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, params["weight"], steps, pads, dimension_numbers=layout, feature_group_count=groups
    )
    return y + params.get("bias", 0)


def jax_pool(x: Any) -> Any:
    """Return the maximum of 2×2 pixels; an odd row or column at the end is left out."""
    import jax

    return jax.lax.reduce_window(x, -float("inf"), jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def jax_norm(x: Any, params: dict, old: dict) -> tuple[Any, dict]:
    """Return (batch norm of the batch, the running statistics after it)"""
    import jax

    n, mean, var = x.size // x.shape[-1], x.mean((0, 1, 2)), x.var((0, 1, 2))
    now = {"running_mean": mean, "running_var": var * n / (n - 1)}
    y = (x - mean) * jax.lax.rsqrt(var + 1e-5) * params["weight"] + params["bias"]
    return y, {name: 0.9 * old[name] + 0.1 * now[name] for name in now}
