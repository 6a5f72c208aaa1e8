"""Images that stay on the disk, as bytes end to end in one file: for data larger than memory.

An index chooses examples, as it does of a tensor, and reads nothing; `read` reads those that are chosen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, Int64, Num, UInt8
from torch import Tensor

from fn.data.transforms import normalize

CHUNK = 512


@dataclass(frozen=True)
class Stored:
    file: Path
    size: tuple[int, int, int]
    """(channels, height, width) of each image in the file"""
    rows: Int64[Tensor, " examples"]
    """which images of the file these are"""
    mean: Float[Tensor, " channels"]
    std: Float[Tensor, " channels"]

    @property
    def shape(self) -> torch.Size:
        """Return (examples, channels, height, width)."""
        return torch.Size([len(self.rows), *self.size])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Int[Tensor, " chosen"] | Bool[Tensor, " examples"] | slice) -> "Stored":
        return replace(self, rows=self.rows[index])

    def to(self, device: torch.device | str) -> "Stored":
        """Return itself: a batch is moved when it has been read."""
        return self

    def bytes(self) -> UInt8[Tensor, "examples channels height width"]:
        """Read the images. The file is mapped for as long as that takes, so the process holds no page of it after."""
        n = self.file.stat().st_size // prod(self.size)
        images = torch.from_file(str(self.file), size=n * prod(self.size), dtype=torch.uint8)
        return images.view(n, *self.size).index_select(0, self.rows)

    def read(self) -> Float[Tensor, "examples channels height width"]:
        """Read and standardise the images."""
        return normalize(self.bytes().float(), self.mean, self.std)


Images = Num[Tensor, "examples *shape"] | Stored


def read(images: Images) -> Tensor:
    """Return the images as a tensor.

    >>> read(torch.ones(2, 1, 3, 3)).shape
    torch.Size([2, 1, 3, 3])
    """
    return images.read() if isinstance(images, Stored) else images


def exact_stats(images: Stored) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Return (mean, std) of the bytes of each channel, from sums of integers: the same in any order."""
    total = squares = torch.zeros(images.size[0], dtype=torch.int64)
    for part in _chunks(images):
        pixels = part.bytes().long()
        total = total + pixels.sum(dim=(0, 2, 3))
        squares = squares + pixels.square().sum(dim=(0, 2, 3))
    n = len(images) * prod(images.size[1:])
    means = [Fraction(t, n) for t in total.tolist()]
    variances = [Fraction(s, n) - mean**2 for s, mean in zip(squares.tolist(), means, strict=True)]
    return torch.tensor([float(mean) for mean in means]), torch.tensor([float(v) ** 0.5 for v in variances])


def _chunks(images: Stored) -> Iterator[Stored]:
    return (images[slice(start, start + CHUNK)] for start in range(0, len(images), CHUNK))
