"""Lab 3's first tables: one query number by number, and each part of the transformer compared with torch's."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from experiments.shared import cli, show
from fn import tree
from fn.attention import multi_head_attention, scaled_dot_product_attention
from fn.attention_tiled import tiled_attention
from fn.gradcheck import largest, relative_error
from fn.layers import relu
from fn.models.transformer import encoder_init, encoder_layer
from fn.rng import generator
from fn.tree import Params

TILE = 64


def show_query(
    keys: Mapping[str, tuple[float, float]], products: Tensor, weights: Tensor, values: Tensor, answer: Tensor
) -> None:
    """Print a row per key: where it points, its product with the query, the scaled product, its weight, its value."""
    rows = [
        (name, f"{x:g}, {y:g}", f"{p:.1f}", f"{p / 2**0.5:.2f}", f"{w:.3f}", f"{v:g}")
        for (name, (x, y)), p, w, v in zip(keys.items(), products[0], weights[0], values[:, 0], strict=True)
    ]
    show.table(
        "One query, (1, 2), looks at four keys",
        ("key", "", "q · k", "/ √2", "softmax", "value"),
        [*rows, ("", "", "", "", "Σ weight · value", f"{answer.item():.3f}")],
    )


def compare_with_torch(config: cli.Config, device: torch.device) -> list[cli.Check]:
    """Compare outputs and gradients of our functions with those of torch on the same tensors."""
    ours_and_torchs = _attention(config) | _modules(config)
    rows, gaps = [], []
    for name, (ours, torchs, inputs) in ours_and_torchs.items():
        inputs = tree.to(inputs, device)
        (grads, y), (grads_, y_) = (grad(partial(_weighted, f), has_aux=True)(inputs) for f in (ours, torchs))
        gaps.append((relative_error({"y": y}, {"y": y_}), relative_error(grads, grads_)))
        rows.append((name, *(f"{gap:.1e}" for gap in gaps[-1])))
    show.table("Beside torch's own, relative gaps in float32", ("", "output", "gradients"), rows)

    outputs, gradients = zip(*gaps, strict=True)
    return [
        cli.check("beside torch: largest relative gap of outputs", largest(outputs), "<=", 1e-5),
        cli.check("beside torch: largest relative gap of gradients", largest(gradients), "<=", 1e-5),
    ]


def _weighted(f: Callable, inputs: Params) -> tuple[Tensor, Tensor]:
    """Return (a scalar to differentiate, the output): a weighted sum, as a plain one hides some wrong gradients."""
    y = f(inputs)
    return (y * torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape)).sum(), y


def _attention(config: cli.Config) -> dict[str, tuple[Callable, Callable, Params]]:
    rng = generator(config.seed)
    inputs = {name: torch.randn(1, 4, 200, 32, generator=rng) for name in ("query", "key", "value")}
    plain = lambda inputs: scaled_dot_product_attention(**inputs, is_causal=True)  # noqa: E731
    tiled = lambda inputs: tiled_attention(**inputs, is_causal=True, block_size=TILE)  # noqa: E731
    torchs: Any = lambda inputs: F.scaled_dot_product_attention(**inputs, is_causal=True)  # noqa: E731
    ways = {"scaled_dot_product_attention": plain, f"the same in tiles of {TILE}": tiled}
    return {name: (ours, torchs, inputs) for name, ours in ways.items()}


def _modules(config: cli.Config) -> dict[str, tuple[Callable, Callable, Params]]:
    """Return our parameters in torch's modules, which have none of their own."""
    rng, options = generator(config.seed), {"dropout": 0.0, "batch_first": True, "device": "meta"}
    layer = encoder_init(rng, d_model=64, layers=1, heads=4, d_ff=128)["layers"]["0"]
    inputs = {"params": layer, "x": torch.randn(3, 20, 64, generator=rng)}
    attention = inputs | {"params": layer["self_attn"]}

    heads = nn.MultiheadAttention(64, 4, **options)
    cases: dict[str, tuple[Callable, Callable, Params]] = {
        "multi_head_attention": (
            lambda i: multi_head_attention(i["x"], i["x"], i["x"], 4, **i["params"])[0],
            lambda i: functional_call(heads, tree.flatten(i["params"]), (i["x"],) * 3)[0],
            attention,
        )
    }
    for name, norm_first in {"encoder_layer, pre-norm": True, "encoder_layer, post-norm": False}.items():
        module = nn.TransformerEncoderLayer(64, 4, 128, norm_first=norm_first, **options)
        cases[name] = (
            lambda i, first=norm_first: encoder_layer(
                i["x"], **i["params"], heads=4, activation=relu, norm_first=first
            )[0],
            lambda i, module=module: functional_call(module, tree.flatten(i["params"]), i["x"]),
            inputs,
        )
    return cases
