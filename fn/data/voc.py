"""Photographs with boxes, as Pascal VOC keeps them: a folder of images and an XML for each. Everingham et al. 2010."""

import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

from fn.data.cache import cached, fingerprint
from fn.data.datasets import DatasetUnavailable, Stats
from fn.data.images import ImageError, first_line, photograph
from fn.data.scenes import Scenes, SceneSet
from fn.data.transforms import channel_stats, normalize
from fn.data.voc_layouts import find_parts, find_photographs
from fn.detection.boxes import clip_boxes_to_image, remove_small_boxes
from fn.domains import Count
from fn.files import as_label, read_bytes


def voc(
    root: Path, *, classes: Sequence[str] | None = None, image_size: Count = 160, stats: Stats | None = None
) -> SceneSet:
    """Load photographs, each with a VOC XML, squeezed to squares; `fn.data.voc_layouts` finds both.

    Where no split is given, every fifth photograph is held out together with its copies, see `first_copies`. VOC counts
    pixels from 1 and includes both ends, so xmin 1 is an edge at 0. Boxes are clipped at the border; a box without an
    area inside the image is dropped and counted. An XML without objects is an image of background. `classes` are all
    that occur unless given. Photographs are decoded once, then cached. `stats` as for fn.data.datasets.folder.

    DatasetUnavailable for a file that cannot be read, a class that is not among `classes`, a split without an object,
    and an XML whose size is not that of its photograph, turned upright: its boxes then belong to another picture.
    """
    try:
        parts = find_parts(root)
        files = [file for part in parts for file in part.files]
        if len(parts) == 1 and len(files) < 5:
            found = f"{parts[0].annotations} holds {len(files)} XML files"
            raise ValueError(f"{found}; it takes five, as every fifth is held out")
        parsed = {file: read_voc(file) for file in files}
        photographs = [
            path for part in parts for path in find_photographs(part, [parsed[file].filename for file in part.files])
        ]
        classes = _classes(parsed, classes)
        images, sizes = _squares(root, photographs, image_size)
        _require_boxes(parsed, photographs, sizes)
        objects, difficult, dropped = _as_objects(list(parsed.values()), list(classes), image_size)
        given = torch.arange(len(files)) >= len(parts[0].files)
        held_out = given if len(parts) == 2 else _every_fifth(images)
        for kind, split in (("training", ~held_out), ("held-out", held_out)):
            if not (objects[split][..., 4] >= 0).any():
                how = "" if len(parts) == 2 else "; every fifth is held out, and its copies"
                raise ValueError(f"no {kind} photograph of {parts[-1].images} has an object{how}")
    except (OSError, ValueError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) else ""
        raise DatasetUnavailable(f"voc: {where}{first_line(error)}") from None
    mean, std = channel_stats(images[~held_out].float()) if stats is None else map(torch.tensor, stats)
    images = normalize(images.float(), mean, std)
    train, test = (Scenes(images[split], objects[split]) for split in (~held_out, held_out))
    return SceneSet(train, test, classes, dropped, difficult[held_out])


def _classes(parsed: Mapping[Path, "Annotation"], classes: Sequence[str] | None) -> Sequence[str]:
    """Return all classes that occur, or those that are given; ValueError for one that is not among them."""
    for file, annotation in parsed.items():
        for name in annotation.names:
            if classes is not None and name not in classes:
                raise ValueError(f"{file} has a {name!r}, which is not among the classes {list(classes)}")
    found = sorted({name for annotation in parsed.values() for name in annotation.names})
    if not (found if classes is None else classes):
        raise ValueError(f"no XML in {next(iter(parsed)).parent} has an object")
    return found if classes is None else classes


def _require_boxes(
    parsed: Mapping[Path, "Annotation"], photographs: Sequence[Path], sizes: Sequence[tuple[int, ...]]
) -> None:
    """Raise ValueError for an XML of another size, or with boxes in fractions; warn of reversed corners."""
    turned = []
    for (file, annotation), taken, size in zip(parsed.items(), photographs, sizes, strict=True):
        if annotation.size != size:
            said, actual = (f"{width}×{height}" for height, width in (annotation.size, size))
            raise ValueError(f"{file} says {said} pixels (width×height), but {taken} has {actual}")
        corners = annotation.boxes + torch.tensor([1.0, 1.0, 0.0, 0.0])
        inside = ((corners >= 0) & (corners <= 1)).all(dim=1)
        if (inside & (corners != corners.round()).any(dim=1)).any():
            raise ValueError(f"{file} has boxes in fractions of the image, from 0 to 1; VOC counts pixels")
        turned += [file] * int((annotation.boxes[:, 2:] < annotation.boxes[:, :2]).any(dim=1).sum())
    if turned:
        warnings.warn(
            f"voc: boxes with reversed corners dropped: {len(turned)}, the first of {turned[0]}", stacklevel=3
        )


def _every_fifth(images: Integer[Tensor, "examples channels height width"]) -> Bool[Tensor, " examples"]:
    """Return which photographs are held out: every fifth, with its copies. ValueError if there is none."""
    first = first_copies(images)
    held_out = first % 5 == 4
    if not held_out.any():
        copies = int((first != torch.arange(len(first))).sum())
        raise ValueError(
            f"nothing is left to hold out: of {len(first)} photographs {copies} are copies of others, among them every "
            "fifth"
        )
    return held_out


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
    """of the photograph; empty if the XML does not say"""
    size: tuple[int, int]
    """(height, width)"""
    boxes: Float[Tensor, "objects 4"]
    names: list[str]
    difficult: list[bool]
    """of each object, whether it need not be found"""


def read_voc(file: Path) -> Annotation:
    """Read a VOC annotation; DatasetUnavailable, in one line, for a file that is not one."""
    try:
        root = ElementTree.fromstring(read_bytes(file, "xml"))
        objects = root.findall("object")
        corners = [[_number(o, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        boxes = torch.tensor(corners).reshape(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])
        size = (round(_number(root, "size/height")), round(_number(root, "size/width")))
        if min(size) < 1:
            raise ValueError(f"the image is {size[1]} wide and {size[0]} high")
        filename = (root.findtext("filename") or "").strip()
        if Path(filename).is_absolute() or ".." in Path(filename).parts:
            filename = Path(filename).name  # of another machine
        difficult = [_is_difficult(o) for o in objects]
        return Annotation(filename, size, boxes, [as_label(_text(o, "name")) for o in objects], difficult)
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # of an encoding that nobody knows
        raise DatasetUnavailable(f"voc: {file} cannot be read as a VOC annotation ({first_line(error)})") from None


def _is_difficult(element: ElementTree.Element) -> bool:
    text = (element.findtext("difficult") or "").strip() or "0"
    if not text.isdecimal():
        raise ValueError(f"difficult is {text!r}, not 0 or 1")
    return int(text) != 0


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


def _as_objects(parsed: Sequence[Annotation], classes: list[str], image_size: int) -> tuple[Tensor, Tensor, int]:
    """Return (objects, padded to the largest number; which are difficult; the number of dropped boxes)."""
    rows, dropped = [], 0
    for _, size, boxes, names, difficult in parsed:
        scale = torch.tensor([image_size / size[1], image_size / size[0]]).repeat(2)
        labels = torch.tensor([[float(classes.index(name)), hard] for name, hard in zip(names, difficult, strict=True)])
        clipped = clip_boxes_to_image(boxes, size)
        kept = remove_small_boxes(clipped, 1e-3)
        rows.append(torch.cat([clipped * scale, labels.reshape(-1, 2)], dim=1)[kept])
        dropped += len(boxes) - len(kept)
    largest = max(1, *map(len, rows))
    padding = torch.tensor([[0.0, 0, 0, 0, -1, 0]])
    padded = torch.stack([torch.cat([kept, padding.repeat(largest - len(kept), 1)]) for kept in rows])
    return padded[..., :5].contiguous(), padded[..., 5] == 1, dropped


def _squares(root: Path, files: Sequence[Path], size: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Return (bytes (examples, 3, size, size), original sizes), from the cache if these photographs are in it."""
    source = fingerprint(root, files)
    parameters = {"made by": "fn.data.voc, 2", "source": source, "names": [f.name for f in files], "size": size}
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
