"""Where the annotations of photographs lie, and which photograph each is of: the layouts that people have.

images/ + annotations/ · JPEGImages/ + Annotations/ + ImageSets/Main/, as the devkit has them · XML beside the images,
as labelImg writes them · each of these in a folder train/ and one that is held out, as Roboflow exports them.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fn.data.image_folders import folders_of, splits
from fn.data.images import find_images, walk
from fn.files import decode_text, read_bytes

ANNOTATIONS = ("annotations", "annotation", "annots", "xmls", "xml", "labels")
IMAGES = ("images", "image", "jpegimages", "imgs", "img", "photos")
"""names of folders, in any case"""
LISTS = ("train", "test", "val", "trainval")
"""of ImageSets/Main, those that are read"""


class Part(NamedTuple):
    """A split, or all that there is."""

    annotations: Path
    images: Path
    files: list[Path]
    """the XMLs"""


def find_parts(root: Path) -> list[Part]:
    """Return [all] or, where the split is given, [training, held out]. OSError, or ValueError with the reason."""
    if parts := splits(root, holds=lambda folder: bool(_xmls(folder))):
        return [_part(part) for part in parts]
    whole = _part(root)
    known = {xml.stem: xml for xml in whole.files}
    listed = {name: _listed(known, root / "ImageSets" / "Main" / f"{name}.txt") for name in LISTS}
    held_out = listed["test"] or listed["val"]  # VOC 2007 keeps the annotations of its test set apart
    train = listed["train"]
    if listed["test"]:
        train = listed["trainval"] or listed["train"] + listed["val"]
    if held_out and train:
        if both := set(train) & set(held_out):
            raise ValueError(f"{min(both)} is in the list of the training images and in that of the held-out ones")
        return [whole._replace(files=files) for files in (_in_order(train), held_out)]
    return [whole._replace(files=listed["trainval"])] if listed["trainval"] else [whole]


def _part(folder: Path) -> Part:
    annotations = _named(folder, ANNOTATIONS) or folder
    files = _xmls(annotations)
    if not files:
        missing = f"there is no folder {folder / 'annotations'}, and " if annotations == folder else ""
        raise ValueError(f"{missing}{annotations} holds no XML file")
    return Part(annotations, _named(folder, IMAGES) or (annotations if find_images(annotations)[0] else folder), files)


def _named(folder: Path, names: Sequence[str]) -> Path | None:
    return next((entry for name in names for entry in folders_of(folder) if entry.name.lower() == name), None)


def _xmls(folder: Path) -> list[Path]:
    return _in_order([path for path in walk(folder) if path.suffix.lower() == ".xml"])


def _in_order(files: Sequence[Path]) -> list[Path]:
    return sorted(files, key=lambda path: (len(path.name), path.name))


def _listed(known: Mapping[str, Path], file: Path) -> list[Path]:
    """Return the XMLs that a list names, of those `known` by their stems; none without a list.

    A name is the first word of a line: that of an image, or its stem. It warns of the names of no XML, unless all are:
    VOC 2007 keeps the annotations of its test set apart.
    """
    lines = decode_text(read_bytes(file, "text")).splitlines() if file.exists() else []
    names = [words[0] for words in map(str.split, lines) if words]
    found = {name: known.get(name) or known.get(Path(name).stem) for name in names}
    missing = [name for name, xml in found.items() if xml is None]
    if missing and len(missing) < len(found):
        warnings.warn(f"{file}: {len(missing)} of its {len(found)} names have no XML, {missing[0]} first", stacklevel=2)
    return _in_order([xml for xml in dict.fromkeys(found.values()) if xml])


def find_photographs(part: Part, filenames: Sequence[str]) -> list[Path]:
    """Return the photograph of each XML: the one that it names, or else the one of the XML's own name.

    The second is for a <filename> that is missing, has no suffix, or names no file. ValueError for an XML without a
    photograph, for one whose name several have, and for two XMLs of one photograph.
    """
    found: dict[Path, Path] = {}
    by_name: dict[str, list[Path]] = {}
    for path in find_images(part.images)[0]:
        by_name.setdefault(path.stem, []).append(path)
    for file, filename in zip(part.files, filenames, strict=True):
        named = part.images / filename
        of_its_name = by_name.get(file.stem, [])
        if filename and named.is_file():
            chosen = named
        elif len(of_its_name) > 1:
            raise ValueError(f"{file} may be of {of_its_name[0]} or of {of_its_name[1]}")
        elif of_its_name:
            chosen = of_its_name[0]
        else:
            raise ValueError(
                f"{file} is of no photograph: {named if filename else part.images / file.stem} is not there"
            )
        if chosen in found:
            raise ValueError(f"{found[chosen]} and {file} are both of {chosen}")
        found[chosen] = file
    return list(found)
