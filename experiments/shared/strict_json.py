"""JSON that any reader takes: it has no NaN and no infinity, so that a number which is not finite becomes null."""

import json
import math
from typing import Any


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return the JSON of `value`, with null for what is not finite."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def loads_numbers(text: str | bytes) -> Any:
    """Return the value of JSON in which every null stands for a number that was not finite: NaN."""
    return json.loads(text, object_hook=_numbers)


def _numbers(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in entry.items()}
