"""Every number that a function of fn takes has a domain; outside it the function names itself and the argument."""

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import torch
from beartype import BeartypeConf
from beartype.door import is_bearable

from fn import domains
from fn.data.datasets import Split
from fn.optim import sgd
from fn.rng import generator
from tests.test_shape_checks import CHECKED, FUNCTIONS, assert_refused, name_of, valid

TOWER = BeartypeConf(is_pep484_tower=True)
NAMES = {name: domain for name, domain in vars(domains).items() if get_origin(domain) is Annotated}
# (inside, outside)
EXAMPLES = {
    "Count": ([1, 5, True], [0, -1, -(2**40)]),
    "Natural": ([0, 7], [-1, -(2**40)]),
    "Probability": ([0, 0.0, 0.5, 1], [-1e-9, 1.0001, -1, 2, math.inf, -math.inf, math.nan]),
    "Beta": ([0, 0.9], [1.0, 1, -0.1, math.inf, math.nan]),
    "NonNegative": ([0, 0.0, 3, math.inf], [-1e-9, -1, -math.inf, math.nan]),
    "Positive": ([1e-9, 1, math.inf], [0, 0.0, -0.0, -1.0, math.nan]),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_domain_is_what_its_name_says(name):
    inside, outside = EXAMPLES[name]
    assert [is_bearable(x, NAMES[name], conf=TOWER) for x in inside] == [True] * len(inside)
    assert [is_bearable(x, NAMES[name], conf=TOWER) for x in outside] == [False] * len(outside)


def domains_in(annotation: Any) -> Iterator[str]:
    yield from (name for name, domain in NAMES.items() if domain == annotation)
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from domains_in(member)


NUMBERS = [
    (f, parameter.name, domain)
    for f in FUNCTIONS
    if f.__name__[0] != "_"
    for parameter in inspect.signature(f).parameters.values()
    for domain in domains_in(parameter.annotation)
]


def test_most_numbers_have_a_domain():
    assert len(NUMBERS) > 200


ANYTHING = [
    Path(),
    0,
    1,
    1.0,
    "none",
    "fan_in",
    (4, 4, 4),
    ((1.0,),),
    (((1.0, 1.0),),),
    {},
    {"w": torch.ones(2)},
    len,
    None,
    torch.ones(2, 2),
]
ANYTHING += [torch.ones(2, 2), generator(0), sgd(lr=1.0), Split(torch.zeros(2, 1, 3, 3), torch.zeros(2).long())]


def fitting(f: Any) -> dict[str, Any]:
    """Return for each argument a value that its annotation accepts, so that none but the number is refused."""
    given = {}
    for parameter in inspect.signature(f).parameters.values():
        if parameter.default is not parameter.empty:
            given[parameter.name] = parameter.default
        elif parameter.kind is not parameter.VAR_KEYWORD:
            given[parameter.name] = fit(parameter.annotation)
    return given


def fit(annotation: Any) -> Any:
    if inspect.isclass(annotation) and hasattr(annotation, "_fields"):
        return tuple.__new__(annotation, [None] * len(annotation._fields))  # pyright: ignore
    return next(x for x in ANYTHING if is_bearable(x, annotation, conf=TOWER))


@pytest.mark.parametrize(("f", "parameter", "domain"), NUMBERS, ids=name_of)
def test_a_number_outside_is_refused_before_anything_is_computed(f, parameter, domain):
    given = valid(f)[0] if f in CHECKED else fitting(f)
    for number in EXAMPLES[domain][1]:
        assert_refused(f, parameter, given | {parameter: number})
