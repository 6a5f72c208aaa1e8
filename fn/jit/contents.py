"""What an argument that is no tensor holds, at every depth: an object that changed must not run an older program."""

from functools import partial
from types import FunctionType, MethodType, ModuleType, NoneType
from typing import no_type_check

from torch import Tensor


class JitError(TypeError):
    """Raised for a step that cannot be traced; says what to change in it."""


class Identity:
    """Equals only another of the same object, which it keeps alive, so that no other takes its id."""

    @no_type_check
    def __init__(self, value):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


CHECKS = ("fn.checks", "jaxtyping._decorator")
"""modules whose functions check the one that they wrap, and remember what passed"""
IMMUTABLE = (int, float, complex, str, bytes, tuple)
"""whose subclasses hold a value that a __reduce__ of their own may leave out"""
AGAIN = object()
"""stands before the number of a part that was met before, as an object may hold itself"""


@no_type_check
def append_contents(value, signature):
    """Append to `signature` the kinds and plain values that make up a value, as `copy.deepcopy` would find them.

    Of a function: which one it is, what it closes over, its defaults and attributes; of a class its plain attributes;
    not the globals that they read. JitError for a tensor, which only dicts, tuples and lists may hold, and for what
    cannot be copied, such as a generator or a lock. Within a function or a class such a part counts as itself.
    """
    try:
        _append(value, signature, {})
    except RecursionError:
        raise JitError(f"the {type(value).__name__} is nested too deep for jit") from None


@no_type_check
def _append(value, signature, seen):
    kind = type(value)
    if kind in (int, bool, str, bytes, NoneType):
        signature += (kind, value)
    elif kind in (float, complex):  # 0.0 and -0.0 are equal, NaN is not equal to itself
        signature += (kind, repr(value))
    elif kind is Identity:
        signature.append(value)
    elif id(value) in seen:
        signature += (AGAIN, seen[id(value)][0])
    else:
        seen[id(value)] = len(seen), value
        lenient = isinstance(value, type | FunctionType)
        parts = [Identity(value), *_parts_of_code(value)] if lenient else _parts(value, kind)
        signature += (kind, len(parts))
        for part in parts:
            try:
                _append(part, signature, seen)
            except JitError:
                if not lenient:
                    raise
                signature.append(Identity(part))


@no_type_check
def _parts_of_code(value):
    """List what a function or a class may hold beside its code."""
    if isinstance(value, type):
        named = [item for base in value.__mro__[:-1] for item in vars(base).items()]
        return [x for name, x in named if not name.startswith("__") and not callable(x) and not hasattr(x, "__get__")]
    while value.__globals__["__name__"] in CHECKS:
        value = value.__wrapped__
    cells = [_cell(cell) for cell in value.__closure__ or ()]
    return [*cells, value.__defaults__, value.__kwdefaults__, vars(value)]


@no_type_check
def _parts(value, kind):
    if isinstance(value, Tensor):
        raise JitError("a tensor in an object would be frozen; jit takes tensors in dicts, tuples and lists")
    if kind in (tuple, list):
        return value
    if kind is ModuleType:
        return [Identity(value)]
    if kind is MethodType:
        return [value.__func__, value.__self__]
    if kind is partial:
        return [value.func, value.args, value.keywords, vars(value)]
    try:
        reduced = value.__reduce_ex__(4)
        state = object.__getstate__(value)  # also what a __reduce__ or __getstate__ of its own leaves out
    except Exception as error:
        raise JitError(f"jit cannot see whether the {kind.__name__} changes from call to call") from error
    if isinstance(reduced, str):  # a global of that name, such as torch.float32
        return [Identity(value), state]
    plain = [base.__getnewargs__(value) for base in IMMUTABLE if isinstance(value, base)]
    parts = [state, *plain, *(list(part) if hasattr(part, "__next__") else part for part in reduced)]
    return [None if type(part) is dict and not part else part for part in parts]  # {} if vars() was ever called


@no_type_check
def _cell(cell):
    try:
        return (cell.cell_contents,)
    except ValueError:  # not bound yet
        return ()
