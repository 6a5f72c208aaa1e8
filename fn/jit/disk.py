"""Keep a compiled step on the disk: the next process runs it without a trace, and without importing TorchInductor.

TorchInductor writes a step as one Python function that calls kernels in C++. That function is kept, and of each kernel
its file and its digest: under the key of the step (fn.jit.fingerprint), and under that of its graph, for a step without
a fingerprint, which has to be traced. An entry that is damaged, or whose kernels are gone or changed, is made again.
"""

# pyright: reportAttributeAccessIssue=false

import contextlib
import getpass
import hashlib
import marshal
import math
import os
import pickle
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple, no_type_check

import torch
from torch import Tensor

from fn.files import MOST_BYTES, read_bytes, write_atomic

MANY = 512
"""entries that are kept, of at most MOST_BYTES; the ones used longest ago are removed, their kernels are torch's"""
DIGITS = 64
"""of a digest"""
OFF = "TORCHINDUCTOR_FORCE_DISABLE_CACHES"
"""the variable by which TorchInductor, and so this too, keeps nothing"""
Run = Callable[..., tuple[Tensor, ...]]


class Parts(NamedTuple):
    """What a compiled step runs."""

    code: bytes
    """the function that calls the kernels, by marshal"""
    kernels: dict[str, tuple[str, str]]
    """for each name the file and its digest"""
    constants: list[Tensor]
    """the last arguments of the function"""


class Kept(NamedTuple):
    """A step from the disk, ready to run, its parts, and what was kept beside them."""

    run: Run
    parts: Parts
    beside: Any


def folder() -> Path:
    """Return the folder of the entries, within that of TorchInductor."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a user without a name, as in a container
        user = f"uid_{os.getuid()}"
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(inductor or Path(tempfile.gettempdir(), f"torchinductor_{user}"), "functional-torch")


def is_empty() -> bool:
    """Return whether no step was ever kept here."""
    try:
        return not any(folder().iterdir())
    except OSError:
        return True


def load(key: str, constants: list[Tensor] | None = None) -> Kept | None:
    """Return the step that was kept under the key, with these constants in place of its own; None if there is none."""
    path = folder() / key
    if os.environ.get(OFF) == "1":
        return None
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return None
        content = read_bytes(path, "program")
    except OSError:
        return None
    try:
        digest, content = content[:DIGITS].decode(), content[DIGITS:]
        if digest != hashlib.sha256(content).hexdigest():
            raise ValueError("the entry is damaged")
        same_key, parts, beside = pickle.loads(content)
        if same_key != key:
            raise ValueError("the entry is of another step")
        parts = parts if constants is None else parts._replace(constants=constants)
        kept = Kept(link(parts), parts, beside)
    except Exception:  # whatever is wrong with it: it is made again
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the ones used longest ago go first
    return kept


def keep(key: str, parts: Parts, beside: Any) -> None:
    """Keep a step under the key, where its folder can be written to and what stands beside it can be pickled."""
    with contextlib.suppress(OSError, pickle.PicklingError, AttributeError, TypeError):
        content = pickle.dumps((key, parts, beside))
        if len(content) > MOST_BYTES["program"] - DIGITS or os.environ.get(OFF) == "1":
            return
        write_atomic(folder() / key, hashlib.sha256(content).hexdigest().encode() + content)
        for path in sorted(folder().iterdir(), key=lambda path: path.stat().st_mtime)[:-MANY]:
            path.unlink(missing_ok=True)


def find_parts(module: ModuleType, constants: list[Tensor]) -> Parts | None:
    """Return what the step in a module of TorchInductor's runs; None if that is more than its kernels and torch."""
    code, found, kernels = module.call.__func__.__code__, vars(module), {}
    for name in code.co_names:
        value = found.get(name)
        home = getattr(value, "__self__", None) if isinstance(value, BuiltinFunctionType) else None
        if name.startswith("cpp_fused") and isinstance(home, ModuleType) and home.__file__:
            if not Path(home.__file__).exists():
                return None
            kernels[name] = home.__file__, _digest(home.__file__)
        elif name == "extern_kernels":
            if any(getattr(value, x) is not getattr(torch, x, None) for x in code.co_names if hasattr(value, x)):
                return None
        elif name in found and name not in _names():
            return None
    return Parts(marshal.dumps(code), kernels, constants)


def link(parts: Parts) -> Run:
    """Return the step, ready to run."""
    names = {name: _load_kernel(*file) for name, file in parts.kernels.items()}
    call = FunctionType(marshal.loads(parts.code), names | _names())

    @no_type_check
    def run(*leaves):
        with torch.no_grad():
            return call(None, [*leaves, *parts.constants])

    return run


@cache
def _names() -> dict[str, Any]:
    """Return what TorchInductor's modules call by these names, kernels apart."""
    guards = torch._C._dynamo.guards
    return {
        "torch": torch,
        "math": math,
        "inf": math.inf,
        "nan": math.nan,
        "device": torch.device,
        "aten": torch.ops.aten,
        "inductor_ops": torch.ops.inductor,
        "extern_kernels": torch,
        "empty_strided": torch.empty_strided,
        "empty_strided_cpu": guards._empty_strided_cpu,
        "reinterpret_tensor": guards._reinterpret_tensor,
        "assert_size_stride": guards.assert_size_stride,
        "assert_size_stride_grouped": guards.assert_size_stride_grouped,
        "assert_alignment": guards.assert_alignment,
        "assert_tensor_metadata": _assert_tensor_metadata,
    }


def _assert_tensor_metadata(x: Tensor, shape: tuple, strides: tuple, dtype: torch.dtype, name: str) -> None:
    if x.dtype != dtype:
        raise RuntimeError(f"{name}: dtype {x.dtype}, expected {dtype}")
    torch._C._dynamo.guards.assert_size_stride(x, shape, strides, name)


def _digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _load_kernel(file: str, digest: str) -> Callable[..., None]:
    """Return the kernel of a file; ValueError if it is not the one that was compiled."""
    if _digest(file) != digest:
        raise ValueError("a kernel has changed")
    # by this variable a kernel finds the function that gives the address of a tensor's memory
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(
        torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr
    )
    loader = ExtensionFileLoader(f"{digest}.kernel", file)
    module = module_from_spec(ModuleSpec(loader.name, loader, origin=file))
    loader.exec_module(module)
    return module.kernel
