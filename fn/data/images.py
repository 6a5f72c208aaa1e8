"""Decode photographs with Pillow, within limits; find them in folders as people have them."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fn.files import require_file

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""what Pillow may take a file for; of its other formats EPS would run another program"""
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
SUFFIXES += (".ppm", ".pgm", ".pbm", ".pnm")
MOST_PIXELS, LONGEST_SIDE = 2**28 // 3, 2**16 - 1
"""a quarter of a GiB of colours, from where on Pillow warns; the longest side of a JPEG"""
HIDDEN = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")
"""what systems leave in folders, besides names that begin with a dot"""


class ImageError(Exception):
    """A file that is not read as an image; the message is the reason, in one line."""


@contextmanager
def photograph(path: Path) -> Iterator[Any]:
    """Yield a photograph as Pillow's image: in RGB of 8 bits, upright as its EXIF says, the first frame of several.

    ImageError for what is no regular file, too large, damaged, or of 16 or more bits per pixel, which 8 would clip.
    """
    from PIL import Image, ImageOps

    try:
        require_file(path, "image")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the next lines say it
            image = Image.open(path, formats=FORMATS)
        with image:
            _require_size(*image.size)
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels are of mode {image.mode}, not of 8 bits")
            ImageOps.exif_transpose(image, in_place=True)
            yield image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # decoders raise many kinds for a damaged file: SyntaxError, struct.error
        raise ImageError(first_line(error)) from None


def _require_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        most = f"{MOST_PIXELS:,} pixels, and {LONGEST_SIDE:,} on a side, are read"
        raise ValueError(f"it is of {width:,}×{height:,} pixels; at most {most}")


def first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().splitlines()[0].rstrip(":") if str(error).strip() else type(error).__name__


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is left out, as one that the user does not see.

    >>> [is_hidden(name) for name in (".ipynb_checkpoints", "._x.png", "__MACOSX", "cat")]
    [True, True, True, False]
    """
    return name.startswith(".") or name in HIDDEN


def walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, of hidden ones none. Links are followed, but not twice to a folder, nor up."""
    seen, waiting = {(found.st_dev, found.st_ino) for found in map(Path.stat, root.resolve().parents)}, [root]
    while waiting:
        folder = waiting.pop()
        found = folder.stat()
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            entries = sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))
            waiting += reversed([entry for entry in entries if entry.is_dir()])
            yield from (entry for entry in entries if not entry.is_dir())


def find_images(root: Path) -> tuple[list[Path], Counter[str]]:
    """Return the images below a folder, in order of folder and name, and a count of the suffixes of other files."""
    files = list(walk(root))
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    others = Counter(path.suffix or "no suffix" for path in files if path.suffix.lower() not in SUFFIXES)
    return sorted(images, key=lambda path: (str(path.parent), path.name)), others
