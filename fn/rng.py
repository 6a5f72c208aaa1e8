"""Randomness as an argument, in two forms; neither touches torch's global generator.

`generator(seed, …)` is for what happens once, on the host: initial weights, the order of an epoch.
A *key*, an int64 scalar tensor, is for draws inside a step: `uniform(key, shape)` is arithmetic on the key, so it
works under `grad`, `vmap` and `torch.compile`, and gives the same bits on every device. One key, one draw: derive
the next with `fold_in`. As nothing is drawn from a stream that moves on, whatever happens at (epoch, batch) happens
alike in any process, after any interruption.

The stream is SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy
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


def _stream(key: Int64[Tensor, "..."], index: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """Word `index` of the SplitMix64 stream that starts at `key`, counted from 0; int64 arithmetic wraps."""
    z = key - _GAMMA * ~index  # index + 1, in bits: TorchInductor takes sums of indices for numbers that do not wrap
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def key(seed: int, *path: int) -> Int64[Tensor, ""]:
    """A key from a seed, then `fold_in` along `path`: `key(seed, epoch, step)`."""
    k = torch.tensor(seed, dtype=torch.int64)
    for data in path:
        k = fold_in(k, data)
    return k


def fold_in(key: Int64[Tensor, "*keys"], data: int | Int64[Tensor, "*keys"]) -> Int64[Tensor, "*keys"]:
    """The key of child number `data`: a step, a layer, an example, a model of an ensemble."""
    return _stream(key, torch.as_tensor(data, dtype=torch.int64, device=key.device))


def uniform(key: Int64[Tensor, "*keys"], shape: Sequence[int]) -> Float32[Tensor, "..."]:
    """U[0, 1) from the top 24 bits of each word of the key's stream; of many keys, a row of `shape` each."""
    shape = torch.Size(shape)
    index = torch.arange(shape.numel(), device=key.device)
    return _shift_right(_stream(key.unsqueeze(-1), index), 40).reshape((*key.shape, *shape)) * 2.0**-24


def randint(key: Int64[Tensor, "*keys"], low: int, high: int, shape: Sequence[int]) -> Int64[Tensor, "..."]:
    """Whole numbers from `low` up to but not including `high`, even to one part in 2²⁴ / (high - low)."""
    return low + (uniform(key, shape) * (high - low)).long()


def generator(seed: int, *path: int) -> torch.Generator:
    """A fresh CPU generator, a function of its arguments alone: `generator(seed, epoch)`."""
    return torch.Generator().manual_seed(int(key(seed, *path)))


def global_state() -> dict[str, Any]:
    """Where the generators of torch, its accelerator, Python and NumPy stand, as JSON has it.

    Nothing here draws from them, but a model or a transform of yours might. Beware of Python's: beartype draws from it
    to choose which entry of a container to check, so what you draw depends on what has been checked.
    """
    kind, words, position, has_gauss, gauss = numpy.random.get_state()
    version, integers, gauss_next = random.getstate()
    return {
        "torch": bytes(torch.get_rng_state().tolist()).hex(),
        "cuda": [bytes(state.tolist()).hex() for state in torch.cuda.get_rng_state_all()],
        "python": [version, list(integers), gauss_next],
        "numpy": [str(kind), [int(word) for word in words], int(position), int(has_gauss), float(gauss)],
    }


def set_global_state(state: dict[str, Any]) -> None:
    """Put every generator where `global_state` found it; those of accelerators that are not here are left out."""
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
    for device, words in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(torch.tensor(list(bytes.fromhex(words)), dtype=torch.uint8), device)
    version, integers, gauss_next = state["python"]
    random.setstate((version, tuple(integers), gauss_next))
    numpy.random.set_state(tuple(state["numpy"]))


def seed_global_state(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
