"""Image classification data sets, loaded into memory.

`digits` comes with scikit-learn, so it needs no network. `folder` is any directory of photographs. The others are
files below the data root, in torchvision's layout; missing ones are downloaded there and verified.
A new set is one function here and one row in the registry of the scripts.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from fn.data.cache import cached, cached_rows, fingerprint, user_cache
from fn.data.idx import is_complete, read_split
from fn.data.image_folders import Found, find_classes, folders_of, splits
from fn.data.images import ImageError, first_line, photograph
from fn.data.processes import map_ahead
from fn.data.stored import Stored, exact_stats
from fn.data.transforms import channel_stats, normalize
from fn.domains import Count, Finites, Magnitudes, Natural
from fn.files import require_file

Stats = tuple[Finites, Magnitudes]
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
        """Return (channels, height, width)."""
        return tuple(self.train.images.shape[1:])


class DatasetUnavailable(Exception):
    """A data set that cannot be loaded; the message is one line: where it was looked for, and what to do."""


def data_root() -> Path:
    """Return $FN_DATA, or else the project's folder in the user's cache."""
    return Path(os.environ.get("FN_DATA") or user_cache())


def take(split: Split, n: Natural) -> Split:
    """Return the first `n` examples."""
    return Split(split.images[:n], split.labels[:n])


def digits() -> Dataset:
    """Return 1,797 handwritten digits of 8×8 pixels in 17 greys; every fifth is held out, 1,438 are left to train on.

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
    """Return 70,000 handwritten digits of 28×28 pixels, 10,000 of them held out. LeCun et al. 1998."""
    return _in_idx("MNIST", list("0123456789"))


def fashion_mnist() -> Dataset:
    """Return 70,000 grey pictures of clothes, 28×28 pixels, 10,000 of them held out. Xiao, Rasul and Vollgraf 2017."""
    classes = ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "trainer", "bag", "boot"]
    return _in_idx("FashionMNIST", classes)


def cifar10() -> Dataset:
    """Return 60,000 colour photographs of 32×32 pixels, 10,000 of them held out. Krizhevsky 2009."""
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    folder = data_root() / "cifar-10-batches-py"
    try:
        for path in folder.glob("*"):
            require_file(path, "idx")
        train, test = (_torchvisions("CIFAR10", train=part) for part in (True, False))
    except (OSError, RuntimeError, ValueError) as error:
        raise _unavailable("CIFAR10", folder, error, "the files of cifar-10-python.tar.gz") from error
    train, test = (
        Split(rearrange(torch.as_tensor(part.data), "n h w c -> n c h w").float(), torch.tensor(part.targets))
        for part in (train, test)
    )
    return _standardised(train, test, classes)


def _in_idx(name: str, classes: Sequence[str]) -> Dataset:
    """Return MNIST, or a set in its format; downloaded if a file of it is missing, but not over one that is damaged."""
    folder = data_root() / name / "raw"
    try:
        if not is_complete(folder):
            _torchvisions(name)
        parts = [read_split(folder, part) for part in ("train", "t10k")]
    except ValueError as error:
        raise DatasetUnavailable(f"{name}: {first_line(error)}") from None
    except (OSError, RuntimeError) as error:
        raise _unavailable(name, folder, error, "its four .gz files") from error
    train, test = (Split(rearrange(x, "n h w -> n 1 h w").float(), y.long()) for x, y in parts)
    return _standardised(train, test, classes)


def _torchvisions(name: str, **options: Any) -> Any:
    """Return torchvision's data set, downloaded to the data root if it is not there."""
    from torchvision import datasets

    return getattr(datasets, name)(data_root(), download=True, **options)


def _unavailable(name: str, folder: Path, error: Exception, files: str) -> DatasetUnavailable:
    return DatasetUnavailable(
        f"{name} is not in {folder} and could not be downloaded or unpacked there "
        f"({first_line(error)}): put {files} into that folder, or set FN_DATA to a root that has them"
    )


def folder(
    root: Path, *, image_size: Count = 64, stats: Stats | None = None, most_bytes: Natural | None = None
) -> Dataset:
    """Return photographs of any size, a directory per class, scaled and cut to centred squares of `image_size`.

    If `root` has a folder `train` and one that is held out, `test`, `val` and so on (see fn.data.image_folders), these
    are the splits; else every fifth photograph of each class is held out. The squares are cached. `stats`, of pixels
    from 0 to 255, replace those of `train`: for a pretrained network, give the ones that it was trained with.
    Pixels that would take more than `most_bytes` in memory stay on the disk: the splits are then `Stored`.
    """
    try:
        parts = splits(root, holds=folders_of) or [root]
        found = [find_classes(part) for part in parts]
    except OSError as error:
        raise DatasetUnavailable(f"folder: {root} is no directory of images per class ({first_line(error)})") from None
    except ValueError as error:
        raise DatasetUnavailable(f"folder: {error}") from None
    classes, others = found[0].classes, found[-1].classes
    if len(classes) < 2:
        raise DatasetUnavailable(f"folder: {parts[0]} has one directory, {classes[0]}, and nothing to tell it from")
    if classes != others:
        raise DatasetUnavailable(f"folder: {parts[0]} has the classes {classes}, {parts[1]} has {others}")
    pixels = sum(len(images.files) for images in found) * 3 * image_size**2
    on_disk = most_bytes is not None and 4 * pixels > most_bytes
    load = _stored if on_disk else _photographs
    train, *rest = (load(part, images, image_size) for part, images in zip(parts, found, strict=True))
    if rest:
        [test] = rest
    else:
        held_out = torch.cat([torch.arange(n) % 5 == 4 for n in train.labels.bincount().tolist()])
        if not held_out.any():
            raise DatasetUnavailable(f"folder: no class of {root} has the five photographs of which one is held out")
        train, test = (Split(*(x[which] for x in train)) for which in (~held_out, held_out))
    return (_standardised_on_disk if on_disk else _standardised)(train, test, classes, stats)


def _photographs(root: Path, found: Found, image_size: int) -> Split:
    """Return the photographs as squares, ordered by class and name."""
    squares = cached(
        lambda: {"images": torch.stack([_square(path, image_size) for path in found.files])},
        _parameters(root, found, image_size),
    )["images"]
    return Split(squares.float(), torch.tensor(found.labels))


def _stored(root: Path, found: Found, image_size: int) -> Split:
    """Return the same squares in a file, which several processes decode where it is not there."""
    decode = partial(_decoded, size=image_size)
    try:
        file = cached_rows(lambda: map_ahead(decode, found.files), _parameters(root, found, image_size))
    except OSError as error:
        where = f"{user_cache()} has no room for its squares, or refuses them"
        raise DatasetUnavailable(f"folder: {where} ({first_line(error)})") from None
    images = Stored(file, (3, image_size, image_size), torch.arange(len(found.files)), torch.zeros(3), torch.ones(3))
    return Split(images, torch.tensor(found.labels))  # pyright: ignore[reportArgumentType]


def _parameters(root: Path, found: Found, image_size: int) -> dict[str, Any]:
    """Return all that the squares depend on."""
    try:
        source = fingerprint(root, found.files)
    except OSError as error:
        raise DatasetUnavailable(f"folder: {error.filename or root} cannot be read ({first_line(error)})") from None
    return {"made by": "fn.data.datasets.folder, 1", "source": source, "image_size": image_size}


def _decoded(path: Path, size: int) -> bytes:
    return _square(path, size).numpy().tobytes()


def _square(path: Path, size: int) -> Tensor:
    """Return the centre square of a photograph, scaled to `size`: bytes (3, size, size)."""
    from PIL import Image, ImageOps
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        with photograph(path) as image:
            return pil_to_tensor(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
    except ImageError as error:
        raise DatasetUnavailable(f"folder: {path} cannot be read as an image ({error})") from None


def _standardised(train: Split, test: Split, classes: Sequence[str], stats: Stats | None = None) -> Dataset:
    mean, std = channel_stats(train.images) if stats is None else map(torch.tensor, stats)
    train, test = (Split(normalize(split.images, mean, std), split.labels) for split in (train, test))
    return Dataset(train, test, classes)


def _standardised_on_disk(train: Any, test: Any, classes: Sequence[str], stats: Stats | None = None) -> Dataset:
    mean, std = exact_stats(train.images) if stats is None else map(torch.tensor, stats)
    train, test = (split._replace(images=replace(split.images, mean=mean, std=std)) for split in (train, test))
    return Dataset(train, test, classes)
