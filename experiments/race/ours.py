"""Our record: one epoch of a small CNN, its kernels by Muon, the whole step compiled.

What makes it fast: the border is cut off, as digits fill the middle; 2×2 pixels become 4 channels at once, so the
widest maps have 10×10 positions; no padding; batches of 256; one compiled step that reuses its memory. What makes one
epoch enough: batch norm, one cycle of the rate, label smoothing, and Muon, whose steps turn all directions of a kernel
alike.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from fn import tree
from fn.conv import conv2d, conv2d_init, max_pool2d
from fn.data.datasets import Split
from fn.data.loader import batches
from fn.jit import jit
from fn.layers import batch_norm, batch_norm_init, flatten, linear, linear_init, relu
from fn.models import Model
from fn.optim import Optimizer, adam_init, adam_update, sgd_init
from fn.train import classifier_step, init_train_state, run_key
from fn.tree import Params

BATCH, LR, KERNEL_LR, SMOOTHING = 256, 0.01, 0.14, 0.1
BORDER = 2
"""pixels that are cut off on every side"""
WIDTHS = (16, 32, 64)
KERNELS = ("conv1", "conv2", "conv3")


def init(rng: torch.Generator) -> tuple[Params, Params]:
    """Draw the parameters for images of 28×28: three convolutions with batch norm, a linear layer."""
    channels = (4, *WIDTHS)
    params = {name: conv2d_init(rng, channels[i], channels[i + 1], 3, bias=False) for i, name in enumerate(KERNELS)}
    state: Params = {}
    for i, width in enumerate(WIDTHS, start=1):
        params[f"bn{i}"], state[f"bn{i}"] = batch_norm_init(width)
    params["fc"] = linear_init(rng, WIDTHS[-1] * 2 * 2, 10, gain=1.0)
    return params, state


def apply(
    params: Params, state: Params, x: Float[Tensor, "batch 1 28 28"], *, train: bool, key: Tensor | None = None
) -> tuple[Float[Tensor, "batch 10"], Params]:
    """Return (logits, new state)."""
    x = x[..., BORDER:-BORDER, BORDER:-BORDER]
    x = rearrange(x, "b 1 (h p) (w q) -> b (p q) h w", p=2, q=2)
    new_state: Params = {}
    for i in (1, 2, 3):
        x = conv2d(x, **params[f"conv{i}"])  # 12×12 -> 10×10 -> 8×8, pooled to 4×4, -> 2×2
        x = max_pool2d(x, 2) if i == 2 else x
        x, new_state[f"bn{i}"] = batch_norm(x, **params[f"bn{i}"], **state[f"bn{i}"], training=train)
        x = relu(x)
    return linear(flatten(x), **params["fc"]), new_state


def orthogonalize(g: Float[Tensor, "out channels height width"]) -> Float[Tensor, "out channels height width"]:
    """Return nearly U Vᵀ of g = U Σ Vᵀ, a row per output: every singular value becomes about 1, by five products.

    X ← aX + b(XXᵀ)X + c(XXᵀ)²X, from X = g / ‖g‖. Jordan et al. 2024.
    """
    x = rearrange(g, "out channels h w -> out (channels h w)")
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        square = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).reshape(g.shape)


def muon_update(
    params: Params, grads: Params, state: Params, *, lr: Float[Tensor, ""], momentum: float = 0.9
) -> tuple[Params, Params]:
    """Update by Muon: v ← μv + g,  θ ← θ - η · orthogonalize(g + μv)"""
    velocity = tree.map(lambda v, g: momentum * v + g, state["velocity"], grads)
    params = tree.map(lambda p, g, v: p - lr * orthogonalize(g + momentum * v), params, grads, velocity)
    return params, {"step": state["step"] + 1, "velocity": velocity}


def optimizer_init(params: Params) -> Params:
    kernels, rest = tree.split(params, KERNELS)
    adam = adam_init(rest)
    return {"step": adam["step"].clone(), "kernels": sgd_init(kernels), "rest": adam}


def triangle(step: Int[Tensor, ""], steps: int) -> Float[Tensor, ""]:
    """Return a rate that rises to 1 within a fifth of the steps and falls to 0, along straight lines."""
    return torch.minimum((step + 1) / (0.2 * steps), (steps - step) / (0.8 * steps))


def optimizer_update(params: Params, grads: Params, state: Params, *, steps: int) -> tuple[Params, Params]:
    """Update the kernels by Muon and the rest by Adam, both along the triangle."""
    (kernels, rest), (kernel_grads, rest_grads) = (tree.split(part, KERNELS) for part in (params, grads))
    cycle = triangle(state["step"], steps)
    kernels, of_kernels = muon_update(kernels, kernel_grads, state["kernels"], lr=KERNEL_LR * cycle)
    rest, of_rest = adam_update(rest, rest_grads, state["rest"], lr=LR * cycle, betas=(0.9, 0.99))
    return tree.merge(kernels, rest), {"step": state["step"] + 1, "kernels": of_kernels, "rest": of_rest}


model = Model(init, apply)


@cache
def prepared(steps: int, compiled: bool) -> tuple[Optimizer, Callable[..., Any]]:
    """Return the optimizer and the step of a training of so many steps; the next seed finds the step compiled."""
    optimizer = Optimizer(optimizer_init, partial(optimizer_update, steps=steps))
    step = classifier_step(model, optimizer, label_smoothing=SMOOTHING)
    return optimizer, jit(step, donate=True) if compiled else step


def train(split: Split, seed: int, *, compiled: bool = True) -> Callable[[Tensor], Tensor]:
    """Train for one epoch, and return predict(images) -> logits. A last batch that is not whole is left out."""
    steps = len(split.labels) // BATCH
    optimizer, step = prepared(steps, compiled)
    ts, key = init_train_state(model, optimizer, seed=seed, device=split.images.device), run_key(seed)
    whole = (batch for batch in batches(split, BATCH, seed=seed) if len(batch[1]) == BATCH)
    for x, y in whole:
        ts, _ = step(ts, x, y, key=key)
    return lambda images: apply(ts.params, ts.state, images, train=False)[0]
