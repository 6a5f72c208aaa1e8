"""Tell a step by all that its graph hangs on, in words that are the same in every process.

These are its code and all code that it calls, what both close over or read by name, and the state of torch. Of
libraries only what is listed here is known to compute from its arguments alone; it is told by name and version. A step
that reaches anything else has no fingerprint: it is traced in every process, and its graph is the key.
"""

import builtins
import contextlib
import dis
import enum
import functools
import logging
import os
import platform
import sys
import sysconfig
import types
import typing
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import is_dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any, no_type_check

import torch
from beartype.vale._core._valecore import BeartypeValidator
from torch._subclasses import FakeTensor
from torch.utils._pytree import SUPPORTED_NODES

from fn.jit.contents import AGAIN, CHECKS, Identity, JitError, _cell, _parts

FILES = ("collections/", "contextlib.py", "copyreg.py", "dataclasses.py", "difflib.py", "einops/", "enum.py")
FILES += ("functools.py", "operator.py", "torch/_functorch/", "torch/_tensor.py", "torch/autograd/forward_ad.py")
FILES += ("torch/func/", "torch/functional.py", "torch/nn/functional.py")
"""of libraries, whose functions hang on their arguments and on the state of torch alone"""
MODULES = {"collections", "contextlib", "difflib", "einops", "enum", "functools", "itertools", "math", "operator"}
MODULES |= {"torch", "torch._C", "torch._C._functorch", "torch.autograd", "torch.autograd.forward_ad", "torch.fft"}
MODULES |= {"torch.func", "torch.linalg", "torch.nn", "torch.nn.functional", "torch.special"}
"""of libraries, of which a part may be read"""
COMPILED = {"_collections", "_functools", "_operator", "itertools", "math"}
COMPILED |= {"torch._C._fft", "torch._C._functorch", "torch._C._linalg", "torch._C._nn", "torch._C._special"}
"""modules in C whose functions compute from their arguments alone"""
CLASSES = {"collections", "contextlib", "dataclasses", "einops", "enum", "functools", "itertools", "operator", "types"}
"""libraries whose classes are told by name, beside these of torch:"""
CLASSES_OF_TORCH = {torch.Size, torch.Tensor, torch.dtype, torch.device, torch.finfo, torch.iinfo, torch.nn.Parameter}
CLASSES_OF_TORCH |= {FakeTensor, torch._C.TensorBase, torch.Generator}
PATCHED = (torch, torch.functional, torch.func, torch.nn.functional, torch.Tensor, torch._C.TensorBase)
"""where others put functions of theirs, or replace one that torch itself calls"""
BUILTINS = {"abs", "all", "any", "callable", "divmod", "hasattr", "isinstance", "issubclass", "iter", "len"}
BUILTINS |= {"max", "min", "next", "pow", "repr", "round", "sorted", "sum"}
"""the functions among the builtins that compute from their arguments alone; its classes do"""
DUNDERS = {"__call__", "__class__", "__delattr__", "__getitem__", "__init__", "__len__", "__new__", "__post_init__"}
DUNDERS |= {"__name__", "__qualname__", "__setattr__"}
"""of the names with two underscores, those that may be read; others lead to what is not told, as f.__globals__ does"""
PLAIN = (int, bool, str, bytes, NoneType, float, complex, torch.dtype, torch.device, torch.layout, torch.memory_format)
SINGLE = (..., NotImplemented, typing.Any)
IN_C = (
    types.BuiltinFunctionType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
)
"""functions and attributes that cannot be changed; they are told by their name in what holds them"""
UNTOLD = {"__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__", "__dict__", "__doc__"}
UNTOLD |= {"__dataclass_fields__", "__dataclass_params__", "__firstlineno__", "__module__", "__slotnames__"}
UNTOLD |= {"__orig_bases__", "__static_attributes__", "__weakref__"}
"""of the attributes of a class; its annotations are told apart"""
LIBRARIES = tuple(sysconfig.get_paths()[name] + os.sep for name in ("purelib", "platlib", "stdlib", "platstdlib"))
READS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
HIDDEN = {"STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME"}
"""of what code does: a graph does not show the first two, and a name that is imported there is not followed"""
HEAP = 1 << 9
"""the flag of a class that Python code made"""
log = logging.getLogger(__name__)


class Untold(Exception):
    """Raised for what may differ between two processes that have the same words for it."""


def fingerprint(value: Any) -> str | None:
    """Return the fingerprint of a step and what it is called with; None where something in them cannot be told.

    What that is, is logged at the level DEBUG.

    >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 1) != fingerprint(lambda x: x + 2)
    True
    >>> fingerprint(lambda x: print(x))
    """
    if torch._C._len_torch_function_stack():
        return None
    told = [*environment()]
    try:
        if patches := [*_patches()]:
            raise Untold(f"{', '.join(patches)}: not torch's own")
        _tell(value, told, {})
    except (Untold, JitError, RecursionError, NameError) as error:  # the last: an annotation that is not defined
        log.debug("no fingerprint: %s %s", type(error).__name__, error)
        return None
    return digest(told)


def digest(told: list[str]) -> str:
    return sha256("\0".join(told).encode("utf-8", "surrogatepass")).hexdigest()


def environment() -> Iterator[str]:
    """Yield what a compiled step hangs on beside its graph: versions, processor, settings."""
    yield from _versions()
    options = {name: value for name, value in os.environ.items() if name.startswith("TORCHINDUCTOR_")}
    options.pop("TORCHINDUCTOR_CACHE_DIR", None)  # TorchInductor sets it, when it is imported
    yield str(sorted(options.items()))
    config: Any = sys.modules.get("torch._inductor.config")
    yield config.codegen_config() if config else ""  # what is not as by default
    jaxtyping: Any = sys.modules.get("jaxtyping")
    yield f"{jaxtyping.config.jaxtyping_disable if jaxtyping else ''}"
    onednn: Any = torch.backends.mkldnn
    yield f"{torch.get_num_threads()} {torch.get_default_dtype()} {onednn.enabled}"
    yield f"{torch.is_grad_enabled()} {torch.is_inference_mode_enabled()} {torch.is_autocast_enabled('cpu')}"
    yield f"{torch.are_deterministic_algorithms_enabled()} {torch.get_autocast_dtype('cpu')}"
    yield f"{onednn.matmul.fp32_precision} {onednn.conv.fp32_precision} {onednn.rnn.fp32_precision}"
    with contextlib.suppress(RuntimeError):  # where these three were set, torch refuses to say the older one
        yield torch.get_float32_matmul_precision()


@cache
def _versions() -> tuple[str, ...]:
    fn = Path(__file__).parent.parent
    ours = [*Path(__file__).parent.glob("*.py"), fn / "checks.py", fn / "indices.py"]
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = {line for line in lines if line.startswith(("flags", "Features"))}
    libraries = ("beartype", "einops", "jaxtyping", "torch")
    versions = (str(getattr(sys.modules.get(name), "__version__", "")) for name in libraries)
    sources = (sha256(path.read_bytes()).hexdigest() for path in sorted(ours))
    return sys.version, str(torch.version.git_version), platform.processor(), *sorted(features), *versions, *sources


@no_type_check
def _tell(value, told, seen):
    """Append to `told` the words for a value and all that it holds."""
    kind = type(value)
    if kind in PLAIN or any(value is x for x in SINGLE):
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
    if isinstance(value, type):
        _tell_class(value, told, seen)
    elif kind is FunctionType:
        _tell_function(value, told, seen)
    elif kind is CodeType:
        _tell_code(value, told, seen)
    elif kind in IN_C:
        _tell_in_c(value, kind, told, seen)
    elif kind is Identity:
        _tell(value.value, told, seen)
    elif kind in (classmethod, staticmethod):
        _tell(value.__func__, told, seen)
    elif kind is property:
        _tell((value.fget, value.fset), told, seen)
    elif kind is functools._lru_cache_wrapper:
        _tell(value.__wrapped__, told, seen)
    elif kind is ContextVar:
        try:
            _tell((value.name, value.get()), told, seen)
        except LookupError:
            raise Untold(value) from None
    elif kind is types.MappingProxyType or kind is dict:
        _tell([*value.items()], told, seen)
    elif kind in (set, frozenset):
        if not all(type(part) in PLAIN for part in value):
            raise Untold(value)
        told += sorted(map(repr, value))
    elif kind is slice:
        _tell((value.start, value.stop, value.step), told, seen)
    elif kind in (torch.Size, range, torch.finfo, torch.iinfo):
        told.append(str(value))
    elif kind in (tuple, list, MethodType):
        parts = _parts(value, kind)
        told.append(str(len(parts)))
        for part in parts:
            _tell(part, told, seen)
    elif kind is BeartypeValidator:  # a condition in an annotation, as fn.domains has them
        condition = value.is_valid
        cells = dict(zip(condition.__code__.co_freevars, condition.__closure__ or (), strict=True))
        if "is_valid" not in cells:
            raise Untold(value)
        _tell(cells["is_valid"].cell_contents, told, seen)
    elif kind.__module__ == "typing" or kind in (types.GenericAlias, types.UnionType):
        _tell_annotation(value, told, seen)
    else:
        parts = _parts(value, kind)
        if parts and type(parts[0]) is Identity:
            raise Untold(f"{value}, which pickle tells by name")
        _tell([kind, *parts], told, seen)


@no_type_check
def _tell_annotation(value, told, seen):
    if origin := typing.get_origin(value):
        _tell((origin if origin.__module__ != "typing" else repr(origin), *typing.get_args(value)), told, seen)
    elif type(value) in (typing.TypeVar, typing._SpecialForm, typing.ForwardRef):
        told.append(repr(value))
    else:
        raise Untold(value)


def _library_file(file: str) -> str | None:
    """Return the name of a file within the installed libraries; None for the reader's and ours."""
    for folder in LIBRARIES:
        if file.startswith(folder):
            return file[len(folder) :].replace(os.sep, "/")
    return None


@no_type_check
def _tell_function(function, told, seen):
    told += [function.__name__, function.__qualname__]
    while function.__globals__.get("__name__") in (*CHECKS, "fn.jit") and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = function.__code__
    if file := _library_file(code.co_filename):
        if not file.startswith(FILES):
            raise Untold(f"{file}: {code.co_qualname}")
        told += [file, code.co_qualname, str(code.co_firstlineno)]
    else:
        _tell([*function.__annotations__.items()], told, seen)
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
    for name in {*code.co_names, *(part for part in code.co_consts if type(part) is str)}:
        if name[:2] == name[-2:] == "__" and name not in DUNDERS:
            raise Untold(name)
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for i, step in enumerate(steps):
        if step.opname in HIDDEN:
            raise Untold(f"{step.opname} {step.argval}")
        if step.opname not in READS:
            continue
        name = step.argval
        told.append(name)
        if name not in namespace and not hasattr(builtins, name):
            raise Untold(f"{name}, which is not defined")
        value = namespace[name] if name in namespace else getattr(builtins, name)
        while isinstance(value, ModuleType):
            if _is_library(value) and value.__name__ not in MODULES:
                raise Untold(value.__name__)
            i += 1
            name = steps[i].argval
            if steps[i].opname not in ("LOAD_ATTR", "LOAD_METHOD") or not hasattr(value, name):
                raise Untold(f"{value.__name__}, of which it is not known what is read")
            told.append(name)
            value = getattr(value, name)
        _tell(value, told, seen)
    for part in code.co_consts:
        if isinstance(part, CodeType):
            _tell_globals(part, namespace, told, seen)


def _patches() -> Iterator[str]:
    """Yield the functions in torch, and the attributes of its classes, that are not torch's own."""
    for holder in PATCHED:
        for name, value in [*vars(holder).items()]:  # a copy, as another thread may import
            if type(value) is FunctionType:
                own = (_library_file(value.__code__.co_filename) or "").startswith(("torch/", "typing"))
            else:
                own = not isinstance(holder, type) or name[:2] == "__" or type(value) in (*IN_C, staticmethod, bool)
            if not own:
                yield f"{holder.__name__}.{name}"


def _is_library(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return module.__name__ != "__main__" and (file is None or _library_file(file) is not None)


@no_type_check
def _tell_in_c(value, kind, told, seen):
    told.append(value.__name__)
    owner = getattr(value, "__self__", None)
    if kind is not types.BuiltinFunctionType:
        _tell(value.__objclass__ if owner is None else owner, told, seen)
    elif value.__module__ in COMPILED or (value.__module__ == "torch" and owner is None):  # such as torch.exp
        told.append(value.__module__)
    elif owner is None or isinstance(owner, ModuleType):
        if owner is not builtins or value.__name__ not in BUILTINS:
            raise Untold(f"{value.__module__}.{value.__name__}")
    else:  # of a value, such as a dict's get
        _tell(owner, told, seen)


def _is_told_by_name(cls: type, module: Any) -> bool:
    """Return whether a class of a library is listed and found under its name in its module."""
    found = module
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if cls in CLASSES_OF_TORCH or (module is builtins and not cls.__flags__ & HEAP):
        return True
    return found is cls and _is_library(module) and cls.__module__.partition(".")[0].lstrip("_") in CLASSES


@no_type_check
def _tell_class(cls, told, seen):
    told.append(f"{cls.__module__} {cls.__qualname__}")
    if cls.__module__.partition(".")[0] == "jaxtyping":
        told.append(repr(cls))  # its dtypes and axes
        _tell(getattr(cls, "array_type", None), told, seen)
        return
    module = sys.modules.get(cls.__module__)
    if _is_told_by_name(cls, module):
        return
    if type(cls) not in (type, enum.EnumType):
        raise Untold(f"{cls}, a class of the class {type(cls)}")
    if cls in SUPPORTED_NODES:
        raise Untold(f"{cls}, registered with torch's trees")
    if module is None or _is_library(module):
        raise Untold(cls)
    _tell([*getattr(cls, "__annotations__", {}).items()], told, seen)
    generated = {"__new__"} if hasattr(cls, "_fields") else {"__hash__"} if is_dataclass(cls) else set()
    attributes = [item for item in sorted(vars(cls).items()) if item[0] not in UNTOLD | generated]
    _tell([cls.__bases__, *attributes], told, seen)
