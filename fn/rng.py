"""Randomness as an argument, in two forms; neither touches torch's global generator.

`generator(seed, …)` is for what happens once, on the host: initial weights, the order of an epoch.
A *key*, an int64 scalar tensor, is for draws inside a step: `uniform(key, shape)` is arithmetic on the key, so it
works under `grad`, `vmap` and `torch.compile`, and gives the same bits on every device. Draw once per key, and derive
the next key with `fold_in`. No stream moves on from draw to draw, so the draws at (epoch, batch) are the same in any
process and after any interruption.

The stream is SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
"""

import random
from typing import Any

import numpy
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from fn.domains import Integer, Naturals


def _signed(word: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift_right(z: Int64[Tensor, "*shape"], bits: int) -> Int64[Tensor, "*shape"]:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _stream(key: Int64[Tensor, "..."], index: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """Return word `index` of the SplitMix64 stream that starts at `key`, counted from 0; int64 arithmetic wraps."""
    z = key - _GAMMA * ~index  # index + 1, in bits: TorchInductor takes sums of indices for numbers that do not wrap
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


def key(seed: Integer, *path: Integer) -> Int64[Tensor, ""]:
    """Derive a key from a seed and a path of numbers, `key(seed, epoch, step)`: `fold_in` along the path.

    >>> key(3)
    tensor(3)
    >>> bool(key(3, 1, 5) == fold_in(fold_in(key(3), 1), 5))
    True
    """
    k = torch.tensor(seed, dtype=torch.int64)
    for data in path:
        k = fold_in(k, data)
    return k


def fold_in(key: Int64[Tensor, "*keys"], data: Integer | Int64[Tensor, "*keys"]) -> Int64[Tensor, "*keys"]:
    """Derive the key of child number `data`: a step, a layer, an example, a model of an ensemble.

    >>> fold_in(key(0), 1)
    tensor(7960286522194355700)
    >>> fold_in(key(0).expand(3), torch.arange(3)).shape
    torch.Size([3])
    """
    return _stream(key, torch.as_tensor(data, dtype=torch.int64, device=key.device))


def uniform(key: Int64[Tensor, "*keys"], shape: Naturals) -> Float32[Tensor, "..."]:
    """Draw from U[0, 1): the top 24 bits of each word of the key's stream; for several keys, `shape` numbers each.

    >>> uniform(key(0), (3,))
    tensor([0.8833, 0.4315, 0.0264])
    >>> uniform(torch.stack([key(0), key(1)]), (3,)).shape
    torch.Size([2, 3])
    """
    shape = torch.Size(shape)
    index = torch.arange(shape.numel(), device=key.device)
    return _shift_right(_stream(key.unsqueeze(-1), index), 40).reshape((*key.shape, *shape)) * 2.0**-24


def randint(key: Int64[Tensor, "*keys"], low: Integer, high: Integer, shape: Naturals) -> Int64[Tensor, "..."]:
    """Draw whole numbers from `low` up to but not including `high`, uniform up to one part in 2²⁴ / (high - low).

    ValueError for a range that holds none.

    >>> randint(key(0), 0, 10, (5,))
    tensor([8, 4, 0, 9, 1])
    """
    if high <= low:
        raise ValueError(f"randint: there is no number from low {low} to below high {high}")
    return low + (uniform(key, shape) * (high - low)).long()


def generator(seed: Integer, *path: Integer) -> torch.Generator:
    """Return a new CPU generator, a function of its arguments alone: `generator(seed, epoch)`.

    >>> torch.equal(torch.rand(3, generator=generator(0, 1)), torch.rand(3, generator=generator(0, 1)))
    True
    """
    return torch.Generator().manual_seed(int(key(seed, *path)))


def global_state() -> dict[str, Any]:
    """Return the states of the global generators of torch, its accelerators, Python and NumPy, as JSON can hold them.

    Nothing here draws from them, but your model or transform might. Python's moves on unseen: beartype draws from it
    to choose which entry of a container to check, so its draws depend on what has been checked.

    >>> sorted(global_state())
    ['cuda', 'numpy', 'python', 'torch']
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
    """Restore every global generator from a `global_state`; states of accelerators that are not here are ignored.

    >>> state = global_state()
    >>> first = torch.rand(2)
    >>> set_global_state(state)
    >>> torch.equal(torch.rand(2), first)
    True
    """
    torch.set_rng_state(torch.tensor(list(bytes.fromhex(state["torch"])), dtype=torch.uint8))
    for device, words in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(torch.tensor(list(bytes.fromhex(words)), dtype=torch.uint8), device)
    version, integers, gauss_next = state["python"]
    random.setstate((version, tuple(integers), gauss_next))
    numpy.random.set_state(tuple(state["numpy"]))


def seed_global_state(seed: Integer) -> None:
    """Seed the global generators of torch, Python and NumPy.

    >>> state = global_state()
    >>> seed_global_state(0)
    >>> torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(0)))
    True
    >>> set_global_state(state)
    """
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
