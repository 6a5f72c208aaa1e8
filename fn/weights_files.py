"""Read the tensors of a file of weights, whatever its suffix; of a file of another kind, say which.

Its first bytes tell what it is. Nothing in a file is executed. ValueError with the reason, to follow the file's name.
"""

import json
import re
import tarfile
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy
import torch
from safetensors.torch import load_file
from torch.serialization import safe_globals

from fn.domains import Count, Natural
from fn.weights_torchscript import torchscript_tensors

MOST_TENSORS, MOST_HEADER = 20_000, 2**24
"""of one file; the largest networks published have a few thousand tensors, and 100 bytes of header for each"""

PICKLE = b"\x80\x02"
"""the first bytes of what torch.save wrote before it wrote archives"""
OTHERS = {
    b"\x1f\x8b": "is compressed with gzip: unpack it first",
    b"BZh": "is compressed with bzip2: unpack it first",
    b"\xfd7zXZ\0": "is compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: unpack it first",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive: unpack it first",
    b"Rar!": "is a RAR archive: unpack it first",
    b"\x89HDF": "is an HDF5 file, as of Keras, not of PyTorch",
    b"\x93NUMPY": "is an array of NumPy, not a state_dict",
    b"GGUF": "is in the GGUF format of llama.cpp, not of PyTorch",
    b"version https://git-lfs": "is a Git-LFS pointer, not the file, which `git lfs pull` fetches",
}
"""the first bytes of files that are not read, and what is said of each"""
SCALAR = numpy.float64().__reduce__()[0]
BESIDE = [Namespace, numpy.dtype, *(type(numpy.dtype(code)) for code in "?bBhHiIlLqQefd")]
BESIDE += [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
"""what training scripts save beside a state_dict: their flags, a best accuracy; to make one runs nothing of the file"""


def load_tensors(path: Path) -> Any:
    """Return what a file of weights holds: a dict of tensors, or of more, where torch.save wrote one.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.pth"
    ...     _ = path.write_text("<!DOCTYPE html><title>Sign in</title>")
    ...     load_tensors(path)
    Traceback (most recent call last):
    ValueError: is an HTML page, not the file: the download needs another address, or a login
    """
    with path.open("rb") as file:
        start = file.read(512)
    _refuse_others(start)
    if start[:2] == b"PK":
        return _of_archive(path)
    if start[257:262] == b"ustar":
        _refuse_tar(path)
    if start[8:9] == b"{" or (path.suffix == ".safetensors" and start[:2] != PICKLE):
        return _of_safetensors(path)
    return _safely(_unpickled, path)


def _refuse_others(start: bytes) -> None:
    if not start:
        raise ValueError("is empty")
    if not any(start):
        raise ValueError("begins with zeros alone, as a file that was not written to its end")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml|!--)", start, re.IGNORECASE):
        raise ValueError("is an HTML page, not the file: the download needs another address, or a login")
    for signature, said in OTHERS.items():
        if start.startswith(signature):
            raise ValueError(said)
    if re.match(rb"\x08.\x12", start, re.DOTALL):  # the fields 1 and 2 of its protobuf: version and producer
        raise ValueError("is an ONNX graph, not a state_dict")
    if len(start) > 8 and not re.search(rb"[^\t\n\r\x20-\x7e]", start):
        raise ValueError(f"is a text, not weights: it begins with {one_line(start[:40].decode())}")


def _of_archive(path: Path) -> Any:
    """Read a zip archive: torch.save writes `data.pkl` into it, TorchScript its code and constants as well."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = archive.namelist()
    except Exception:  # a damaged one, of which torch says more
        return _safely(_unpickled, path)
    names = [name.partition("/")[2] for name in files]
    if "constants.pkl" in names:
        found = _safely(torchscript_tensors, path)
        if not found:
            raise ValueError("is a TorchScript archive without a tensor outside its code, as torch.jit.freeze makes it")
        return found
    if files and all(name.endswith(".npy") for name in files):
        raise ValueError("holds arrays of NumPy (.npz), not a state_dict")
    if "data.pkl" not in names:
        found = ", ".join(one_line(name) for name in files[:3])
        raise ValueError(f"is a zip archive, not of torch.save, that holds {found or 'nothing'}: unpack it first")
    return _safely(_unpickled, path)


def _of_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the header twice: safetensors keeps the last of two equal names, and takes long over very many."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"is not a whole safetensors file (a header of {length:,} bytes in a file of {size:,})")
        if length > MOST_HEADER:
            raise ValueError(f"has a safetensors header of {length:,} bytes, more than {MOST_HEADER:,}")
        header = file.read(length)
    require_few(header.count(b'"data_offsets"'))
    try:
        entries = json.loads(header, object_pairs_hook=_unique, parse_int=_offset)
        if isinstance(entries, dict):
            entries.pop("__metadata__", None)
            require_few(len(entries))
            _require_apart(entries)
        return load_file(path)
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError("is not a whole safetensors file (its header is no JSON)") from None
    except (ValueError, OSError):
        raise
    except Exception as error:  # SafetensorError, KeyError for a dtype, …
        raise ValueError(f"is not a whole safetensors file ({one_line(error, 120)})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; ValueError for a name that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"has {one_line(twice)} twice in its safetensors header")
    return found


def _offset(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"has a number of {len(digits):,} digits in its safetensors header")
    return int(digits)


def _require_apart(entries: dict[str, Any]) -> None:
    """Raise ValueError where two tensors share bytes; other faults of the offsets are left to safetensors."""
    places = [(*entry["data_offsets"], name) for name, entry in entries.items() if _has_place(entry)]
    end, last = 0, ""
    for begin, stop, name in sorted(places):
        if begin < end and stop > begin:
            raise ValueError(f"is no sound safetensors file: {one_line(last)} and {one_line(name)} overlap")
        end, last = max((end, last), (stop, name))


def _has_place(entry: Any) -> bool:
    place = entry.get("data_offsets") if isinstance(entry, dict) else None
    return isinstance(place, list) and len(place) == 2 and all(isinstance(x, int) for x in place)


def require_few(entries: Natural) -> None:
    """Raise ValueError for more than MOST_TENSORS entries.

    >>> require_few(100_000)
    Traceback (most recent call last):
    ValueError: holds 100,000 tensors, more than the 20,000 that are read
    """
    if entries > MOST_TENSORS:
        raise ValueError(f"holds {entries:,} tensors, more than the {MOST_TENSORS:,} that are read")


def _refuse_tar(path: Path) -> NoReturn:
    try:
        with tarfile.open(path) as archive:
            names = archive.getnames()
    except Exception:
        raise ValueError("is a tar archive, and damaged") from None
    if {"storages", "tensors", "pickle"} <= set(names):
        raise ValueError(
            "is in the .tar format of torch before 0.1.10, whose code is not run: save its state_dict anew"
        )
    found = ", ".join(one_line(name) for name in names[:3])
    raise ValueError(f"is a tar archive that holds {found or 'nothing'}: unpack it first")


def _unpickled(path: Path) -> Any:
    """Return the tensors, containers of them, and what is BESIDE, that torch.save wrote."""
    with path.open("rb") as file, warnings.catch_warnings(), safe_globals(BESIDE):
        warnings.simplefilter("ignore")  # of the pickle's protocol, which the reader of a published file has as is
        return torch.load(file, "cpu", weights_only=True)


def _safely(read: Callable[[Path], Any], path: Path) -> Any:
    """Return what `read` makes of the file; ValueError, in one line, for whatever torch says of it."""
    try:
        return read(path)
    except OSError:
        raise
    except Exception as error:  # damage surfaces as UnpicklingError, EOFError, RuntimeError, KeyError, …
        if other := re.search(r"GLOBAL (\S+)", str(error)):
            said = f"holds more than tensors: {one_line(other[1])}, which is not run; a state_dict alone would be read"
            raise ValueError(said) from None
        said = str(error).rpartition("WeightsUnpickler error:")[2]  # before it torch tells how to run the file
        reason = next(iter(said.strip().splitlines()), type(error).__name__)
        raise ValueError(f"is damaged, or holds more than tensors ({one_line(reason, 80)})") from None


def one_line(text: object, most: Count = 60) -> str:
    r"""Return a text from a file in one printable line, of at most `most` characters and a sign that more follows.

    >>> one_line("layer\n1"), one_line("weight" * 100, 8)
    ('layer\\n1', 'weightwe…')
    """
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[: most + 1])
    return line if len(line) <= most else f"{line[:most]}…"
