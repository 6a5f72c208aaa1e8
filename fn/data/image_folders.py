"""A directory per class, as people have them: which folders are splits, which are classes, which are neither."""

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fn.data.images import find_images, is_hidden
from fn.files import as_label

TRAIN = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation", "dev", "eval")
"""names of splits, in any case; of several that are held out the first of these is taken"""
BETWEEN = ("images", "image", "img", "imgs")
"""what may lie between a class and its images"""


class Found(NamedTuple):
    files: list[Path]
    labels: list[int]
    classes: list[str]


def splits(root: Path, holds: Callable[[Path], Any]) -> tuple[Path, Path] | None:
    """Return the folders of a training split and of one held out; None if `root` has no such two.

    A folder that does not hold examples with their answers, as `holds` sees it, is no split. ValueError if several
    folders have the name of one split, in different case.
    """
    named: dict[str, list[Path]] = {}
    for folder in folders_of(root):
        named.setdefault(folder.name.lower(), []).append(folder)
    train, held_out = ([folder for name in names for folder in named.get(name, [])] for names in (TRAIN, HELD_OUT))
    train, held_out = ([folder for folder in part if holds(folder)] for part in (train, held_out))
    if not train or not held_out:
        return None
    for chosen in (train[0], held_out[0]):
        if len(alike := named[chosen.name.lower()]) > 1:
            raise ValueError(f"{root} has {' and '.join(folder.name for folder in alike)}: which is the split?")
    return train[0], held_out[0]


def find_classes(root: Path) -> Found:
    """Return the images of each class: a folder of `root`, with all that lies below it. ValueError if there are none.

    A folder that holds no image, but folders that do, is no class: `root` is then another folder than was meant.
    Files that are not read are counted in a warning.
    """
    folders, files, labels, unread = folders_of(root), [], [], Counter()
    if not folders:
        raise ValueError(f"{root} has no class folder")
    for label, folder in enumerate(folders):
        images, others = find_images(folder)
        unread += others
        below = sorted({path.relative_to(folder).parts[0] for path in images if path.parent != folder})
        if not images:
            held = f", but {_counted(others)}" if others else ""
            raise ValueError(f"{folder} holds no image{held}")
        if len(below) and not any(path.parent == folder for path in images) and not _is_between(below):
            raise ValueError(
                f"{folder} holds no image of its own, but folders ({', '.join(below[:3])}{', …' * (len(below) > 3)}): "
                "each folder of the root is a class, so give the folder whose folders are classes"
            )
        files += images
        labels += [label] * len(images)
    if unread:
        warnings.warn(f"{root}: {_counted(unread)} not read as images", stacklevel=2)
    return Found(files, labels, [as_label(folder.name) for folder in folders])


def _is_between(below: list[str]) -> bool:
    return len(below) == 1 and below[0].lower() in BETWEEN


def folders_of(root: Path) -> list[Path]:
    """Return the folders in a folder, in order of their names, without hidden ones."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def _counted(suffixes: Counter[str]) -> str:
    """Write "3 files (2 .heic, 1 .txt)"."""
    total = suffixes.total()
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
    return f"{total} file{'s' * (total > 1)} ({kinds})"
