"""Tell a step by all that its graph hangs on, in words that are the same in every process.

These are its code and all code that it calls, what both close over or read by name, and the state of torch. Libraries
that only compute are told by name and version. What cannot be told so has no fingerprint: what reads a file, the time
or a random number, prints, or holds a tensor.
"""

import builtins
import dis
import os
import platform
import sys
import sysconfig
import types
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any, no_type_check

import torch
from torch import Tensor

from fn.jit.contents import AGAIN, CHECKS, JitError, _cell, _parts

PURE = {"_collections", "_collections_abc", "_contextvars", "_functools", "_operator", "abc", "beartype", "builtins"}
PURE |= {"collections", "contextlib", "contextvars", "copy", "copyreg", "dataclasses", "einops", "enum", "functools"}
PURE |= {"inspect", "itertools", "jaxtyping", "math", "numbers", "operator", "pybind11_builtins", "torch", "types"}
PURE |= {"typing"}
"""libraries whose results hang on their arguments and on the state of torch alone"""
IMPURE = {
    "__import__",
    "breakpoint",
    "eval",
    "exec",
    "globals",
    "hash",
    "id",
    "input",
    "locals",
    "open",
    "print",
    "vars",
}
"""of the builtins"""
LIBRARIES = tuple(sysconfig.get_paths()[name] + os.sep for name in ("purelib", "platlib", "stdlib", "platstdlib"))
PLAIN = (int, bool, str, bytes, NoneType, float, complex, torch.dtype, torch.device, torch.layout, torch.memory_format)
PRINTED = (torch.Size, slice, range, type(...), torch._ops.OpOverload, torch._ops.OpOverloadPacket)
"""told by what `str` makes of them"""
COMPILED = (
    types.BuiltinFunctionType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
)
"""functions and attributes in C: they cannot be changed, and are told by their name in what holds them"""
UNTOLD = {"__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__", "__dict__", "__doc__"}
UNTOLD |= {"__firstlineno__", "__module__", "__slotnames__", "__static_attributes__", "__weakref__", "_abc_impl"}
"""of the attributes of a class; its annotations are told apart"""
READS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
WRITES = {"STORE_GLOBAL", "DELETE_GLOBAL"}


class Untold(Exception):
    """Raised for what may differ between two processes that have the same words for it."""


def fingerprint(value: Any) -> str | None:
    """Return the fingerprint of a step and what it is called with; None where something in them cannot be told.

    >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 1) != fingerprint(lambda x: x + 2)
    True
    >>> fingerprint(lambda x: print(x))
    """
    if torch._C._len_torch_function_stack():
        return None
    told = [*_environment()]
    try:
        _tell(value, told, {})
    except (Untold, JitError, RecursionError, NameError):  # the last: an annotation in words that is not defined
        return None
    return sha256("\0".join(told).encode("utf-8", "surrogatepass")).hexdigest()


def _environment() -> Iterator[str]:
    """Yield what a compiled step hangs on beside its code: versions, processor, settings."""
    yield from _versions()
    options = {name: value for name, value in os.environ.items() if name.startswith("TORCHINDUCTOR_")}
    options.pop("TORCHINDUCTOR_CACHE_DIR", None)  # TorchInductor sets it, when it is imported
    yield str(sorted(options.items()))
    config: Any = sys.modules.get("torch._inductor.config")
    yield config.codegen_config() if config else ""  # what is not as by default
    yield f"{torch.get_num_threads()} {torch.get_default_dtype()} {torch.get_float32_matmul_precision()}"
    yield f"{torch.is_grad_enabled()} {torch.is_inference_mode_enabled()} {torch.backends.mkldnn.enabled}"
    yield f"{torch.are_deterministic_algorithms_enabled()}"
    yield f"{torch.is_autocast_enabled('cpu')} {torch.get_autocast_dtype('cpu')}"


@cache
def _versions() -> tuple[str, ...]:
    ours = [*Path(__file__).parent.glob("*.py"), Path(__file__).parent.parent / "checks.py"]
    cpu = Path("/proc/cpuinfo")
    flags = {line for line in cpu.read_text().splitlines() if line.startswith("flags")} if cpu.exists() else set()
    versions = (str(getattr(sys.modules.get(name), "__version__", "")) for name in sorted(PURE))
    sources = (sha256(path.read_bytes()).hexdigest() for path in sorted(ours))
    return sys.version, str(torch.version.git_version), platform.processor(), *sorted(flags), *versions, *sources


@no_type_check
def _tell(value, told, seen):
    """Append to `told` the words for a value and all that it holds."""
    kind = type(value)
    if kind in PLAIN:
        told.append(f"{kind.__name__} {value!r}")
    elif value is AGAIN:
        told.append("AGAIN")
    elif id(value) in seen:
        told.append(f"again {seen[id(value)][0]}")
    else:
        seen[id(value)] = len(seen), value
        told.append(f"{kind.__module__}.{kind.__qualname__}")
        _tell_parts(value, kind, told, seen)


@no_type_check
def _tell_parts(value, kind, told, seen):
    if isinstance(value, Tensor):
        raise Untold(value)
    if isinstance(value, PRINTED) or kind.__module__ == "typing":
        told.append(str(value))
    elif kind is FunctionType:
        _tell_function(value, told, seen)
    elif kind is CodeType:
        _tell_code(value, told, seen)
    elif kind is ModuleType:
        if not _tell_library(value, told):
            raise Untold(value)
    elif isinstance(value, type):
        _tell_class(value, told, seen)
    elif isinstance(value, COMPILED):
        told.append(value.__name__)
        owner = getattr(value, "__self__", None)
        _tell(value.__objclass__ if owner is None and hasattr(value, "__objclass__") else owner, told, seen)
    elif isinstance(value, classmethod | staticmethod):
        _tell(value.__func__, told, seen)
    elif kind is property:
        _tell((value.fget, value.fset), told, seen)
    elif kind is ContextVar:
        try:
            _tell((value.name, value.get()), told, seen)
        except LookupError:
            raise Untold(value) from None
    elif kind is dict:
        _tell([*value.items()], told, seen)
    elif kind in (set, frozenset):
        if not all(type(part) in PLAIN for part in value):
            raise Untold(value)
        told += sorted(map(repr, value))
    elif kind in (tuple, list, MethodType):
        parts = _parts(value, kind)
        told.append(str(len(parts)))
        for part in parts:
            _tell(part, told, seen)
    elif hasattr(value, "__wrapped__"):  # of functools.cache
        _tell(value.__wrapped__, told, seen)
    else:
        _tell([kind, *_parts(value, kind)], told, seen)


@no_type_check
def _library(file):
    """Return the name of the installed library that a file is of; None for the reader's and ours."""
    for folder in LIBRARIES:
        if file.startswith(folder):
            return Path(file[len(folder) :]).parts[0].partition(".")[0]
    return None


@no_type_check
def _tell_library(module, told):
    """Append the name of a module and return True, if it is of a library; Untold for one that may not only compute."""
    file = getattr(module, "__file__", None)
    if module.__name__ == "__main__" or (file and not _library(file)):
        return False
    if module.__name__.partition(".")[0] not in PURE:
        raise Untold(module)
    told.append(module.__name__)
    return True


@no_type_check
def _tell_function(function, told, seen):
    while function.__globals__.get("__name__") in CHECKS and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = function.__code__
    if library := _library(code.co_filename):
        if library not in PURE:
            raise Untold(function)
        told += [library, code.co_qualname, str(code.co_firstlineno)]
    else:
        told.append(repr(function.__annotations__))
        _tell(code, told, seen)
        _tell_globals(code, function.__globals__, told, seen)
    cells = [_cell(cell) for cell in function.__closure__ or ()]
    _tell([cells, function.__defaults__, function.__kwdefaults__, vars(function)], told, seen)


@no_type_check
def _tell_code(code, told, seen):
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    numbers = code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    _tell([code.co_code, code.co_exceptiontable, *names, *numbers, *code.co_consts], told, seen)


@no_type_check
def _tell_globals(code, namespace, told, seen):
    """Append the words for what a function reads by name: globals, and of modules among them the part that it reads."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for i, step in enumerate(steps):
        if step.opname in WRITES or (step.opname == "IMPORT_NAME" and step.argval.partition(".")[0] not in PURE):
            raise Untold(step.argval)
        if step.opname not in READS:
            continue
        name = step.argval
        told.append(name)
        if name not in namespace:
            if name in IMPURE or not hasattr(builtins, name):
                raise Untold(name)
            continue
        value = namespace[name]
        while isinstance(value, ModuleType):
            is_library = _tell_library(value, told)
            i += 1
            if steps[i].opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                if is_library:
                    break
                raise Untold(value)
            told.append(steps[i].argval)
            value = getattr(value, steps[i].argval, None)
        else:
            _tell(value, told, seen)
    for part in code.co_consts:
        if isinstance(part, CodeType):
            _tell_globals(part, namespace, told, seen)


@no_type_check
def _tell_class(cls, told, seen):
    told.append(f"{cls.__module__} {cls.__qualname__}")
    found = module = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is cls and _tell_library(module, told):
        return
    told.append(repr(getattr(cls, "__annotations__", None)))
    generated = {"__new__"} if hasattr(cls, "_fields") else set()  # by typing.NamedTuple
    attributes = [item for item in sorted(vars(cls).items()) if item[0] not in UNTOLD | generated]
    _tell([cls.__bases__, *attributes], told, seen)
