"""Every number that a function of fn takes has a domain; outside it the function names itself and the argument."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import pytest
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import AbstractArray

import fn
from fn import domains
from tests.test_shape_checks import FUNCTIONS, name_of

TOWER = BeartypeConf(is_pep484_tower=True)
HUGE = 2**62


class Numbers(NamedTuple):
    inside: Sequence[Any]
    outside: Sequence[Any]


NOT_NUMBERS = ("3", None, [], 1j)
NOT_WHOLE = (*NOT_NUMBERS, 1.5, math.nan, math.inf)
NOT_IN_INT64 = (2**63, -(2**70))
NOT_FLOATS = (*NOT_NUMBERS, math.nan, 10**400, -(10**400))
ONE_OR_TWO = ((), (1, 1, 1), (1, -1), (-1,), (1, 1.5), "1")
EXAMPLES = {
    "Count": Numbers([1, 5], [0, True, -1, HUGE, -HUGE, *NOT_WHOLE]),
    "Natural": Numbers([0, 7], [True, -1, HUGE, -HUGE, *NOT_WHOLE]),
    "Ordinal": Numbers([0, HUGE], [True, -1, *NOT_IN_INT64, *NOT_WHOLE]),
    "Integer": Numbers([0, -1, HUGE, -HUGE], [False, *NOT_IN_INT64, *NOT_WHOLE]),
    "NonZero": Numbers([1, -1, HUGE], [0, False, *NOT_IN_INT64, *NOT_WHOLE]),
    "Probability": Numbers([0, 0.0, 0.5, 1], [-1e-9, 1.0001, -1, 2, math.inf, -math.inf, *NOT_FLOATS]),
    "Share": Numbers([1e-9, 0.5, 1], [0, -0.0, 1.0001, math.inf, -math.inf, *NOT_FLOATS]),
    "Beta": Numbers([0, 0.9], [1.0, 1, -0.1, math.inf, -math.inf, *NOT_FLOATS]),
    "ProbabilityOrOff": Numbers([0, 1, 0.25, -1], [-0.5, -2, 1.0001, 2, -math.inf, math.inf, *NOT_FLOATS]),
    "NonNegative": Numbers([0, 0.0, 3, math.inf], [-1e-9, -1, -math.inf, *NOT_FLOATS]),
    "Magnitude": Numbers([0, 0.0, 3], [-1e-9, -1, math.inf, -math.inf, *NOT_FLOATS]),
    "Positive": Numbers([1e-9, 1], [0, 0.0, -0.0, -1.0, math.inf, -math.inf, *NOT_FLOATS]),
    "Finite": Numbers([-1.5, 0, 3], [math.inf, -math.inf, *NOT_FLOATS]),
    "Real": Numbers([-1.5, 0, math.inf, -math.inf], NOT_FLOATS),
    "Counts": Numbers([(3, 4), [1], ()], [(3, 0), [0, 3, 3], (True,), (1, HUGE), (2.5,), ("3",), 3, 1.5, None]),
    "Naturals": Numbers([(3, 0), ()], [(3, -1), [-1, 3, 3], (HUGE,), (2.5,), ("3",), 3, None]),
    "Integers": Numbers([(3, -1), [HUGE]], [(3, 2**63), (1.5, 1), (math.nan,), 3, None]),
    "ImageShape": Numbers([(3, 8, 8)], [(8, 8), (3, 8, 0), (3, 8, 8, 8), (-1, 8, 8), (3, 8.0, 8), 3, None]),
    "ImageSize": Numbers([(8, 9)], [(8,), (0, 8), (8, 8, 8), (8, math.nan), 8, None]),
    "Window": Numbers([3, (3,), (3, 5)], [0, -1, HUGE, (0, 1), *ONE_OR_TWO, 1.5, math.nan, None]),
    "Border": Numbers([0, (0,), (3, 0)], [-1, HUGE, *ONE_OR_TWO, 1.5, math.nan, None]),
    "Grid": Numbers([0, (0, 3), (None, 2)], [-1, HUGE, (3,), (-1, 2), (2, 1.5), (1, 1, 1), math.nan, None]),
    "Positives": Numbers([(1.5, 2), ()], [(0, 1), (1, -1), (math.nan,), (1, math.inf), (10**400,), ("1",), 1.5, None]),
    "Magnitudes": Numbers([(1.5, 0), ()], [(1, -1), (math.nan,), (1, math.inf), (10**400,), 1.5, None]),
    "Finites": Numbers([(1.5, -2), ()], [(1, math.nan), (math.inf,), (10**400,), 1.5, None]),
    "Levels": Numbers(
        [[[(9, 9.5)]]],
        [[], [[]], [[(9, 9)], [(0, 9)]], [[(9, math.nan)]], [[(9, math.inf)]], [[9]], [[(9, "9")]], 9, None],
    ),
    "Factors": Numbers([{"head": 0.1}, {}], [{"head": -0.1}, {"head": math.nan}, {"head": math.inf}, 0.1, None]),
    "Rectangles": Numbers([[(9, 9.5)]], [[], [(0, 9)], [(9, 9), (9, math.nan)], [(9, math.inf)], [9], 9, None]),
    "Bands": Numbers([{"all": (0, 9.5)}], [{}, {"all": (9, 3)}, {"all": (-1, 3)}, {"all": (math.nan, 3)}, 9, None]),
}
NAMES: dict[str, Any] = {name: vars(domains)[name] for name in EXAMPLES}


@pytest.mark.parametrize("name", NAMES)
def test_a_domain_is_what_its_name_says(name):
    inside, outside = EXAMPLES[name]
    assert [is_bearable(x, NAMES[name], conf=TOWER) for x in inside] == [True] * len(inside)
    assert [x for x in outside if is_bearable(x, NAMES[name], conf=TOWER)] == []


ENDS = {"Count": (1, 2**31 - 1), "Natural": (0, 2**31 - 1), "Ordinal": (0, 2**63 - 1)}
ENDS |= dict.fromkeys(("Integer", "NonZero"), (-(2**63), 2**63 - 1))
ENDS |= {"Counts": ENDS["Count"], "Naturals": ENDS["Natural"], "Integers": ENDS["Integer"]}


@pytest.mark.parametrize("name", ENDS)
def test_the_ends_of_a_range_are_inside_and_their_neighbours_are_not(name):
    least, most = ENDS[name]
    numbers = [[n] if name[-1] == "s" else n for n in (least - 1, least, most, most + 1)]
    assert [is_bearable(n, NAMES[name], conf=TOWER) for n in numbers] == [False, True, True, False]


def test_every_domain_has_examples():
    kinds = {name for name, x in vars(domains).items() if get_origin(x) in (Annotated, Union, UnionType)}
    assert kinds == set(EXAMPLES)


def domain_of(annotation: Any) -> str | None:
    """Return the domain of the numbers that an argument takes, alone or beside None, a tensor or a word."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for name, domain in NAMES.items():
        own = get_args(domain) if get_origin(domain) in (Union, UnionType) else (domain,)
        if all(any(one == part for part in parts) for one in own):
            return name
    return None


PLAIN, SCALAR = "a number without a domain", "a scalar tensor"


def bare(annotation: Any) -> Iterator[str]:
    """Yield what an annotation takes of numbers without a domain."""
    if get_origin(annotation) is Annotated or get_origin(annotation) is Literal:
        return
    if annotation in (int, float):
        yield PLAIN
    elif inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        if annotation.dim_str == "" and "bool" not in str(annotation.dtypes):  # pyright: ignore
            yield SCALAR
    else:
        for member in get_args(annotation):
            yield from bare(member)


def arguments() -> Iterator[tuple[str, Any]]:
    """Yield ("fn.module.function.argument", annotation), and of a NamedTuple or a dataclass each field."""
    for f in FUNCTIONS:
        if f.__name__[0] != "_":
            for parameter in inspect.signature(f).parameters.values():
                yield f"{name_of(f)}.{parameter.name}", parameter.annotation
    for info in pkgutil.walk_packages(fn.__path__, "fn."):
        for name, kind in vars(importlib.import_module(info.name)).items():
            if inspect.isclass(kind) and kind.__module__ == info.name and name[0] != "_":
                yield from ((f"{info.name}.{name}.{field}", a) for field, a in inspect.get_annotations(kind).items())


def found(kind: str) -> set[str]:
    return {name for name, annotation in arguments() if kind in bare(annotation)}


MEASURED = "a measurement, drawn or summed as it is: any number has a meaning, NaN too"
COORDINATE = "any number is a place in or outside a picture"
FILLED = "fn fills it in itself, nobody gives it"
READ = "of a file's header, or any size"
NO_TORCH = "this file imports no torch, for --help to be quick; NaN removes nothing"
BARE = {
    "fn.checkpoint.Progress.best": MEASURED,
    "fn.data.idx.read_idx.shape": READ,
    "fn.data.image_folders.Found.labels": FILLED,
    "fn.data.voc.Annotation.size": FILLED,
    "fn.data.stored.Stored.size": FILLED,
    "fn.draw.labels.place_labels.boxes": COORDINATE,
    "fn.draw.lines.Seeds.runs": MEASURED,
    "fn.draw.lines.curves.panels": MEASURED,
    "fn.draw.lines.spread.marked": MEASURED,
    "fn.draw.outlines.Drawn.box": COORDINATE,
    "fn.files.remove_leftovers.older_than": NO_TORCH,
    "fn.gradcheck.largest.values": MEASURED,
    "fn.gradcheck.smallest.values": MEASURED,
    "fn.jit.compiler.Program.donated": FILLED,
    "fn.jit.compiler.Program.strides": FILLED,
    "fn.metrics.add_examples.metrics": MEASURED,
    "fn.trace.Call.expected": FILLED,
    "fn.trace.Call.input": FILLED,
    "fn.trace.Call.multiply_adds": FILLED,
    "fn.trace.Call.output": FILLED,
    "fn.trace.Call.parameters": FILLED,
} | {
    f"fn.workarounds.torch_conv2d.{name}": "conv2d, its caller, checks it"
    for name in ("stride", "pads", "dilation", "groups")
}
"""the numbers without a domain, and why; a field with one is checked where a function takes its number"""


def test_a_number_without_a_domain_has_a_reason():
    assert found(PLAIN) == set(BARE)


# A tensor's number is not looked at: under jit, vmap and on an accelerator there is none at hand.
TENSORS = {
    "dropout_key": "every int64 is a key",
    "key": "every int64 is a key",
    "lr": "a rate that a schedule computes; a NaN shows in the loss of the next step",
    "step": "the number of updates so far, which the optimizer counts",
}


def test_a_tensor_for_a_number_is_one_of_these():
    assert {name.rpartition(".")[2] for name in found(SCALAR)} == set(TENSORS)


NUMBERS = [
    (f, parameter.name, domain)
    for f in FUNCTIONS
    if f.__name__[0] != "_"
    for parameter in inspect.signature(f).parameters.values()
    if (domain := domain_of(parameter.annotation))
]
