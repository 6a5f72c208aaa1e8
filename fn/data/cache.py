"""Preprocess once, and read it memory-mapped ever after.

An entry is one safetensors file, named by its key and the digest of its content. The key is made of all that the
content depends on, so a changed source or parameter is another entry; a damaged one no longer fits its name, and is
made anew.
Two processes that build one entry at once write equal files aside and rename them to the same name: either may win.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from fn.files import is_sound, remove_leftovers, write_digested


def user_cache() -> Path:
    """The project's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "functional-torch"


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """A digest of the files' names below `root` and of their contents; dates and owners do not count."""
    digest = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(json.dumps([path.relative_to(root).as_posix(), content]).encode())
    return digest.hexdigest()


def cached(
    build: Callable[[], dict[str, Tensor]], parameters: Mapping[str, Any], folder: Path | None = None
) -> dict[str, Tensor]:
    """The tensors that `build()` makes, from the cache where `parameters`, all that they depend on, have been met.

    Treat them as read-only: pages are shared with the file's other readers until written to.
    """
    folder = user_cache() / "tensors" if folder is None else folder
    key = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:32]
    with contextlib.suppress(OSError):  # one that cannot be read or removed, or that another process just removed
        for entry in folder.glob(f"{key}-*.safetensors"):
            if is_sound(entry):
                return load_file(entry)
            entry.unlink()
    tensors = {name: x.contiguous() for name, x in build().items()}
    try:
        remove_leftovers(folder)
        return load_file(write_digested(folder, key, ".safetensors", save(tensors)))
    except OSError:  # a full or read-only disk costs the next run the time, not this one the data
        return tensors
