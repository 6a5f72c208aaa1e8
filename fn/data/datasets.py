"""Image classification sets, whole and in memory.

`digits` comes with scikit-learn, so it needs no network. The others live below the data root, in torchvision's layout,
and are downloaded there, verified, when they are missing. A new set is one function and one row in DATASETS.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


class Split(NamedTuple):
    images: Float[Tensor, "examples channels height width"]
    labels: Int[Tensor, " examples"]


class Dataset(NamedTuple):
    """Both splits are standardised with the mean and standard deviation of `train`'s pixels."""

    train: Split
    test: Split
    classes: Sequence[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        return tuple(self.train.images.shape[1:])


class DatasetUnavailable(Exception):
    """Says in one line where a set was looked for and what to do."""


def data_root() -> Path:
    """$FN_DATA, or else a folder in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("FN_DATA") or cache / "functional-torch")


def take(split: Split, n: int) -> Split:
    """The first `n` examples."""
    return Split(split.images[:n], split.labels[:n])


def digits() -> Dataset:
    """1,797 handwritten digits of 8×8 pixels in 17 greys; every fifth is held out, which leaves 1,438 to train on.

    The test half of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), as bundled with
    scikit-learn. The same writers are on both sides of the split.
    """
    from sklearn.datasets import load_digits  # here, not above: it and torchvision take seconds to import

    pixels, targets = load_digits(return_X_y=True)
    images = rearrange(torch.tensor(pixels, dtype=torch.float32), "n (h w) -> n 1 h w", h=8)
    labels = torch.tensor(targets, dtype=torch.int64)
    held_out = torch.arange(len(labels)) % 5 == 4
    return _standardised(
        Split(images[~held_out], labels[~held_out]), Split(images[held_out], labels[held_out]), list("0123456789")
    )


def mnist() -> Dataset:
    """70,000 handwritten digits of 28×28 pixels, 10,000 of them held out. LeCun et al. 1998."""
    from torchvision.datasets import MNIST

    root = data_root()
    try:
        train, test = (MNIST(root, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise DatasetUnavailable(
            f"mnist is not in {root / 'MNIST' / 'raw'} and could not be downloaded or unpacked there "
            f"({_first_line(error)}): put its four .gz files into that folder, or set FN_DATA to a root that has them"
        ) from error
    return _standardised(_split(train), _split(test), list("0123456789"))


def _split(mnist: Any) -> Split:
    return Split(mnist.data.unsqueeze(1).float(), mnist.targets)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(":") if str(error).strip() else type(error).__name__


def _standardised(train: Split, test: Split, classes: Sequence[str]) -> Dataset:
    std, mean = torch.std_mean(train.images)
    train, test = (Split((split.images - mean) / std, split.labels) for split in (train, test))
    return Dataset(train, test, classes)


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits, "mnist": mnist}
