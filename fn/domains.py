"""Domains of numbers, checked as shapes are: a number outside is a TypeCheckError that names the argument."""

from typing import Annotated

from beartype.vale import Is

Count = Annotated[int, Is[lambda n: n >= 1]]
Natural = Annotated[int, Is[lambda n: n >= 0]]
Probability = Annotated[float, Is[lambda p: 0 <= p <= 1]]
Beta = Annotated[float, Is[lambda beta: 0 <= beta < 1]]
NonNegative = Annotated[float, Is[lambda x: x >= 0]]
Positive = Annotated[float, Is[lambda x: x > 0]]
