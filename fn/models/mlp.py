"""The multi-layer perceptron: linear, relu, linear, …"""

import math
from functools import partial

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from fn.domains import Count, Counts, Probability, count_entries, require_held
from fn.layers import dropout, flatten, linear, linear_init, relu, softmax
from fn.models import Model
from fn.rng import fold_in
from fn.tree import Params


def mlp_init(rng: torch.Generator, d_in: Count, hidden: Counts, classes: Count) -> tuple[Params, Params]:
    """Draw the parameters of fc1, fc2, …: a layer for each entry of `hidden`, and one for the classes; no state.

    >>> params, state = mlp_init(torch.Generator().manual_seed(0), 64, (128,), 10)
    >>> params["fc1"]["weight"].shape, params["fc2"]["weight"].shape
    (torch.Size([128, 64]), torch.Size([10, 128]))
    """
    params: Params = {}
    for i, d_out in enumerate(hidden, start=1):
        params[f"fc{i}"] = linear_init(rng, d_in, d_out)
        d_in = d_out
    params[f"fc{len(hidden) + 1}"] = linear_init(rng, d_in, classes, gain=1.0)
    return params, {}


def mlp_apply(
    params: Params,
    state: Params,
    x: Float[Tensor, " batch *shape"],
    *,
    train: bool,
    key: Int64[Tensor, ""] | None = None,
    layers: Count,
    dropout_p: Probability = 0.0,
) -> tuple[Float[Tensor, "batch classes"], Params]:
    """Return (logits, state) of flattened examples: `layers` linear layers, a relu and dropout after all but the last.

    >>> params, state = mlp_init(torch.Generator().manual_seed(0), 64, (128,), 10)
    >>> logits, _ = mlp_apply(params, state, torch.ones(2, 1, 8, 8), train=False, layers=2)
    >>> logits.shape
    torch.Size([2, 10])
    """
    require_held("mlp: layers", layers, count_entries(params, "fc"))
    x = flatten(x)
    for i in range(1, layers):
        x = linear(x, **params[f"fc{i}"])
        x = relu(x)
        x = dropout(x, dropout_p, train, key=fold_in(key, i) if dropout_p and key is not None else None)
    return linear(x, **params[f"fc{layers}"]), state


def two_layer_grads(params: Params, x: Float[Tensor, "batch d_in"], target: Int[Tensor, " batch"]) -> Params:
    """Return the gradients of the mean cross-entropy of fc2(relu(fc1(x))), derived by hand; read from the bottom up:

    L = -1/B Σ log softmax(a)[target]     ∂L/∂a = (softmax(a) - onehot) / B
    a = h W₂ᵀ + b₂                        ∂L/∂W₂ = (∂L/∂a)ᵀ h     ∂L/∂b₂ = Σ ∂L/∂a     ∂L/∂h = ∂L/∂a W₂
    h = max(z, 0)                         ∂L/∂z = ∂L/∂h where z > 0, else 0
    z = x W₁ᵀ + b₁                        ∂L/∂W₁ = (∂L/∂z)ᵀ x     ∂L/∂b₁ = Σ ∂L/∂z

    >>> params, _ = mlp_init(torch.Generator().manual_seed(0), 64, (32,), 10)
    >>> grads = two_layer_grads(params, torch.ones(2, 64), torch.tensor([3, 7]))
    >>> grads["fc1"]["weight"].shape
    torch.Size([32, 64])
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


def mlp(shape: Counts, classes: Count, *, hidden: Counts = (128,), dropout_p: Probability = 0.0) -> Model:
    """Return the model of examples of any shape, with a hidden layer for each width in `hidden`.

    >>> params, state = mlp((1, 8, 8), 10, hidden=(32, 16)).init(torch.Generator().manual_seed(0))
    >>> params.keys()
    dict_keys(['fc1', 'fc2', 'fc3'])
    """
    init = partial(mlp_init, d_in=math.prod(shape), hidden=hidden, classes=classes)
    return Model(init, partial(mlp_apply, layers=len(hidden) + 1, dropout_p=dropout_p))
