"""Image classification data sets, loaded into memory.

`digits` comes with scikit-learn, so it needs no network. `folder` is any directory of photographs. The others are
files below the data root, in torchvision's layout; missing ones are downloaded there and verified.
A new set is one function here and one row in the registry of the scripts.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from fn.data.cache import cached, fingerprint, user_cache
from fn.data.transforms import channel_stats, normalize
from fn.domains import Count

Stats = tuple[Sequence[float], Sequence[float]]
"""(mean, standard deviation) of each channel"""


class Split(NamedTuple):
    images: Float[Tensor, "examples channels height width"]
    labels: Int[Tensor, " examples"]


class Dataset(NamedTuple):
    """Both splits are standardised, channel by channel, with the mean and standard deviation of `train`'s pixels."""

    train: Split
    test: Split
    classes: Sequence[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        return tuple(self.train.images.shape[1:])


class DatasetUnavailable(Exception):
    """A data set that cannot be loaded; the message is one line: where it was looked for, and what to do."""


def data_root() -> Path:
    """$FN_DATA, or else the project's folder in the user's cache."""
    return Path(os.environ.get("FN_DATA") or user_cache())


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
    return _from_torchvision("MNIST", "MNIST/raw", "its four .gz files", list("0123456789"))


def fashion_mnist() -> Dataset:
    """70,000 grey pictures of clothes, 28×28 pixels, 10,000 of them held out. Xiao, Rasul and Vollgraf 2017."""
    classes = ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "trainer", "bag", "boot"]
    return _from_torchvision("FashionMNIST", "FashionMNIST/raw", "its four .gz files", classes)


def cifar10() -> Dataset:
    """60,000 colour photographs of 32×32 pixels, 10,000 of them held out. Krizhevsky 2009."""
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    return _from_torchvision("CIFAR10", "cifar-10-batches-py", "the files of cifar-10-python.tar.gz", classes)


def _from_torchvision(name: str, folder: str, files: str, classes: Sequence[str]) -> Dataset:
    from torchvision import datasets

    root = data_root()
    try:
        train, test = (getattr(datasets, name)(root, train=part, download=True) for part in (True, False))
        splits = _split(train), _split(test)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:  # the last two for files of other content
        raise DatasetUnavailable(
            f"{name} is not in {root / folder} and could not be downloaded or unpacked there "
            f"({_first_line(error)}): put {files} into that folder, or set FN_DATA to a root that has them"
        ) from error
    return _standardised(*splits, classes)


def _split(dataset: Any) -> Split:
    pixels = torch.as_tensor(dataset.data)
    layout = "n h w -> n 1 h w" if pixels.ndim == 3 else "n h w channels -> n channels h w"
    labels = torch.as_tensor(dataset.targets)
    if len(labels) != len(pixels):
        raise ValueError(f"{len(labels)} labels for {len(pixels)} images")
    return Split(rearrange(pixels, layout).float(), labels)


def folder(root: Path, *, image_size: Count = 64, stats: Stats | None = None) -> Dataset:
    """Photographs of any size, a directory per class, scaled and cut to centred squares of `image_size`.

    If `root` has `train` and `test` (or `val`), these are the splits; else every fifth photograph of each class is held
    out. The squares are cached. `stats`, of pixels from 0 to 255, replace those of `train`: for a pretrained network,
    give the ones that it was trained with.
    """
    parts = [root / part for part in ("test", "val") if (root / part).is_dir() and (root / "train").is_dir()]
    if not parts:
        images, labels, classes = _photographs(root, image_size)
        test = torch.cat([torch.arange(n) % 5 == 4 for n in labels.bincount().tolist()])
        if not test.any():
            raise DatasetUnavailable(f"folder: no class of {root} has the five photographs of which one is held out")
        train, test = Split(images[~test], labels[~test]), Split(images[test], labels[test])
    else:
        *train, classes = _photographs(root / "train", image_size)
        *test, others = _photographs(parts[0], image_size)
        if classes != others:
            raise DatasetUnavailable(f"folder: {root / 'train'} has the classes {classes}, {parts[0]} has {others}")
        train, test = Split(*train), Split(*test)
    train, test = (Split(split.images.float(), split.labels) for split in (train, test))
    return _standardised(train, test, classes, stats)


def _photographs(root: Path, image_size: int) -> tuple[Tensor, Tensor, list[str]]:
    """(squares, labels, classes), ordered by class and name."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(root), loader=Path)
        files = [Path(path) for path, _ in found.samples]
        source = fingerprint(root, files)
    except OSError as error:
        raise DatasetUnavailable(f"folder: {root} is no directory of images per class ({_first_line(error)})") from None
    if len(found.classes) < 2:
        raise DatasetUnavailable(f"folder: {root} has one directory, {found.classes[0]}, and nothing to tell it from")
    squares = cached(
        lambda: {"images": torch.stack([_square(path, image_size) for path in files])},
        {"made by": "fn.data.datasets.folder, 1", "source": source, "image_size": image_size},
    )["images"]
    return squares, torch.tensor(found.targets), found.classes


def _square(path: Path, size: int) -> Tensor:
    """The centre square of a photograph, scaled to `size`: bytes (3, size, size)."""
    from PIL import Image, ImageOps
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        with Image.open(path) as photograph:
            if photograph.mode.startswith(("I", "F")):  # which convert() would clip to white
                raise ValueError(f"its pixels are of mode {photograph.mode}, not of 8 bits")
            upright = ImageOps.exif_transpose(photograph).convert("RGB")
            return pil_to_tensor(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC))
    except Exception as error:  # decoders raise many kinds for a damaged file: SyntaxError, struct.error
        raise DatasetUnavailable(f"folder: {path} cannot be read as an image ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().splitlines()[0].rstrip(":") if str(error).strip() else type(error).__name__


def _standardised(train: Split, test: Split, classes: Sequence[str], stats: Stats | None = None) -> Dataset:
    mean, std = channel_stats(train.images) if stats is None else map(torch.tensor, stats)
    train, test = (Split(normalize(split.images, mean, std), split.labels) for split in (train, test))
    return Dataset(train, test, classes)
