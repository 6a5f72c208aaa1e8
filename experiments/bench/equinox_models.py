"""The networks as layers of equinox.nn.Sequential, filled with our parameters.

JAX and Equinox are imported where they are used, as they may be missing.
"""

from typing import Any

from fn.tree import Params


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
        layer = nn.Conv2d(channels, out_channels, kernel, stride, padding=1, use_bias=False, key=key)
        return filled(layer, tensors)

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
    """Return the layer with its parameters replaced by these tensors."""
    import equinox as eqx

    return eqx.tree_at(lambda layer: [getattr(layer, name) for name in tensors], layer, list(tensors.values()))
