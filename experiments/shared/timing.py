"""Seconds of a call."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def timed(f: Callable[[], Result]) -> tuple[float, Result]:
    """(seconds, result) of `f()`"""
    began = time.perf_counter()
    result = f()
    return time.perf_counter() - began, result
