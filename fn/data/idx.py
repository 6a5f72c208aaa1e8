"""The files of MNIST: arrays of bytes in the format IDX. LeCun et al. 1998, http://yann.lecun.com/exdb/mnist."""

import gzip
import io
import math
import zlib
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from fn.files import MOST_BYTES, read_bytes

BYTES = 0x08
"""the code of the only type in these files"""
PARTS = ("train", "t10k")
"""of 60,000 and of 10,000 images"""


def read_idx(path: Path, shape: tuple[int | None, ...]) -> UInt8[Tensor, "..."]:
    """Return an array of bytes from an IDX file, unpacked or .gz; None in `shape` stands for any size.

    OSError, or ValueError with the reason, for a file of another type or shape, too short or too long.
    """
    content = read_bytes(path, "idx")
    if path.suffix == ".gz":
        content = _unpacked(content)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError("it is no IDX file: it does not begin with two zeros")
    if content[2] != BYTES:
        raise ValueError(f"its numbers are of type 0x{content[2]:02x}, not bytes, 0x08")
    start = 4 + 4 * content[3]
    sizes = [int.from_bytes(content[i : i + 4]) for i in range(4, start, 4)]
    if len(sizes) != len(shape) or any(b not in (None, a) for a, b in zip(sizes, shape, strict=True)):
        expected = "×".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"it is an array of {'×'.join(map(str, sizes))} bytes, not of {expected}")
    if len(content) != start + math.prod(sizes):
        raise ValueError(f"it holds {len(content):,} bytes, but says that they are {start + math.prod(sizes):,}")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(sizes)


def _unpacked(content: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            unpacked = file.read(MOST_BYTES["idx"] + 1)
    except (EOFError, zlib.error) as error:
        raise ValueError(f"it is a damaged archive ({error})") from None
    if len(unpacked) > MOST_BYTES["idx"]:
        raise ValueError(f"it unpacks to more than {MOST_BYTES['idx']:,} bytes")
    return unpacked


def is_complete(folder: Path) -> bool:
    """Return whether the folder has all four files of MNIST, each unpacked or as an archive; sound or not."""
    return all(file.exists() or _archive(file).exists() for part in PARTS for file in _files(folder, part))


def read_split(folder: Path, part: str) -> tuple[UInt8[Tensor, "examples 28 28"], UInt8[Tensor, " examples"]]:
    """Return the (images, labels) of a part, "train" or "t10k"; of a file that is not sound, the archive beside it.

    ValueError, naming the file, if neither is sound, or the labels do not fit.
    """
    image_file, label_file = _files(folder, part)
    images, labels = _read_either(image_file, (None, 28, 28)), _read_either(label_file, (None,))
    if len(labels) != len(images) or not len(images):
        raise ValueError(f"{label_file} has {len(labels)} labels for the {len(images)} images of {image_file.name}")
    if labels.max() > 9:
        at = int((labels > 9).nonzero()[0])
        raise ValueError(f"{label_file} is damaged: label {at} is {labels[at]}, not of 0 to 9")
    return images, labels


def _files(folder: Path, part: str) -> tuple[Path, Path]:
    return folder / f"{part}-images-idx3-ubyte", folder / f"{part}-labels-idx1-ubyte"


def _archive(file: Path) -> Path:
    return file.with_name(f"{file.name}.gz")


def _read_either(file: Path, shape: tuple[int | None, ...]) -> Tensor:
    complaints = []
    for path in (file, _archive(file)):
        try:
            return read_idx(path, shape)
        except (OSError, ValueError) as error:
            complaints.append(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})")
    raise ValueError(", and ".join(complaints))
