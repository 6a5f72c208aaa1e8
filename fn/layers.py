"""Layers that act on features: linear, embedding, activations, dropout and norms, each `*_init` beside its op.

Names and argument order are those of torch.nn.functional. A layer's parameters are splatted in,
`linear(x, **params["fc1"])`, so that they are shape-checked with the input.

A decorator above an op is about fp16 and bf16 alone (fn.precision): with @halves_by(kernel) torch's own kernel computes
the op for such tensors; with @half_in_float32 ours computes it in float32 and rounds the result.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int, Int64
from torch import Tensor

from fn.domains import Count, Finite, Integer, Magnitude, Naturals, NonNegative, Probability
from fn.indices import require_indices
from fn.initializers import RELU_GAIN, kaiming_uniform
from fn.precision import half_in_float32, halves_by, norm_in_float32
from fn.rng import uniform
from fn.tree import Params


@halves_by(F.linear)
def linear(
    x: Float[Tensor, "*batch d_in"],
    weight: Float[Tensor, "d_out d_in"] | Float[Tensor, " d_in"],
    bias: Float[Tensor, " d_out"] | None = None,
) -> Float[Tensor, "*batch d_out"] | Float[Tensor, "*batch"]:
    """Apply an affine map: y = x Wᵀ + b. A vector for W gives a number per row, and takes no bias.

    >>> x, weight, bias = torch.ones(4, 3), torch.ones(2, 3), torch.tensor([0.0, 1.0])
    >>> linear(x, weight, bias).shape
    torch.Size([4, 2])
    >>> linear(x, weight, bias)[0]
    tensor([3., 4.])
    """
    if weight.ndim == 1 and bias is not None:
        raise ValueError("linear: a weight that is a vector takes no bias")
    y = x @ weight.t()  # einsum would make it a batch of one product, 9 % more of a small step
    return y if bias is None else y + bias


def linear_init(rng: torch.Generator, d_in: Count, d_out: Count, *, gain: Magnitude = RELU_GAIN) -> Params:
    """Draw a Kaiming-uniform weight; the bias is zero. `gain` is √2 before a ReLU and 1 where no activation follows.

    >>> params = linear_init(torch.Generator().manual_seed(0), d_in=3, d_out=2)
    >>> params["weight"].shape, params["bias"]
    (torch.Size([2, 3]), tensor([0., 0.]))
    """
    return {"weight": kaiming_uniform(rng, (d_out, d_in), gain=gain), "bias": torch.zeros(d_out)}


@half_in_float32("weight")
def embedding(
    x: Int[Tensor, "*batch"], weight: Float[Tensor, "num_embeddings d_model"], padding_idx: Integer | None = None
) -> Float[Tensor, "*batch d_model"]:
    """Look up a row of the table per index: y = W[x]. The row `padding_idx` gets no gradient; -1 is the last row.

    ValueError for an index or a `padding_idx` that is no row.

    >>> table = torch.tensor([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0]])
    >>> embedding(torch.tensor([2, 1]), table)
    tensor([[ 2., 20.],
            [ 1., 10.]])
    """
    rows = len(weight)
    x = require_indices(x, rows, "embedding: x")
    if padding_idx is None:
        return weight[x]
    if not -rows <= padding_idx < rows:
        raise ValueError(f"embedding: padding_idx {padding_idx} is none of {rows} rows")
    return torch.where((x == padding_idx % rows).unsqueeze(-1), weight.detach()[x], weight[x])


def embedding_init(rng: torch.Generator, num_embeddings: Count, d_model: Count, *, std: Magnitude = 1.0) -> Params:
    """Draw an embedding table from N(0, std²).

    >>> embedding_init(torch.Generator().manual_seed(0), num_embeddings=100, d_model=16)["weight"].shape
    torch.Size([100, 16])
    """
    return {"weight": torch.randn(num_embeddings, d_model, generator=rng) * std}


def flatten(x: Float[Tensor, " batch *shape"]) -> Float[Tensor, "batch d_out"]:
    """Flatten each example to one row, as torch.flatten with start_dim=1.

    >>> flatten(torch.zeros(8, 3, 32, 32)).shape
    torch.Size([8, 3072])
    """
    return rearrange(x, "batch ... -> batch (...)")


def relu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return max(x, 0). The derivative at 0 is 0; NaN stays NaN.

    >>> relu(torch.tensor([-1.0, 0.0, 2.0]))
    tensor([0., 0., 2.])
    """
    return torch.where(x <= 0, 0.0, x)


@half_in_float32("x")
def gelu(x: Float[Tensor, "*shape"], approximate: Literal["none", "tanh"] = "none") -> Float[Tensor, "*shape"]:
    """Return x Φ(x), Φ the distribution function of the standard normal. Hendrycks and Gimpel 2016.

    "tanh" approximates it: x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).

    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1587,  0.0000,  0.8413])
    """
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@half_in_float32("x")
def softmax(x: Float[Tensor, "*shape"], dim: Integer, *, dtype: torch.dtype | None = None) -> Float[Tensor, "*shape"]:
    """Return exp(x) / Σ exp(x) along `dim`. The maximum is subtracted first, so that exp cannot overflow.

    `dtype` is that of the sum and of the result, if not x's. A row with NaN or +∞ in it, or of -∞ alone, is all NaN.

    >>> softmax(torch.tensor([[0.0, 0.0], [1000.0, 0.0]]), dim=-1)
    tensor([[0.5000, 0.5000],
            [1.0000, 0.0000]])
    """
    x = x.to(dtype=dtype)
    e = torch.exp(x - _maximum(x, dim))
    return e / e.sum(dim, keepdim=True)


@half_in_float32("x")
def log_softmax(
    x: Float[Tensor, "*shape"], dim: Integer, *, dtype: torch.dtype | None = None
) -> Float[Tensor, "*shape"]:
    """Return x - log Σ exp(x) along `dim`. The log of a softmax would underflow to log 0 instead.

    `dtype` is that of the sum and of the result, if not x's.

    >>> log_softmax(torch.tensor([0.0, 0.0]), dim=0)
    tensor([-0.6931, -0.6931])
    >>> log_softmax(torch.tensor([200.0, 0.0]), dim=0)  # exp(-200) is 0 in float32
    tensor([   0., -200.])
    """
    x = x.to(dtype=dtype)
    shifted = x - _maximum(x, dim)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


def _maximum(x: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "..."]:
    """Return the maximum along `dim`, a constant of the gradient; of no numbers, which have none, the numbers."""
    axes = max(x.ndim, 1)  # a number has one, as in torch
    if not -axes <= dim < axes:
        raise ValueError(f"dim {dim} is none of {x.ndim} axes")
    return x.detach().amax(dim, keepdim=True) if x.numel() else x


def dropout(
    x: Float[Tensor, "*shape"], p: Probability = 0.5, training: bool = True, *, key: Int64[Tensor, ""] | None = None
) -> Float[Tensor, "*shape"]:
    """Zero each entry with probability p and scale the others by 1 / (1 - p); the identity unless training.

    y = x · m / (1 - p), m ~ Bernoulli(1 - p), so that E[y] = x. Srivastava et al. 2014. The mask is a function of `key`
    (see fn.rng): the same key drops the same entries. ValueError without a key where entries are to be dropped.

    >>> dropout(torch.ones(6), p=0.5, key=torch.tensor(0))
    tensor([2., 0., 0., 2., 0., 0.])
    >>> dropout(torch.ones(6), p=0.5, training=False)
    tensor([1., 1., 1., 1., 1., 1.])
    """
    if not training or p == 0:
        return x
    if key is None:
        raise ValueError("dropout: training needs a key; derive one from the step, fn.rng.key(seed, step)")
    keep = uniform(key, x.shape) >= p
    return x * keep * (1 / (1 - p) if p < 1 else 0.0)


@half_in_float32("x")
def layer_norm(
    x: Float[Tensor, "*shape"],
    normalized_shape: Naturals,
    weight: Float[Tensor, "*normalized_shape"] | None = None,
    bias: Float[Tensor, "*normalized_shape"] | None = None,
    eps: NonNegative = 1e-5,
) -> Float[Tensor, "*shape"]:
    """Normalize over the last axes, those of `normalized_shape`: (x - E[x]) / √(Var[x] + ε) · w + b.

    Var is the biased variance. Ba, Kiros and Hinton 2016. ValueError if `x`, `weight` or `bias` does not end in
    `normalized_shape`.

    >>> layer_norm(torch.tensor([[1.0, 3.0], [10.0, 30.0]]), [2])
    tensor([[-1.0000,  1.0000],
            [-1.0000,  1.0000]])
    """
    _require_ends({"x": x, "weight": weight, "bias": bias}, tuple(normalized_shape))
    axes = tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _require_ends(tensors: dict[str, Tensor | None], ends: tuple[int, ...]) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tuple(tensor.shape[-len(ends) :]) != ends:
            raise ValueError(f"layer_norm: {name} has shape {tuple(tensor.shape)}, normalized_shape is {ends}")


def layer_norm_init(normalized_shape: Naturals) -> Params:
    """Return weight 1 and bias 0: normalization alone.

    >>> layer_norm_init([2])
    {'weight': tensor([1., 1.]), 'bias': tensor([0., 0.])}
    """
    return {"weight": torch.ones(tuple(normalized_shape)), "bias": torch.zeros(tuple(normalized_shape))}


@norm_in_float32
def batch_norm(
    x: Float[Tensor, "batch channels *positions"],
    running_mean: Float[Tensor, " channels"],
    running_var: Float[Tensor, " channels"],
    weight: Float[Tensor, " channels"] | None = None,
    bias: Float[Tensor, " channels"] | None = None,
    training: bool | Callable = False,
    momentum: Finite = 0.1,
    eps: NonNegative = 1e-5,
) -> tuple[Float[Tensor, "batch channels *positions"], Params]:
    """Return ((x - μ) / √(σ² + ε) · w + b, the new running statistics), normalized per channel. Ioffe and Szegedy 2015.

    Training takes μ and the biased σ² from the batch, and moves the running ones towards μ and the *unbiased* σ²:
    r ← (1 - momentum) r + momentum · s. Evaluation takes the running ones and returns them unchanged. Works on
    (batch, channels), sequences and images. An empty batch moves nothing. ValueError when training on one value per
    channel. In place of True, `training` may be a function like `moments`, of a batch that is cut over processes
    (fn.distributed).

    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    >>> y, state = batch_norm(x, torch.zeros(2), torch.ones(2), training=True)
    >>> y[0], state["running_mean"]
    (tensor([-1.0000, -1.0000]), tensor([0.2000, 2.0000]))
    """
    mean, var = running_mean, running_var
    if training and x.numel():
        mean, var, count = moments(x) if training is True else training(x)
        unbiased = var.detach() * (count / (count - 1))
        running_mean = (1 - momentum) * running_mean + momentum * mean.detach()
        running_var = (1 - momentum) * running_var + momentum * unbiased
    scale = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
    per_channel = "channels -> channels" + " 1" * (x.ndim - 2)
    y = (x - rearrange(mean, per_channel)) * rearrange(scale, per_channel)
    y = y if bias is None else y + rearrange(bias, per_channel)
    return y, {"running_mean": running_mean, "running_var": running_var}


def moments(
    x: Float[Tensor, "batch channels *positions"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"], int]:
    """Return the mean and the biased variance of each channel, and of how many values; ValueError for a single one.

    >>> moments(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    (tensor([ 2., 20.]), tensor([  1., 100.]), 2)
    """
    count = x.numel() // x.shape[1]
    if count < 2:
        raise ValueError(f"batch_norm: training needs more than one value per channel, x has shape {tuple(x.shape)}")
    var, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
    return mean, var, count


def batch_norm_init(channels: Count) -> tuple[Params, Params]:
    """Return (params, state): weight 1 and bias 0; running mean 0 and variance 1.

    >>> params, state = batch_norm_init(2)
    >>> state
    {'running_mean': tensor([0., 0.]), 'running_var': tensor([1., 1.])}
    """
    params = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
    return params, {"running_mean": torch.zeros(channels), "running_var": torch.ones(channels)}


def norm_modes(state: Params, train: bool | Callable) -> Params:
    """Return a tree with one `training` per batch norm, whether it trains: here the same for all.

    A branch with a `running_mean` is a batch norm; other tensors of a state are passed over. With frozen layers
    (fn.transfer) they differ.

    >>> state = {"bn1": batch_norm_init(4)[1], "layer1": {"bn": batch_norm_init(8)[1]}}
    >>> norm_modes(state, train=True)
    {'bn1': True, 'layer1': {'bn': True}}
    """
    branches = {name: branch for name, branch in state.items() if isinstance(branch, dict)}
    return {name: train if "running_mean" in b else norm_modes(b, train) for name, b in branches.items()}
