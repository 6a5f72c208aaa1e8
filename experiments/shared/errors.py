"""An error of code that the reader wrote: in a sentence, with the line that it came from."""

import inspect
import re
import sysconfig
import traceback
from pathlib import Path

FN = Path(__file__).parents[2] / "fn"
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def explain(error: BaseException) -> str:
    """Return the error in a sentence, and below it the line of code that it came from; of a ValueError the sentence.

    Of a shape that is refused, the tensors that the call was given follow, a line each.
    """
    line = None if isinstance(error, ValueError) else _nearest_line(error)
    if line is None:
        return _sentence(error)
    where = f"  {line.filename}:{line.lineno}, in {line.name}: {line.line}"
    return "\n".join([_sentence(error), where, *_tensors_given(error)])


def _sentence(error: BaseException) -> str:
    """Return the first line; of a shape that is refused the function, the argument, its shape, and what is expected."""
    lines = str(error).splitlines() or [""]
    found = {name: value for name, _, value in (line.partition(": ") for line in lines)}
    where = re.match(r"Type-check error whilst checking the (parameters|return value) of (\S+)\.$", lines[0])
    if not where or "Expected type" not in found:
        return lines[0] if isinstance(error, ValueError) else f"{type(error).__name__}: {lines[0]}"
    argument = re.search(r"parameter '(\w+)'", str(error)) if where[1] == "parameters" else None
    actual = found.get("Actual value", "something else").removesuffix("(torch)")
    expected = (
        found["Expected type"].removeprefix("<class '").removesuffix("'>.").removesuffix(".").replace("jaxtyping.", "")
    )
    sizes = [line for line in lines if re.fullmatch(r"\w+=.+", line)]
    known = f", where {', '.join(sizes)}" if sizes else ""
    return f"{where[2]}: {argument[1] if argument else 'the result'} is {actual}, not {expected}{known}"


def _tensors_given(error: BaseException) -> list[str]:
    """Return a line for each tensor among the arguments of the call that a shape check refused."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    calls = [f.f_locals.get("bound") for f in frames if Path(f.f_code.co_filename).parent.name == "jaxtyping"]
    bound = next((call for call in reversed(calls) if isinstance(call, inspect.BoundArguments)), None)
    if bound is None or type(error).__name__ != "TypeCheckError":
        return []
    from torch import Tensor  # here, not above: it takes seconds, which --help need not wait for

    from fn.tensors import summarize

    tensors = {name: x for name, x in bound.arguments.items() if isinstance(x, Tensor)}
    widest = max(map(len, tensors), default=0)
    return [f"    {name.ljust(widest)}  {summarize(x)}" for name, x in tensors.items()]


def _nearest_line(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost line outside the libraries and the operations of `fn`, which a model calls."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).exists()]
    own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)]
    above = [frame for frame in own if Path(frame.filename).parent != FN]
    return (above or own or [None])[-1]
