"""Read files within limits, write files that are either whole or not there, check that they hold what was written."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal
from unicodedata import category

Kind = Literal["image", "xml", "json", "text", "idx", "log", "tensor", "program", "rows"]
MOST_BYTES: dict[Kind, int] = {
    "image": 2**28,
    "xml": 2**24,
    "json": 2**26,
    "text": 2**28,
    "idx": 2**28,
    "log": 2**30,
    "tensor": 2**33,
    "program": 2**24,
    "rows": 2**42,
}
"""the size of the largest file of a kind that is read; an IDX file counts as it is unpacked"""
KINDS_OF_FILE = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def require_file(path: Path, kind: Kind) -> None:
    """Raise OSError unless `path` is a regular file within MOST_BYTES. It stands before every reader.

    A FIFO would keep its reader waiting, /dev/zero never ends. The `strerror` is the reason, in words.

    >>> require_file(Path("/dev/zero"), "image")
    Traceback (most recent call last):
    OSError: [Errno 22] it is a device, not a regular file: '/dev/zero'
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        other = KINDS_OF_FILE.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {other}, not a regular file", str(path))
    if found.st_size > MOST_BYTES[kind]:
        raise OSError(errno.EFBIG, f"its {found.st_size:,} bytes are more than {MOST_BYTES[kind]:,}", str(path))


def read_bytes(path: Path, kind: Kind) -> bytes:
    """Return the content of a file within the limits of its kind, see `require_file`."""
    require_file(path, kind)
    with path.open("rb") as file:
        content = file.read(MOST_BYTES[kind] + 1)  # the files of /proc have no size
    if len(content) > MOST_BYTES[kind]:
        raise OSError(errno.EFBIG, f"it holds more than {MOST_BYTES[kind]:,} bytes", str(path))
    return content


def read_json(path: Path) -> Any:
    """Return the value of a JSON file, see `parse_json`; OSError or ValueError for one that is not read."""
    return parse_json(read_bytes(path, "json"))


def parse_json(text: bytes | str) -> Any:
    """Return the value of a JSON text; ValueError for what cannot be written again as strict JSON in UTF-8.

    So NaN and Infinity are refused, 1e999 too, and a lone surrogate, unless it stands for a byte of a file's name.

    >>> parse_json('{"loss": NaN}')
    Traceback (most recent call last):
    ValueError: it holds NaN or Infinity, which is no JSON
    """
    try:
        value = json.loads(text)
        again = json.dumps(value, allow_nan=False, ensure_ascii=False)
        again.encode("utf-8", "surrogateescape")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no character") from None
    except ValueError as error:
        if "not JSON compliant" in str(error):
            raise ValueError("it holds NaN or Infinity, which is no JSON") from None
        raise
    return value


def as_label(name: str) -> str:
    r"""Return the name of a class as a label of one line: a control character or a line break as its escape.

    >>> as_label("red\ncell"), as_label("naïve 👩‍🔬")
    ('red\\ncell', 'naïve 👩‍🔬')
    """
    return "".join(repr(c)[1:-1] if category(c) in ("Cc", "Zl", "Zp") else c for c in name)


def decode_text(content: bytes) -> str:
    r"""Return the text of bytes in UTF-8, or in what a byte order mark says; lines end with \n. ValueError for others.

    Control characters are refused: UTF-16 without a mark looks like a text with one after each letter.

    >>> decode_text("é\r\n".encode("utf-16"))
    'é\n'
    """
    marks = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32"}
    marks |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # after those of UTF-32, which begin with them
    encoding = next((marks[mark] for mark in marks if content.startswith(mark)), "utf-8")
    said = encoding.removesuffix("-sig").upper()
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"no text in {said}: byte {error.start} cannot be read") from None
    if control := re.search(r"[\0-\x08\x0e-\x19\x1c-\x1f]", text):  # not those of lines, pages and colours
        name = "NUL" if control[0] == "\0" else f"U+{ord(control[0]):04X}"
        like = ", as in UTF-16 without a byte order mark" if encoding == "utf-8" else ""
        raise ValueError(f"no text in {said}: character {control.start()} is {name}{like}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def write_atomic(path: Path, content: bytes | str | Iterable[bytes]) -> None:
    """Write beside `path`, flush to the disk, then rename: a crash leaves the old file or the new one, never half.

    Content in parts is written as it comes, and need not fit into memory.
    """
    content = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as aside:
        try:
            for part in [content] if isinstance(content, bytes) else content:
                aside.write(part)
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


def write_rows_digested(folder: Path, stem: str, suffix: str, rows: Iterable[bytes]) -> Path:
    """Write rows end to end as they come, named as `write_digested` names a file."""
    digest = hashlib.sha256()

    def counted() -> Iterator[bytes]:
        for row in rows:
            digest.update(row)
            yield row

    aside = folder / f".{stem}-{'0' * 16}{suffix}.{os.getpid()}"
    write_atomic(aside, counted())
    return aside.replace(folder / f"{stem}-{digest.hexdigest()[:16]}{suffix}")


def is_sound(path: Path) -> bool:
    """Return whether the file holds what its name says: no bit flipped, none missing. OSError if it cannot be read."""
    require_file(path, "rows" if path.suffix == ".rows" else "tensor")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return re.fullmatch(r".*-([0-9a-f]{16})", path.stem) is not None and path.stem.endswith(f"-{digest[:16]}")


def remove_leftovers(folder: Path, *, older_than: float = 3600.0) -> None:
    """Remove the files that killed writers left, `older_than` seconds old or more; a living writer may need its own."""
    for aside in folder.glob(".*-????????????????.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - aside.stat().st_mtime >= older_than:
                aside.unlink()
