"""nanoGPT's recipe for a CPU, four ways: a causal transformer of 4 layers and 4 heads that reads 64 of 65 characters.

The last layer is the embedding again, in all of them. Ours and nn.Module's share torch's attention kernel.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.bench.equinox_models import filled
from fn.attention import native_attention
from fn.models import Model
from fn.models.transformer import transformer
from fn.rng import generator
from fn.tree import Params

CLASSES, SEQ, LAYERS, HEADS = 65, 64, 4, 4


def model(shape: Sequence[int], classes: int, *, d_model: Sequence[int]) -> Model:
    [width] = d_model
    return transformer(shape, classes, d_model=width, layers=LAYERS, heads=HEADS, attention=native_attention)


def random_text(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(CLASSES, (batch, SEQ + 1), generator=generator(seed))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


class Attention(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.self_attn = Attention(d_model)
        self.linear1, self.linear2 = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, d_model: int, seq: int = SEQ) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(CLASSES, d_model), nn.Embedding(seq, d_model)
        layers = nn.ModuleList(Block(d_model) for _ in range(LAYERS))
        self.encoder = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(d_model)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.positions.weight[: x.shape[1]]
        for layer in self.encoder["layers"]:  # pyright: ignore
            h = layer(h)
        return F.linear(self.encoder["norm"](h), self.embedding.weight).mT


def module(params: Params) -> nn.Module:
    return GPT(params["embedding"]["weight"].shape[1])


def jax_apply(params: dict, state: dict, x: Any) -> tuple[Any, dict]:
    """Return the logits. Matrices are (d_in, d_out), and so the embedding is (d_model, classes)."""
    import jax

    h = params["embedding"]["weight"].T[x] + params["positions"]["weight"].T[: x.shape[1]]
    for i in range(LAYERS):
        p = params["encoder"]["layers"][str(i)]
        attn = p["self_attn"]
        projected = _jax_norm(h, p["norm1"]) @ attn["in_proj_weight"] + attn["in_proj_bias"]
        h = h + _jax_attention(projected) @ attn["out_proj"]["weight"] + attn["out_proj"]["bias"]
        hidden = jax.nn.gelu(
            _jax_norm(h, p["norm2"]) @ p["linear1"]["weight"] + p["linear1"]["bias"], approximate=False
        )
        h = h + hidden @ p["linear2"]["weight"] + p["linear2"]["bias"]
    return _jax_norm(h, params["encoder"]["norm"]) @ params["embedding"]["weight"], state


def _jax_norm(x: Any, params: dict) -> Any:
    import jax

    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * params["weight"] + params[
        "bias"
    ]


def _jax_attention(projected: Any) -> Any:
    """Return the causal attention of queries, keys and values side by side; with or without a batch."""
    import jax
    import jax.numpy as jnp

    q, k, v = (part.reshape(*part.shape[:-1], HEADS, -1) for part in jnp.split(projected, 3, axis=-1))
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k) / q.shape[-1] ** 0.5
    scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
    y = jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), v)
    return y.reshape(*y.shape[:-2], -1)


def equinox_layers(params: Params) -> list[Any]:
    import equinox as eqx
    import jax

    key = jax.random.key(0)

    def linear(tensors: dict[str, Any]) -> Any:
        d_out, d_in = tensors["weight"].shape
        return filled(eqx.nn.Linear(d_in, d_out, key=key), tensors)

    def norm(tensors: dict[str, Any]) -> Any:
        return filled(eqx.nn.LayerNorm(tensors["weight"].size), tensors)

    class EquinoxBlock(eqx.Module):
        in_proj: Any
        out_proj: Any
        linear1: Any
        linear2: Any
        norm1: Any
        norm2: Any

        def __init__(self, p: Params) -> None:
            attn = p["self_attn"]
            self.in_proj = linear({"weight": attn["in_proj_weight"], "bias": attn["in_proj_bias"]})
            self.out_proj, self.linear1, self.linear2 = map(linear, (attn["out_proj"], p["linear1"], p["linear2"]))
            self.norm1, self.norm2 = norm(p["norm1"]), norm(p["norm2"])

        def __call__(self, x: Any) -> Any:
            projected = jax.vmap(lambda row: self.in_proj(self.norm1(row)))(x)
            x = x + jax.vmap(self.out_proj)(_jax_attention(projected))
            widened = jax.vmap(lambda row: self.linear1(self.norm2(row)))(x)
            return x + jax.vmap(self.linear2)(jax.nn.gelu(widened, approximate=False))

    class EquinoxGPT(eqx.Module):
        embedding: Any
        positions: Any
        layers: list
        norm: Any

        def __init__(self, params: Params) -> None:
            self.embedding, self.positions = (
                eqx.nn.Embedding(weight=params[n]["weight"]) for n in ("embedding", "positions")
            )
            self.layers = [EquinoxBlock(params["encoder"]["layers"][str(i)]) for i in range(LAYERS)]
            self.norm = norm(params["encoder"]["norm"])

        def __call__(self, x: Any, *, key: Any = None) -> Any:
            h = jax.vmap(self.embedding)(x) + self.positions.weight[: len(x)]
            for layer in self.layers:
                h = layer(h)
            return jax.vmap(self.norm)(h) @ self.embedding.weight.T

    return [EquinoxGPT(params)]
