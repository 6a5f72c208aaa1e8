"""Images with several objects each, for detection.

The objects of an image are rows (x1, y1, x2, y2, class), in pixels; rows of class -1 are padding, so that every image
has as many. `digits` comes with scikit-learn, `voc` reads folders of photographs.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor

from fn.boxes import box_iou, clip_boxes_to_image, remove_small_boxes
from fn.data import datasets
from fn.data.cache import cached, fingerprint
from fn.data.datasets import DatasetUnavailable, Split, Stats
from fn.data.transforms import channel_stats, normalize
from fn.rng import generator


class Scenes(NamedTuple):
    images: Float[Tensor, "examples channels height width"]
    objects: Float[Tensor, "examples objects 5"]


class SceneSet(NamedTuple):
    """Both splits are standardised, channel by channel."""

    train: Scenes
    test: Scenes
    classes: Sequence[str]
    dropped: int = 0
    """boxes that were left out, as none of their area is in the image"""

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        return tuple(self.train.images.shape[1:])


def take_scenes(scenes: Scenes, n: int) -> Scenes:
    """The first `n` examples."""
    return Scenes(scenes.images[:n], scenes.objects[:n])


def unpack(
    objects: Float[Tensor, "*batch 5"],
) -> tuple[Float[Tensor, "*batch 4"], Int64[Tensor, "*batch"], Bool[Tensor, "*batch"]]:
    """(boxes, classes, which are objects and no padding)"""
    return objects[..., :4], objects[..., 4].long(), objects[..., 4] >= 0


def object_table(
    objects: Float[Tensor, "batch objects 5"],
) -> tuple[Float[Tensor, "rows 4"], Int64[Tensor, " rows"], Int64[Tensor, " rows"]]:
    """(boxes, classes, number of the image), a row per object, padding left out"""
    boxes, labels, present = unpack(objects)
    return boxes[present], labels[present], present.nonzero()[:, 0]


def digits(train: int = 4000, test: int = 500, *, size: int = 64, seed: int = 0) -> SceneSet:
    """Up to five of scikit-learn's handwritten digits on each canvas of `size` pixels; held-out canvases hold held-out
    digits. See `canvas`."""
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
    size: int,
    most: int = 5,
) -> tuple[Tensor, Float32[Tensor, "{most} 5"]]:
    """(bytes (1, size, size), objects): none to `most` digits, 12 to 28 pixels high, over noise and scraps of digits.

    A box is drawn tight around the ink. Two of them overlap by an IoU of at most 0.2; where ink meets ink, the darker
    counts. A scrap is a quarter of a digit, as large as in a digit.
    """
    uniform = lambda low, high: low + (high - low) * float(torch.rand((), generator=rng))  # noqa: E731
    pick = lambda n: int(torch.randint(n, (), generator=rng))  # noqa: E731
    image = uniform(0, 0.2) + uniform(0.02, 0.08) * torch.randn(1, size, size, generator=rng)
    for _ in range(pick(7)):
        row, column = 4 * pick(2), 4 * pick(2)
        scrap = digits[pick(len(digits)), :, row : row + 4, column : column + 4]
        scrap = _resized(scrap, uniform(6, 14), uniform(6, 14)) * uniform(0.4, 1)
        _paste(image, scrap, pick(size - scrap.shape[2] + 1), pick(size - scrap.shape[1] + 1))
    objects = torch.tensor([[0.0, 0, 0, 0, -1]]).repeat(most, 1)
    for i in range(pick(most + 1)):
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
    """The larger of both, written into `image`."""
    window = image[:, top : top + patch.shape[1], left : left + patch.shape[2]]
    torch.maximum(window, patch, out=window)


def voc(
    root: Path, *, classes: Sequence[str] | None = None, image_size: int = 160, stats: Stats | None = None
) -> SceneSet:
    """Photographs in `root`/images and a VOC XML for each in `root`/annotations, squeezed to squares of `image_size`.

    Every fifth is held out. VOC counts pixels from 1 and both ends in, so that xmin 1 is an edge at 0. Boxes are cut
    off at the image's border; those of which nothing is left, because they lie outside, have no area or reversed
    corners, are dropped and counted. An XML without objects is an image of background. Of the classes all that occur
    are taken, unless they are declared. Decoded once. `stats` as for fn.data.datasets.folder. DatasetUnavailable for
    what cannot be read or was not declared.
    """
    files = sorted((root / "annotations").glob("*.xml"), key=lambda path: (len(path.name), path.name))
    if len(files) < 5:
        raise DatasetUnavailable(
            f"voc: {root / 'annotations'} holds {len(files)} XML files, of which every fifth is held out"
        )
    parsed = [read_voc(file) for file in files]
    found = sorted({name for annotation in parsed for name in annotation.names})
    for file, annotation in zip(files, parsed, strict=True):
        for name in annotation.names:
            if classes is not None and name not in classes:
                raise DatasetUnavailable(f"voc: {file} has a {name!r}, which is not among the classes {list(classes)}")
    classes = found if classes is None else classes
    if not classes:
        raise DatasetUnavailable(f"voc: no XML in {root / 'annotations'} has an object")
    photographs = [root / "images" / annotation.filename for annotation in parsed]
    images = _squares(root, photographs, image_size)
    objects, dropped = _as_objects(parsed, list(classes), image_size)
    held_out = torch.arange(len(images)) % 5 == 4
    mean, std = channel_stats(images[~held_out].float()) if stats is None else map(torch.tensor, stats)
    images = normalize(images.float(), mean, std)
    return SceneSet(
        Scenes(images[~held_out], objects[~held_out]), Scenes(images[held_out], objects[held_out]), classes, dropped
    )


class Annotation(NamedTuple):
    """Of one photograph, in its own pixels."""

    filename: str
    size: tuple[int, int]
    """(height, width)"""
    boxes: Float[Tensor, "objects 4"]
    names: list[str]


def read_voc(file: Path) -> Annotation:
    """DatasetUnavailable, in one line, for what is no VOC annotation."""
    try:
        root = ElementTree.parse(file).getroot()
        objects = root.findall("object")
        corners = [[_number(o, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        boxes = torch.tensor(corners).reshape(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])
        size = (round(_number(root, "size/height")), round(_number(root, "size/width")))
        if min(size) < 1:
            raise ValueError(f"the image is of {size[0]}×{size[1]} pixels")
        return Annotation(_text(root, "filename"), size, boxes, [_text(o, "name") for o in objects])
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DatasetUnavailable(f"voc: {file} cannot be read as a VOC annotation ({error})") from None


def _text(element: ElementTree.Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"<{element.tag}> has no {path}")
    return text


def _number(element: ElementTree.Element, path: str) -> float:
    number = float(_text(element, path))
    if not abs(number) < 1e9:
        raise ValueError(f"{path} is {number}")
    return number


def _as_objects(parsed: Sequence[Annotation], classes: list[str], image_size: int) -> tuple[Tensor, int]:
    """(objects, padded to the largest number; how many boxes were dropped)"""
    rows, dropped = [], 0
    for _, size, boxes, names in parsed:
        scale = torch.tensor([image_size / size[1], image_size / size[0]]).repeat(2)
        labels = torch.tensor([float(classes.index(name)) for name in names]).reshape(-1, 1)
        clipped = clip_boxes_to_image(boxes, size)
        kept = remove_small_boxes(clipped, 1e-3)
        rows.append(torch.cat([clipped * scale, labels], dim=1)[kept])
        dropped += len(boxes) - len(kept)
    most = max(1, *(len(some) for some in rows))
    padding = torch.tensor([[0.0, 0, 0, 0, -1]])
    return torch.stack([torch.cat([some, padding.repeat(most - len(some), 1)]) for some in rows]), dropped


def _squares(root: Path, files: Sequence[Path], size: int) -> Tensor:
    """Bytes (examples, 3, size, size), from the cache where these photographs have been met."""
    try:
        source = fingerprint(root, files)
    except OSError as error:
        raise DatasetUnavailable(f"voc: {error.filename}: {error.strerror}") from None
    parameters = {"made by": "fn.data.scenes.voc, 1", "source": source, "names": [f.name for f in files], "size": size}
    return cached(lambda: {"images": torch.stack([_square(file, size) for file in files])}, parameters)["images"]


def _square(file: Path, size: int) -> Tensor:
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        with Image.open(file) as photograph:
            return pil_to_tensor(photograph.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    except Exception as error:  # each decoder meets damage with errors of its own
        raise DatasetUnavailable(f"voc: {file} cannot be read as an image ({error})") from None
