"""Read the tensors of a TorchScript archive, and none of its code.

Such an archive is what torch.save writes and, beside it, code and constants. Without these two, torch's own reader of
tensors alone takes it, once every class of the script is an empty one.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.jit import _pickle


class _Module:
    """Stands for every class of a script: attributes, and no code."""

    def __setstate__(self, attributes: Any) -> None:
        self.attributes = attributes if isinstance(attributes, dict) else {}


KEPT = re.compile(r"[^/]+/(data\.pkl|version|byteorder|data/[^/]+)")
"""the entries of an archive that torch.save writes too"""
LISTS = [_pickle.build_intlist, _pickle.build_doublelist, _pickle.build_boollist, _pickle.build_tensorlist]
LISTS += [_pickle.restore_type_tag]
"""of torch, each of which returns its argument"""


def torchscript_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a script by the names that they have in a state_dict.

    >>> import warnings
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
    ...     path = Path(folder) / "a.pt"
    ...     torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)).save(str(path))
    ...     torchscript_tensors(path).keys()
    dict_keys(['weight', 'bias'])
    """
    content, scripts = io.BytesIO(), []
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(content, "w") as tensors:
        kept = [entry for entry in archive.infolist() if KEPT.fullmatch(entry.filename)]
        if sum(entry.file_size for entry in kept) > path.stat().st_size:
            raise RuntimeError("its tensors are compressed, which torch does not do")
        for entry in kept:
            tensors.writestr(entry.filename, archive.read(entry))
            if entry.filename.endswith("/data.pkl"):
                named = [str(arg) for code, arg, _ in pickletools.genops(archive.read(entry)) if code.name == "GLOBAL"]
                scripts += [name.replace(" ", ".") for name in named]
    classes = [(_Module, name) for name in scripts if name.startswith("__torch__.")]
    content.seek(0)
    with torch.serialization.safe_globals([*classes, *LISTS]):
        return dict(_tensors(torch.load(content, "cpu", weights_only=True)))


def _tensors(module: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    for name, x in getattr(module, "attributes", {}).items():
        if isinstance(x, Tensor):
            yield f"{prefix}{name}", x
        elif isinstance(x, _Module) and depth < 50:
            yield from _tensors(x, f"{prefix}{name}.", depth + 1)
