"""Images with several objects each, for detection.

The objects of an image are rows (x1, y1, x2, y2, class), in pixels; rows of class -1 are padding, so that all images
have the same number of rows. `digits` comes with scikit-learn, fn.data.voc reads folders of photographs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from fn.data import datasets
from fn.data.cache import cached
from fn.data.datasets import Split
from fn.data.transforms import channel_stats, normalize
from fn.detection.boxes import box_iou, unpack_objects
from fn.domains import Count, Integer, Natural
from fn.rng import generator

WIDEST = 34
"""pixels: of the tallest digit, 28, and a fifth"""


class Scenes(NamedTuple):
    images: Float[Tensor, "examples channels height width"]
    objects: Float[Tensor, "examples objects 5"]


class SceneSet(NamedTuple):
    """Both splits are standardised, channel by channel."""

    train: Scenes
    test: Scenes
    classes: Sequence[str]
    dropped: Natural = 0
    """boxes that were left out, as none of their area is in the image"""
    difficult: Bool[Tensor, "examples objects"] | None = None
    """of the objects of `test`, which need not be found"""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (channels, height, width)."""
        return tuple(self.train.images.shape[1:])


def take_scenes(scenes: Scenes, n: Natural) -> Scenes:
    """Return the first `n` examples."""
    return Scenes(scenes.images[:n], scenes.objects[:n])


def require_valid(scenes: Scenes, classes: Count) -> None:
    """Raise ValueError, naming the first, for objects that no detector can learn.

    A valid box has an area, its corners in order and, to a thousandth of a pixel, inside the image; its class is below
    `classes`. The losses rely on it: a step under `vmap` or `jit` cannot check values.
    """
    boxes, labels, present = unpack_objects(scenes.objects)
    x1, y1, x2, y2 = boxes.unbind(-1)
    height, width = scenes.images.shape[2:]
    complaints = {
        "is not of finite numbers": ~scenes.objects.isfinite().all(dim=-1),
        "has reversed corners or no area": (x2 <= x1) | (y2 <= y1),
        f"is not within the image of {height}×{width} pixels": (torch.minimum(x1, y1) < -1e-3)
        | (x2 > width + 1e-3)
        | (y2 > height + 1e-3),
        f"is of a class that is not among the {classes}": (labels >= classes) | (labels != scenes.objects[..., 4]),
    }
    for complaint, bad in complaints.items():
        for image, row in (bad & (present | scenes.objects[..., 4].isnan())).nonzero().tolist()[:1]:
            values = ", ".join(f"{value:g}" for value in scenes.objects[image, row].tolist())
            raise ValueError(f"image {image}, object {row}: ({values}) {complaint}")


def digits(train: Count = 4000, test: Count = 500, *, size: Count = 64, seed: Integer = 0) -> SceneSet:
    """Return canvases of `size` pixels with up to five of scikit-learn's handwritten digits each, see `canvas`.

    Held-out canvases hold held-out digits.
    """
    parameters = {"made by": "fn.data.scenes.digits, 1", "train": train, "test": test, "size": size, "seed": seed}
    tensors = cached(lambda: _digit_canvases(train, test, size, seed), parameters)
    mean, std = channel_stats(tensors["train"].float())
    training, held_out = (
        Scenes(normalize(tensors[part].float(), mean, std), tensors[f"{part} objects"]) for part in ("train", "test")
    )
    return SceneSet(training, held_out, list("0123456789"))


def _digit_canvases(train: int, test: int, size: int, seed: int) -> dict[str, Tensor]:
    dataset, tensors = datasets.digits(), {}
    for number, (part, split, count) in enumerate((("train", dataset.train, train), ("test", dataset.test, test))):
        ink = split.images - split.images.min()
        split, rng = Split(ink / ink.max(), split.labels), generator(seed, number)
        canvases, objects = zip(*(canvas(*split, rng=rng, size=size) for _ in range(count)), strict=True)
        tensors |= {part: torch.stack(canvases), f"{part} objects": torch.stack(objects)}
    return tensors


def canvas(
    digits: Float[Tensor, "digits 1 8 8"],
    labels: Int[Tensor, " digits"],
    *,
    rng: torch.Generator,
    size: Count,
    max_objects: Natural = 5,
) -> tuple[Tensor, Float32[Tensor, "{max_objects} 5"]]:
    """Draw (bytes (1, size, size), objects): 0 to `max_objects` digits, 12 to 28 pixels high, over noise and scraps.

    A box is tight around the ink. Two boxes overlap by an IoU of at most 0.2; where two digits meet, the darker ink
    counts. A scrap is a quarter of a digit. ValueError without a digit, or for a size that not every digit fits in.
    """
    if size < WIDEST or not len(digits):
        raise ValueError(f"canvas: size {size} is below {WIDEST}, or digits is empty")
    uniform = lambda low, high: low + (high - low) * float(torch.rand((), generator=rng))  # noqa: E731
    pick = lambda n: int(torch.randint(n, (), generator=rng))  # noqa: E731
    image = uniform(0, 0.2) + uniform(0.02, 0.08) * torch.randn(1, size, size, generator=rng)
    for _ in range(pick(7)):
        row, column = 4 * pick(2), 4 * pick(2)
        scrap = digits[pick(len(digits)), :, row : row + 4, column : column + 4]
        scrap = _resized(scrap, uniform(6, 14), uniform(6, 14)) * uniform(0.4, 1)
        _paste(image, scrap, pick(size - scrap.shape[2] + 1), pick(size - scrap.shape[1] + 1))
    objects = torch.tensor([[0.0, 0, 0, 0, -1]]).repeat(max_objects, 1)
    for i in range(pick(max_objects + 1)):
        which, height = pick(len(digits)), uniform(12, 28)
        digit = _resized(digits[which], height, height * uniform(0.8, 1.2))
        rows, columns = ((digit[0] > 0.3).any(dim=d).nonzero().squeeze(1) for d in (1, 0))
        tight = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
        for _ in range(20):
            left, top = pick(size - digit.shape[2] + 1), pick(size - digit.shape[1] + 1)
            box = tight + torch.tensor([left, top, left, top])
            if not (box_iou(box[None], objects[:i, :4]) > 0.2).any():
                _paste(image, digit * uniform(0.6, 1), left, top)
                objects[i] = torch.cat([box, labels[which, None].float()])
                break
    return (image.clamp(0, 1) * 255).round().byte(), objects


def _resized(image: Float[Tensor, "1 height width"], height: float, width: float) -> Float[Tensor, "1 tall wide"]:
    return F.interpolate(image[None], (round(height), round(width)), mode="bilinear")[0]


def _paste(image: Float[Tensor, "1 height width"], patch: Float[Tensor, "1 tall wide"], left: int, top: int) -> None:
    """Write the maximum of both into `image`."""
    window = image[:, top : top + patch.shape[1], left : left + patch.shape[2]]
    torch.maximum(window, patch, out=window)
