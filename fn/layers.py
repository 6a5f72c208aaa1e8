"""The layers of an MLP: each op in the names and order of torch.nn.functional, its `*_init` beside it.

A layer's parameters are splatted in, `linear(x, **params["fc1"])`, so that they are shape-checked with the input.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int, Int64
from torch import Tensor

from fn.initializers import RELU_GAIN, kaiming_uniform
from fn.rng import uniform
from fn.tree import Params


def linear(
    x: Float[Tensor, "*batch d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None = None
) -> Float[Tensor, "*batch d_out"]:
    """y = x Wᵀ + b"""
    y = x @ weight.T  # einsum would make it a batch of one product, 9 % more of a small step
    return y if bias is None else y + bias


def linear_init(rng: torch.Generator, d_in: int, d_out: int, *, gain: float = RELU_GAIN) -> Params:
    """Kaiming-uniform weight, zero bias. `gain` is √2 before a ReLU and 1 before nothing."""
    return {"weight": kaiming_uniform(rng, (d_out, d_in), gain=gain), "bias": torch.zeros(d_out)}


def embedding(
    x: Int[Tensor, "*batch"], weight: Float[Tensor, "num_embeddings d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """y = W[x], a row per index"""
    return weight[x]


def embedding_init(rng: torch.Generator, num_embeddings: int, d_model: int, *, std: float = 1.0) -> Params:
    """N(0, std²)"""
    return {"weight": torch.randn(num_embeddings, d_model, generator=rng) * std}


def flatten(x: Float[Tensor, " batch *shape"]) -> Float[Tensor, "batch d_out"]:
    """One row per example; torch.flatten with start_dim=1"""
    return rearrange(x, "batch ... -> batch (...)")


def relu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """max(x, 0), with derivative 0 at 0; NaN stays NaN"""
    return torch.where(x <= 0, 0.0, x)


def gelu(x: Float[Tensor, "*shape"], approximate: Literal["none", "tanh"] = "none") -> Float[Tensor, "*shape"]:
    """x Φ(x), Φ the normal distribution function. Hendrycks and Gimpel 2016."""
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def softmax(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """exp(x) / Σ exp(x) along `dim`, shifted by the maximum so that exp cannot overflow"""
    e = torch.exp(x - x.detach().amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


def log_softmax(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """x - log Σ exp(x) along `dim`; never the log of a softmax, which underflows to log 0"""
    shifted = x - x.detach().amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def dropout(
    x: Float[Tensor, "*shape"], p: float = 0.5, training: bool = True, *, key: Int64[Tensor, ""] | None = None
) -> Float[Tensor, "*shape"]:
    """x · m / (1 - p), m ~ Bernoulli(1 - p), so that E[y] = x; the identity unless training. Srivastava et al. 2014.

    The mask is a function of `key` (see fn.rng): the same key drops the same entries. ValueError if it is
    missing where entries are to be dropped, and for a p that is no probability.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p is a probability, not {p}")
    if not training or p == 0:
        return x
    if key is None:
        raise ValueError("dropout: training needs a key; derive one from the step, fn.rng.key(seed, step)")
    keep = uniform(key, x.shape) >= p
    return x * keep * (1 / (1 - p) if p < 1 else 0.0)


def layer_norm(
    x: Float[Tensor, "*shape"],
    normalized_shape: Sequence[int],
    weight: Float[Tensor, "*normalized_shape"] | None = None,
    bias: Float[Tensor, "*normalized_shape"] | None = None,
    eps: float = 1e-5,
) -> Float[Tensor, "*shape"]:
    """(x - E[x]) / √(Var[x] + ε) · w + b over the last axes, those of `normalized_shape`; Var is the biased one.

    Ba, Kiros and Hinton 2016. ValueError if `x` or `weight` does not end in `normalized_shape`.
    """
    ends = tuple(normalized_shape)
    for name, tensor in {"x": x, "weight": weight, "bias": bias}.items():
        if tensor is not None and tuple(tensor.shape[-len(ends) :]) != ends:
            raise ValueError(f"layer_norm: {name} has shape {tuple(tensor.shape)}, normalized_shape is {ends}")
    axes = tuple(range(-len(ends), 0))
    centred = x - x.mean(axes, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def layer_norm_init(normalized_shape: Sequence[int]) -> Params:
    return {"weight": torch.ones(*normalized_shape), "bias": torch.zeros(*normalized_shape)}


def batch_norm(
    x: Float[Tensor, "batch channels *positions"],
    running_mean: Float[Tensor, " channels"],
    running_var: Float[Tensor, " channels"],
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "batch channels *positions"], Params]:
    """((x - μ) / √(σ² + ε) · w + b, new running statistics); Ioffe and Szegedy 2015.

    Training takes μ and the biased σ² from the batch, and moves the running ones towards μ and the *unbiased* σ²:
    r ← (1 - momentum) r + momentum · s. Otherwise μ and σ² are the running ones, which are returned as they came.
    One function for (batch, channels), sequences and images. ValueError when training on one value per channel.
    """
    statistics = {"running_mean": running_mean, "running_var": running_var}
    mean, var = running_mean, running_var
    if training:
        count = x.numel() // x.shape[1]
        if count < 2:
            raise ValueError(
                f"batch_norm: training needs more than one value per channel, x has shape {tuple(x.shape)}"
            )
        axes = [0, *range(2, x.ndim)]
        var, mean = torch.var_mean(x, axes, correction=0)
        batch_statistics = {"running_mean": mean.detach(), "running_var": var.detach() * (count / (count - 1))}
        statistics = {k: (1 - momentum) * statistics[k] + momentum * batch_statistics[k] for k in statistics}
    scale = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
    per_channel = "channels -> channels" + " 1" * (x.ndim - 2)
    y = (x - rearrange(mean, per_channel)) * rearrange(scale, per_channel)
    return (y if bias is None else y + rearrange(bias, per_channel)), statistics


def batch_norm_init(channels: int) -> tuple[Params, Params]:
    """(params, state): weight 1 and bias 0; running mean 0 and variance 1"""
    params = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
    return params, {"running_mean": torch.zeros(channels), "running_var": torch.ones(channels)}


def norm_modes(state: Params, train: bool) -> Params:
    """A bool in place of each batch norm's statistics: whether it trains. Here all alike; with `fn.transfer` not."""
    return {name: train if "running_mean" in branch else norm_modes(branch, train) for name, branch in state.items()}
