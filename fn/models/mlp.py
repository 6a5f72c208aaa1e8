"""The multi-layer perceptron: linear, relu, linear, …"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from fn.layers import dropout, flatten, linear, linear_init, relu, softmax
from fn.models import Model
from fn.rng import fold_in
from fn.tree import Params


def mlp_init(rng: torch.Generator, sizes: Sequence[int]) -> tuple[Params, Params]:
    """Sizes (64, 128, 10) make fc1 of 64 → 128 and fc2 of 128 → 10"""
    *hidden, classes = sizes[1:]
    params = {f"fc{i + 1}": linear_init(rng, sizes[i], d_out) for i, d_out in enumerate(hidden)}
    return params | {f"fc{len(hidden) + 1}": linear_init(rng, sizes[-2], classes, gain=1.0)}, {}


def mlp_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, " batch *shape"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    dropout_p: float = 0.0,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    """Logits of flattened examples, with dropout after each relu"""
    x = flatten(x)
    for i in range(1, len(params)):
        x = relu(linear(x, **params[f"fc{i}"]))
        x = dropout(x, dropout_p, train, key=None if key is None else fold_in(key, i))
    return linear(x, **params[f"fc{len(params)}"]), state


def two_layer_grads(params: Params, x: Float[Tensor, "batch d_in"], target: Int[Tensor, " batch"]) -> Params:
    """The backward pass of fc2(relu(fc1(x))) under mean cross-entropy, derived by hand; read it from the bottom up:

    L = -1/B Σ log softmax(a)[target]     ∂L/∂a = (softmax(a) - onehot) / B
    a = h W₂ᵀ + b₂                        ∂L/∂W₂ = (∂L/∂a)ᵀ h     ∂L/∂b₂ = Σ ∂L/∂a     ∂L/∂h = ∂L/∂a W₂
    h = max(z, 0)                         ∂L/∂z = ∂L/∂h where z > 0, else 0
    z = x W₁ᵀ + b₁                        ∂L/∂W₁ = (∂L/∂z)ᵀ x     ∂L/∂b₁ = Σ ∂L/∂z
    """
    z = linear(x, **params["fc1"])
    h = relu(z)
    a = linear(h, **params["fc2"])

    onehot = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)[target]
    d_a = (softmax(a, dim=1) - onehot) / len(target)
    d_h = d_a @ params["fc2"]["weight"]
    d_z = d_h * (z > 0)
    return {
        "fc1": {"weight": d_z.T @ x, "bias": d_z.sum(dim=0)},
        "fc2": {"weight": d_a.T @ h, "bias": d_a.sum(dim=0)},
    }


def mlp(shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (128,), dropout_p: float = 0.0) -> Model:
    init = partial(mlp_init, sizes=(math.prod(shape), *hidden, classes))
    return Model(init, partial(mlp_apply, dropout_p=dropout_p))
