"""Gradients per example, their noise, and the curvature of a loss, by composing `grad`, `vmap` and `jvp`.

θ parameters, g gradient, H = ∇²f(θ) the Hessian, which is never formed.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.func import grad, jvp, vmap

from fn import tree
from fn.domains import Count
from fn.optim import global_norm
from fn.precision import common_dtype, upcast
from fn.rng import fold_in, uniform
from fn.tree import Params


def per_sample_grads(
    objective: Callable,
    params: Params,
    state: Params,
    x: Float[Tensor, " batch *shape"],
    y: Int[Tensor, " batch"],
) -> Params:
    """Return a gradient per example: every leaf of `params` with a leading axis `batch`.

    objective(params, state, x, y) -> (loss, (metrics, state)) is differentiated on batches of one. ValueError if it
    changes its state, as batch norm does in training: examples that share the statistics of a batch have no gradient
    of their own. Differentiate an objective that evaluates (train=False).

    >>> objective = lambda params, state, x, y: ((params["w"] * x - y).square().mean(), ({}, state))
    >>> per_sample_grads(objective, {"w": torch.tensor(1.0)}, {}, torch.tensor([1.0, 2.0]), torch.tensor([0, 0]))
    {'w': tensor([2., 8.])}
    """
    tree.require_leaves(params, "per_sample_grads: params")
    return vmap(grad(partial(_loss_of_one, objective)), in_dims=(None, None, 0, 0))(params, state, x, y)


def _loss_of_one(
    objective: Callable, params: Params, state: Params, x: Float[Tensor, "*shape"], y: Int[Tensor, ""]
) -> Float[Tensor, ""]:
    loss, (_, after) = objective(params, state, x.unsqueeze(0), y.unsqueeze(0))
    if any(new is not old for new, old in zip(tree.leaves(after), tree.leaves(state), strict=True)):
        raise ValueError(
            "per_sample_grads: the objective moves its state, as batch norm does in training; "
            "an example has a gradient of its own only where the model is evaluated (train=False)"
        )
    return loss


def gradient_noise_scale(grads: Params, *, whole: bool = False) -> Float[Tensor, ""]:
    """Return tr Σ / |G|², the batch size at which noise and gradient are equally long. McCandlish et al. 2018, eq. 2.9.

    `grads` are those of `per_sample_grads` on examples drawn independently. With ḡ their mean, n their number:
    tr Σ ≈ Σᵢ|gᵢ - ḡ|² / (n - 1), |G|² ≈ |ḡ|² - tr Σ / n, each without bias (appendix A.1); infinity where that leaves
    |G|² ≤ 0. If `grads` are the `whole` set that batches are drawn from, both are exact: n in place of n - 1, and |ḡ|².

    ValueError for fewer than two examples.

    >>> gradient_noise_scale({"w": torch.tensor([[1.0, 2.0], [3.0, 2.0]])})  # 2 / (8 - 2/2)
    tensor(0.2857)
    """
    tree.require_leaves(grads, "gradient_noise_scale: grads")
    n = len(tree.leaves(grads)[0])
    if n < 2:
        raise ValueError(f"gradient_noise_scale: {n} examples have no spread")
    dtype = common_dtype(tree.leaves(grads))
    grads = tree.map(upcast, grads)
    means = tree.map(lambda g: g.mean(dim=0), grads)
    squares = global_norm(means).square()
    deviations = global_norm(tree.map(torch.sub, grads, means)).square()
    if whole:
        return (deviations / n / squares).to(dtype)
    noise = deviations / (n - 1)
    return (noise / (squares - noise / n).clamp(min=0.0)).to(dtype)


def hvp(f: Callable, params: Params, v: Params) -> Params:
    """Return the Hessian-vector product H v = ∂/∂ε ∇f(θ + εv) at ε = 0. Pearlmutter 1994.

    Forward over reverse mode: it costs a few gradients. f(params) is a scalar; `v` has the structure and shapes of
    `params`, else `jvp` raises.

    >>> params, v = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.0, 1.0])}
    >>> hvp(lambda params: (params["w"] ** 3).sum(), params, v)  # H = diag(6w)
    {'w': tensor([ 6., 12.])}
    """
    tree.require_leaves(params, "hvp: params")
    with warnings.catch_warnings():  # the first jvp loads a part of torch that torch itself warns of
        warnings.filterwarnings("ignore", "`torch.jit.script` is", FutureWarning)
        return jvp(grad(f), (params,), (v,))[1]


def sharpness(f: Callable, params: Params, *, key: Int64[Tensor, ""], steps: Count = 20) -> Float[Tensor, ""]:
    """Return the largest eigenvalue of H, approximated from below. Lanczos 1950.

    It is that of Q H Qᵀ, Q an orthonormal basis of q, Hq, H²q, …, with q drawn under `key`. As many steps as parameters
    make it exact; an eigenvalue well above the rest takes a dozen. Gradient descent at rate η is stable on a quadratic
    up to a sharpness of 2/η: Cohen et al. 2021.

    NaN where f has diverged.

    >>> f = lambda params: (torch.tensor([1.0, 4.0]) * params["w"].square()).sum() / 2
    >>> sharpness(f, {"w": torch.ones(2)}, key=torch.tensor(0))
    tensor(4.)
    """
    tree.require_leaves(params, "sharpness: params")
    basis: list[Tensor] = []
    products: list[Tensor] = []
    for i in range(min(steps, tree.size(params))):
        fresh = (uniform(fold_in(key, i), (tree.size(params),)) - 0.5).to(tree.leaves(params)[0])
        q = _orthonormal(_restart(products[-1], fresh) if products else fresh, basis)
        basis.append(q)
        products.append(_to_vector(hvp(f, params, _like(params, q))))
    projected = torch.stack(basis) @ torch.stack(products).T
    sound = projected.isfinite().all()  # eigvalsh refuses a NaN, and under vmap all members with it
    return torch.where(sound, torch.linalg.eigvalsh(torch.where(sound, projected, 0.0))[-1], torch.nan)


def _restart(product: Float[Tensor, " size"], fresh: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
    """Add to the product a trace of a fresh direction: all that is left where H q lies in the basis already."""
    eps = torch.finfo(product.dtype).eps
    return product / (product.norm() + eps) + 10 * eps * fresh / fresh.norm()


def _orthonormal(q: Float[Tensor, " size"], basis: Sequence[Tensor]) -> Float[Tensor, " size"]:
    """Subtract from q its projection on the basis, normalize; twice, as the first pass leaves a rounding error."""
    for _ in range(2):
        if basis:
            rows = torch.stack(list(basis))
            q = q - (rows @ q) @ rows
        q = q / q.norm()
    return q


def _to_vector(params: Params) -> Float[Tensor, " size"]:
    return torch.cat([x.flatten() for x in tree.leaves(params)])


def _like(params: Params, vector: Float[Tensor, " size"]) -> Params:
    """Return the vector as a tree like `params`: the inverse of `_to_vector`."""
    parts = iter(vector.split([x.numel() for x in tree.leaves(params)]))
    return tree.map(lambda x: next(parts).reshape(x.shape), params)
