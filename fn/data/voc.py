"""Photographs with boxes, as Pascal VOC keeps them: a folder of images and an XML for each. Everingham et al. 2010."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from fn.data.cache import cached, fingerprint
from fn.data.datasets import DatasetUnavailable, Stats
from fn.data.images import ImageError, first_line, photograph
from fn.data.scenes import Scenes, SceneSet
from fn.data.transforms import channel_stats, normalize
from fn.detection.boxes import clip_boxes_to_image, remove_small_boxes
from fn.files import read_bytes


def voc(
    root: Path, *, classes: Sequence[str] | None = None, image_size: int = 160, stats: Stats | None = None
) -> SceneSet:
    """Load the photographs in `root`/images, each with a VOC XML in `root`/annotations, squeezed to squares.

    Every fifth photograph is held out together with its copies, see `first_copies`. VOC counts pixels from 1 and
    includes both ends, so xmin 1 is an edge at 0. Boxes are clipped at the border; a box without an area inside the
    image, or with reversed corners, is dropped and counted. An XML without objects is an image of background. `classes`
    are all that occur unless given. Photographs are decoded once, then cached. `stats` as for fn.data.datasets.folder.

    DatasetUnavailable for a file that cannot be read, a class that is not among `classes`, a split without an object,
    and an XML whose size is not that of its photograph, turned upright: its boxes then belong to another picture.
    """
    files = sorted((root / "annotations").glob("*.xml"), key=lambda path: (len(path.name), path.name))
    if not (root / "annotations").is_dir():
        raise DatasetUnavailable(f"voc: there is no folder {root / 'annotations'}")
    if len(files) < 5:
        raise DatasetUnavailable(
            f"voc: {root / 'annotations'} holds {len(files)} XML files; it takes five, as every fifth is held out"
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
    images, sizes = _squares(root, photographs, image_size)
    for file, taken, annotation, size in zip(files, photographs, parsed, sizes, strict=True):
        if annotation.size != size:
            (height, width), (tall, wide) = annotation.size, size
            raise DatasetUnavailable(f"voc: {file} is of {height}×{width} pixels, but {taken} of {tall}×{wide}")
    objects, dropped = _as_objects(parsed, list(classes), image_size)
    held_out = first_copies(images) % 5 == 4
    for kind, split in (("training", ~held_out), ("held-out", held_out)):
        if not (objects[split][..., 4] >= 0).any():
            raise DatasetUnavailable(
                f"voc: no {kind} photograph of {root / 'images'} has an object; every fifth is held out, and its copies"
            )
    mean, std = channel_stats(images[~held_out].float()) if stats is None else map(torch.tensor, stats)
    images = normalize(images.float(), mean, std)
    return SceneSet(
        Scenes(images[~held_out], objects[~held_out]), Scenes(images[held_out], objects[held_out]), classes, dropped
    )


def first_copies(images: Integer[Tensor, "examples channels height width"]) -> Int64[Tensor, " examples"]:
    """Return for each image the index of the first image like it: its own, unless it is a copy.

    Two images are alike if their thumbnails of 16×16 differ by less than 4 of 255, root mean square: the same picture,
    scaled or saved again. Among the photographs of raccoons copies differ by at most 1.1, others by 16 and more.
    """
    thumbnails = F.interpolate(images.float(), (16, 16), mode="area").flatten(1)
    first = torch.arange(len(images))
    for i, thumbnail in enumerate(thumbnails):
        alike = (thumbnails[:i] - thumbnail).square().mean(dim=1).sqrt() < 4
        first[i] = first[int(alike.nonzero()[0])] if alike.any() else i
    return first


class Annotation(NamedTuple):
    """Of one photograph, in its own pixels."""

    filename: str
    size: tuple[int, int]
    """(height, width)"""
    boxes: Float[Tensor, "objects 4"]
    names: list[str]


def read_voc(file: Path) -> Annotation:
    """Read a VOC annotation; DatasetUnavailable, in one line, for a file that is not one."""
    try:
        root = ElementTree.fromstring(read_bytes(file, "xml"))
        objects = root.findall("object")
        corners = [[_number(o, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        boxes = torch.tensor(corners).reshape(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])
        size = (round(_number(root, "size/height")), round(_number(root, "size/width")))
        if min(size) < 1:
            raise ValueError(f"the image is of {size[0]}×{size[1]} pixels")
        filename = _text(root, "filename")
        if Path(filename).is_absolute() or ".." in Path(filename).parts:
            raise ValueError(f"filename {filename} is none within images/")
        return Annotation(filename, size, boxes, [_text(o, "name") for o in objects])
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # of an encoding that nobody knows
        raise DatasetUnavailable(f"voc: {file} cannot be read as a VOC annotation ({first_line(error)})") from None


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
    """Return (objects, padded to the largest number; the number of dropped boxes)."""
    rows, dropped = [], 0
    for _, size, boxes, names in parsed:
        scale = torch.tensor([image_size / size[1], image_size / size[0]]).repeat(2)
        labels = torch.tensor([float(classes.index(name)) for name in names]).reshape(-1, 1)
        clipped = clip_boxes_to_image(boxes, size)
        kept = remove_small_boxes(clipped, 1e-3)
        rows.append(torch.cat([clipped * scale, labels], dim=1)[kept])
        dropped += len(boxes) - len(kept)
    largest = max(1, *map(len, rows))
    padding = torch.tensor([[0.0, 0, 0, 0, -1]])
    return torch.stack([torch.cat([kept, padding.repeat(largest - len(kept), 1)]) for kept in rows]), dropped


def _squares(root: Path, files: Sequence[Path], size: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Return (bytes (examples, 3, size, size), original sizes), from the cache if these photographs are in it."""
    try:
        source = fingerprint(root, files)
    except OSError as error:
        raise DatasetUnavailable(f"voc: {error.filename}: {error.strerror}") from None
    parameters = {"made by": "fn.data.voc, 1", "source": source, "names": [f.name for f in files], "size": size}
    tensors = cached(lambda: _decoded(files, size), parameters)
    return tensors["images"], list(map(tuple, tensors["sizes"].tolist()))


def _decoded(files: Sequence[Path], size: int) -> dict[str, Tensor]:
    images, sizes = zip(*(_square(file, size) for file in files), strict=True)
    return {"images": torch.stack(images), "sizes": torch.tensor(sizes)}


def _square(file: Path, size: int) -> tuple[Tensor, tuple[int, int]]:
    """Decode a photograph to (bytes, (height, width) of it upright)."""
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        with photograph(file) as image:
            square = image.resize((size, size), Image.Resampling.BICUBIC)
            return pil_to_tensor(square), (image.height, image.width)
    except ImageError as error:
        raise DatasetUnavailable(f"voc: {file} cannot be read as an image ({error})") from None
