"""A folder of pictures that stands in for photographs, made from scikit-learn's digits; a Dataset of pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fn.data.datasets import Split, digits


def to_picture(image: Tensor) -> Image.Image:
    """Return a grey picture of PIL's, black to white, of an image (height, width)."""
    return Image.fromarray(((image - image.min()) * 255 / (image.max() - image.min())).byte().numpy())


def write_photographs(root: Path, count: int) -> None:
    """Write `count` digits, enlarged to 400×300 in RGB, as 000.png, 001.png, …"""
    root.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(digits().train.images[:count, 0]):
        picture = to_picture(image).resize((400, 300), Image.Resampling.BICUBIC)
        picture.convert("RGB").save(root / f"{i:03}.png")


def decode_photographs(root: Path) -> dict[str, Tensor]:
    """Return {"images": bytes (photographs, 64, 64, 3)}"""
    squares = [Image.open(path).resize((64, 64)) for path in sorted(root.glob("*.png"))]
    return {"images": torch.stack([torch.from_numpy(numpy.array(square)) for square in squares])}


class Pictures(Dataset):
    """As tutorials have it: a PIL image, and torchvision's transforms, which draw from the global generator."""

    def __init__(self, split: Split, transform: Callable) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(to_picture(self.split.images[index, 0])), self.split.labels[index]
