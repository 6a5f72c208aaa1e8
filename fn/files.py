"""Write files that are either whole or not there, and check that they still hold what was written."""

import contextlib
import hashlib
import os
import re
import tempfile
import time
from pathlib import Path


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write beside `path`, flush to the disk, then rename: a crash leaves the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as aside:
        try:
            aside.write(content.encode() if isinstance(content, str) else content)
            aside.flush()
            os.fsync(aside.fileno())
            Path(aside.name).chmod(0o644)
            Path(aside.name).replace(path)
        except BaseException:
            Path(aside.name).unlink(missing_ok=True)
            raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Flush the folder's entries, so that a rename survives a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_digested(folder: Path, stem: str, suffix: str, content: bytes) -> Path:
    """Write `stem`-`digest``suffix`, atomically: the name says what the content must be, to the last bit."""
    path = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}{suffix}"
    write_atomic(path, content)
    return path


def is_sound(path: Path) -> bool:
    """Return whether the file holds what its name says: no bit flipped, none missing. OSError if it cannot be read."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return re.fullmatch(r".*-([0-9a-f]{16})", path.stem) is not None and path.stem.endswith(f"-{digest[:16]}")


def remove_leftovers(folder: Path, *, older_than: float = 3600.0) -> None:
    """Remove the files that killed writers left, `older_than` seconds old or more; a living writer may need its own."""
    for aside in folder.glob(".*-????????????????.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - aside.stat().st_mtime >= older_than:
                aside.unlink()
