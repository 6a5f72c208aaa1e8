"""Cache preprocessed tensors in files: built once, then read memory-mapped.

An entry is one safetensors file, named by its key and the digest of its content. The key depends on everything that the
content depends on: a changed source or parameter has another entry. A damaged entry does not fit the digest in its
name and is built again. Two processes that build an entry at once write equal files and rename them to the same name.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from fn.files import is_sound, remove_leftovers, require_file, write_digested, write_rows_digested


def user_cache() -> Path:
    """Return the project's folder in the user's cache folder: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "functional-torch"


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Return the digest of the names of images below `root` and of their contents, but not of dates and owners."""
    digest = hashlib.sha256()
    for path in sorted(files):
        require_file(path, "image")
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(json.dumps([path.relative_to(root).as_posix(), content]).encode())
    return digest.hexdigest()


def cached(
    build: Callable[[], dict[str, Tensor]], parameters: Mapping[str, Any], folder: Path | None = None
) -> dict[str, Tensor]:
    """Return the tensors of `build()`, from the cache if they were built with these `parameters` before.

    `parameters` must name everything that the tensors depend on. Writing to the tensors does not change the file.
    """
    folder = user_cache() / "tensors" if folder is None else folder
    key = _key(parameters)
    with contextlib.suppress(OSError):  # an entry that cannot be read or removed, or that another process removed
        for entry in _sound(folder, key, ".safetensors"):
            return load_file(entry)
    tensors = {name: x.contiguous() for name, x in build().items()}
    try:
        remove_leftovers(folder)
        return load_file(write_digested(folder, key, ".safetensors", save(tensors)))
    except OSError:  # the disk is full or read-only: the next run builds again
        return tensors


def cached_rows(
    build: Callable[[], Iterable[bytes]], parameters: Mapping[str, Any], folder: Path | None = None
) -> Path:
    """Return the file of the rows of `build()`, end to end, from the cache if it was built with these `parameters`.

    A row is written as it comes: together they need not fit into memory. OSError where they cannot be written.
    """
    folder = user_cache() / "tensors" if folder is None else folder
    key = _key(parameters)
    with contextlib.suppress(OSError):
        for entry in _sound(folder, key, ".rows"):
            return entry
    remove_leftovers(folder)
    return write_rows_digested(folder, key, ".rows", build())


def _key(parameters: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:32]


def _sound(folder: Path, key: str, suffix: str) -> Iterator[Path]:
    """Yield the entries of a key that hold what they should; remove the others."""
    for entry in folder.glob(f"{key}-*{suffix}"):
        if is_sound(entry):
            yield entry
        else:
            entry.unlink()
