"""Randomness as an argument, in two forms; neither touches torch's global generator.

`generator(seed, …)` is for what happens once, on the host: initial weights, the order of an epoch.
A *key*, an int64 scalar tensor, is for draws inside a step: `uniform(key, shape)` is arithmetic on the key, so it
works under `grad`, `vmap` and `torch.compile`, and gives the same bits on every device. One key, one draw: derive
the next with `fold_in`.

The stream is SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift_right(z: Int64[Tensor, "*shape"], bits: int) -> Int64[Tensor, "*shape"]:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _stream(key: Int64[Tensor, ""], index: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """Word `index` of the SplitMix64 stream that starts at `key`, counted from 0; int64 arithmetic wraps."""
    z = key + _GAMMA * (index + 1)
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def key(seed: int, *path: int) -> Int64[Tensor, ""]:
    """A key from a seed, then `fold_in` along `path`: `key(seed, epoch, step)`."""
    k = torch.tensor(seed, dtype=torch.int64)
    for data in path:
        k = fold_in(k, data)
    return k


def fold_in(key: Int64[Tensor, ""], data: int | Int64[Tensor, ""]) -> Int64[Tensor, ""]:
    """The key of child number `data`: a step, a layer, a model of an ensemble."""
    return _stream(key, torch.as_tensor(data, dtype=torch.int64, device=key.device))


def uniform(key: Int64[Tensor, ""], shape: Sequence[int]) -> Float32[Tensor, "..."]:
    """U[0, 1) from the top 24 bits of each word of the key's stream."""
    index = torch.arange(torch.Size(shape).numel(), device=key.device)
    return _shift_right(_stream(key, index), 40).reshape(tuple(shape)) * 2.0**-24


def generator(seed: int, *path: int) -> torch.Generator:
    """A fresh CPU generator, a function of its arguments alone: `generator(seed, epoch)`."""
    return torch.Generator().manual_seed(int(key(seed, *path)))
