"""Keep a compiled step on the disk: the next process runs it without a trace, and without importing TorchInductor.

TorchInductor writes a step as one Python function that calls kernels in C++. That function is kept, and of each kernel
its file and its digest. An entry that is damaged, or whose kernels are gone or changed, is removed and made again.
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

from fn.files import write_atomic

MANY = 256
"""entries that are kept; the ones used longest ago are removed"""
LARGEST = 2**24
"""bytes of an entry"""
DIGITS = 64
"""of a digest"""
Run = Callable[..., tuple[Tensor, ...]]


class Parts(NamedTuple):
    """What a compiled step runs."""

    code: bytes
    """the function that calls the kernels, by marshal"""
    kernels: dict[str, tuple[str, str]]
    """for each name the file and its digest"""
    constants: list[Tensor]
    """the last arguments of the function"""


def folder() -> Path:
    """Return the folder of the entries, within that of TorchInductor."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # a user without a name, as in a container
        user = f"uid_{os.getuid()}"
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(inductor or Path(tempfile.gettempdir(), f"torchinductor_{user}"), "functional-torch")


def load(key: str) -> tuple[Run, Any] | None:
    """Return the step that was kept under the key, ready to run, and what was kept beside it; None if there is none."""
    path = folder() / key
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return None
        digest, content = content[:DIGITS].decode(), content[DIGITS:]
        if digest != hashlib.sha256(content).hexdigest():
            raise ValueError("the entry is damaged")
        same_key, parts, beside = pickle.loads(content)
        if same_key != key:
            raise ValueError("the entry is of another step")
        run = link(parts)
        os.utime(path)  # the ones used longest ago go first
    except Exception:  # whatever is wrong with it: it is made again
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    return run, beside


def keep(key: str, parts: Parts, beside: Any) -> None:
    """Keep a step under the key, where its folder can be written to and what stands beside it can be pickled."""
    with contextlib.suppress(OSError, pickle.PicklingError, AttributeError, TypeError):
        content = pickle.dumps((key, parts, beside))
        if len(content) > LARGEST:
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
