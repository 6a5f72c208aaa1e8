"""An error of code that the reader wrote: in a sentence, with the line that it came from."""

import inspect
import linecache
import re
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

FN, EXPERIMENTS = (Path(__file__).parents[2] / name for name in ("fn", "experiments"))
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def explain(error: BaseException) -> str:
    """Return the error in a sentence, and below it the line that it came from: the reader's, if one is on the way.

    Of a refusal of ours, a ValueError that is raised in words, only the reader's line says more than the sentence. Of a
    shape that is refused, the tensors that the call was given follow, a line each.
    """
    frames = _frames(error)
    refusal = isinstance(error, ValueError) and (not frames or str(frames[-1].line).startswith("raise"))
    cause = error.__cause__
    while cause is not None:  # jit says in words of its own what the reader's line did
        frames, cause = frames + _frames(cause), cause.__cause__
    line = _nearest_line(frames)
    if line is None or (refusal and _is_ours(line)):
        return _sentence(error)
    where = f"  {line.filename}:{line.lineno}, in {line.name}: {line.line}"
    return "\n".join([_sentence(error), where, *_tensors_given(error)])


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory could not be had: Python raises a MemoryError, torch a RuntimeError that says so."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in ("allocate memory", "out of memory"))


def out_of_memory(error: BaseException) -> str | None:
    """Return what is said of an error for want of memory; None for any other."""
    if not is_out_of_memory(error):
        return None
    asked = re.search(r"tried to allocate ([\d.]+ ?\w+)", str(error), re.IGNORECASE)
    return f"out of memory{f': {asked[1]} were asked for at once' if asked else ''}; smaller sizes need less"


def definition(f: Callable) -> str:
    """Return the line that a function begins with, written as `explain` writes lines."""
    while isinstance(f, partial):
        f = f.func
    code = getattr(inspect.unwrap(f), "__code__", None)
    if code is None:
        return f"  in {f!r}"
    numbers = range(code.co_firstlineno, code.co_firstlineno + 9)  # decorators come first
    lines = {number: linecache.getline(code.co_filename, number).strip() for number in numbers}
    starts = [n for n, line in lines.items() if line.startswith("def ") and code.co_name != "<lambda>"]
    number = starts[0] if starts else code.co_firstlineno
    return f"  {code.co_filename}:{number}, in {code.co_name}: {lines[number]}"


def runs_inside(error: BaseException, file: str) -> bool:
    """Return whether the error came from code that was called in this file, not from the call itself."""
    return _frames(error)[-1].filename != file


def _sentence(error: BaseException) -> str:
    """Return the first line; of a shape that is refused the function, the argument, its shape, and what is expected."""
    if lacking := out_of_memory(error):
        return lacking
    lines = str(error).splitlines() or [""]
    found = {name: value for name, _, value in (line.partition(": ") for line in lines)}
    where = re.match(r"Type-check error whilst checking the (parameters|return value) of (\S+)\.$", lines[0])
    if not where or "Expected type" not in found:
        return lines[0] if isinstance(error, ValueError) else f"{type(error).__name__}: {lines[0]}"
    argument = re.search(r"parameter '(\w+)'", str(error)) if where[1] == "parameters" else None
    actual = found.get("Actual value", "something else").removesuffix("(torch)")
    expected = found["Expected type"].removeprefix("<class '").removesuffix("'>.").removesuffix(".")
    expected = re.sub(r"jaxtyping\.|typing\.|collections\.abc\.", "", expected)
    expected = re.sub(r"Annotated\[(.+?), ([^\[\]]*)\]", r"\1 \2", expected)
    sizes = [line for line in lines if re.fullmatch(r"\w+=.+", line) and "[Tensor" in expected]
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


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the lines that led to the error, outside the libraries and the checks."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != str(FN / "checks.py")]
    return [f for f in frames if Path(f.filename).exists() and not f.filename.startswith(LIBRARIES)]


def _is_ours(line: traceback.FrameSummary) -> bool:
    return any(Path(line.filename).is_relative_to(folder) for folder in (FN, EXPERIMENTS))


def _nearest_line(frames: Sequence[traceback.FrameSummary]) -> traceback.FrameSummary | None:
    """Return the innermost line of the reader's; else that outside the operations of `fn`, which models call."""
    above = [frame for frame in frames if Path(frame.filename).parent not in (FN, FN / "jit")]
    above = [frame for frame in above if not _is_ours(frame)] or above
    return (above or frames or [None])[-1]


def first_line(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
