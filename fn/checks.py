"""Check the arguments and the result of every function of fn; a signature that passed before is only looked up.

Whether a call fits its annotations hangs only on its signature: type, dtype and shape of each tensor, the value of each
number and string, the type of anything else. jaxtyping checks every new signature of arguments, and with these every
new signature of a result; one seen before costs a look-up. What no signature describes is checked at every call.
"""

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from inspect import get_annotations
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, config, jaxtyped

check = jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))
"""decorates with the full check; the numeric tower lets `lr=1` pass for a float"""
VALUES = (int, float, str, type)
OPEN = (Any, None, dict[str, Any], Mapping[str, Any], list[Any])
"""of these, no entry but the first key is looked at"""
FEW, MANY = 8, 200
"""the entries of a tuple or list, and the signatures of a function, that are remembered at most"""


def remember(f: Any) -> Any:
    """Return `f`, which checks every new signature of its arguments before it runs, and of its result after.

    >>> def half(x: float) -> float:
    ...     return x / 2
    >>> half = remember(half)
    >>> half(3), half(3)  # the second is looked up
    (1.5, 1.5)
    """
    if isinstance(f, type) or not all(map(hangs_on_signature, get_annotations(f).values())):
        return check(f)
    passed: dict[tuple | None, set[tuple | None]] = {}
    known = threading.local()

    @wraps(f)
    def call_or_known(*args, **kwargs):
        return known.result if vars(known) else f(*args, **kwargs)

    checked = check(call_or_known)

    @wraps(checked)
    def remembered(*args, **kwargs):
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return f(*args, **kwargs)
        arguments = sign((*args, *kwargs.values()), kwargs) if kwargs else sign(args)
        results = passed.get(arguments)
        if results is None:
            result = checked(*args, **kwargs)
        else:
            result = f(*args, **kwargs)
            if sign((result,)) in results:
                return result
            known.result = result
            try:
                checked(*args, **kwargs)  # f does not run again
            finally:
                del known.result
        if arguments and (signature := sign((result,))):
            if len(passed) >= MANY or len(results or ()) >= MANY:
                passed.clear()
            passed.setdefault(arguments, set()).add(signature)
        return result

    return remembered


def hangs_on_signature(hint: Any) -> bool:
    """Return whether the signature of a value determines if it fits the annotation.

    >>> hangs_on_signature(float | None), hangs_on_signature(list[float])  # of a list, one entry is looked at
    (True, False)
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:  # as in fn.domains, which look at every entry
        return args[0] in (int, float) or get_origin(args[0]) is Sequence
    if origin in (Union, UnionType, tuple):
        return all(map(hangs_on_signature, args))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return not re.search(r"{\w*[^\w}]", hint.dim_str)  # {spec.cells}, a size that an object holds
    return origin in (Literal, Callable) or hint in OPEN or (not origin and isinstance(hint, type))


def sign(values: Iterable, names: Iterable[str] = ()) -> tuple | None:
    """Return the signature of the values, the last of which may have names; None if one has no signature.

    >>> sign([0.5, None, {"weight": 1}])
    (<class 'float'>, 0.5, <class 'NoneType'>, <class 'dict'>, <class 'str'>)
    """
    signature: list[Any] = [*names]
    try:
        for x in values:
            kind = type(x)
            signature.append(kind)
            match part_of(kind):
                case "shape":
                    signature += (x.dtype, x.shape)
                case "value":
                    signature.append(x)
                case "first key":
                    signature.append(type(next(iter(x))) if x else None)
                case "entries":
                    signature.append(entries := sign(x) if len(x) <= FEW else None)
                    if entries is None:
                        return None
                case "unknown":
                    return None
        hash(key := tuple(signature))
    except TypeError:  # a size is a symbol, as under torch.compile
        return None
    return key


@cache
def part_of(kind: type) -> str:
    """Return what the signature of a value holds beside its type."""
    if kind is dict:  # of dict[str, Any], the first key is looked at
        return "first key"
    if issubclass(kind, VALUES):
        return "value"
    if hasattr(kind, "dtype"):
        return "shape"
    return "entries" if issubclass(kind, tuple | list) else "unknown" if hasattr(kind, "__len__") else "type"
