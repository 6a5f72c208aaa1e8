"""Load the reader's function from its file, or say in words why that fails."""

import ast
import inspect
import traceback
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from experiments.drill import cut
from experiments.drill.catalogue import DRILLS
from experiments.drill.forbidden import find_forbidden, is_beside
from experiments.drill.limits import ANSWER, OutOfTime, timed
from experiments.shared.errors import first_line
from experiments.shared.source import run_file


class Wrong(Exception):
    """Says in words why a file is refused before any test runs."""


def load(name: str, file: Path, seconds: float, *, allow_torch: bool = False) -> Any:
    """Return the function or class that the drill asks for.

    Wrong if the file has none, or leaves the work to another.
    """
    wanted, ours = DRILLS[name].of.partition(":")[2], resolve_name(DRILLS[name].of)
    read(name, file, allow_torch=allow_torch)
    yours = getattr(import_file(file, seconds), wanted, None)
    if not callable(yours):
        raise Wrong(f"{file.name} has no function `{wanted}`")
    if not (inspect.isfunction(yours) or inspect.isclass(ours)):
        raise Wrong(f"`{wanted}` is a {type(yours).__name__}, no function of Python's: write `def {wanted}(…)`")
    for own, model in functions(yours, ours):
        compare_signatures(own, model)
    return yours


def read(name: str, file: Path, *, allow_torch: bool = False) -> None:
    """Raise Wrong if the text alone shows that it is no answer: no Python, empty, or its work left to another."""
    tree = parse(file)
    wanted = DRILLS[name].of.partition(":")[2]
    if forbidden := find_forbidden(tree, name, allow_torch=allow_torch):
        refusal = calls(*forbidden, file)
        if is_beside(tree, wanted, forbidden[0]):
            refusal = Wrong(f"{refusal}\nyour `{wanted}` does not use this line: take it out of {file.name}")
        raise refusal
    require_written(tree, wanted, file)


def refusal(name: str, file: Path) -> list[str]:
    """Return what the text alone tells against an answer; nothing if it has to be run."""
    try:
        read(name, file)
    except Wrong as error:
        return str(error).splitlines()
    except (RecursionError, MemoryError):  # for a process with limits
        return []
    return []


def calls(line: int, function: str, file: Path) -> Wrong:
    """Return the refusal of an answer that leaves its work to another function."""
    text = file.read_text().splitlines()[line - 1].strip()
    return Wrong(f"this calls {function}, which does what you are to write\n  line {line}: {text}")


def parse(file: Path) -> ast.Module:
    """Read the file; Wrong if it is not Python."""
    try:
        return ast.parse(file.read_text(), str(file))
    except SyntaxError as error:
        raise Wrong(f"{file.name}, line {error.lineno}: {error.msg}\n    {(error.text or '').strip()}") from None
    except (OSError, ValueError) as error:
        raise Wrong(f"{file} cannot be read: {error}") from None


def require_written(tree: ast.Module, wanted: str, file: Path) -> None:
    if not tree.body:
        raise Wrong(f"{file.name} is empty: write `{wanted}` from memory, its signature too")
    try:
        if cut.is_empty(cut.definition_of(tree, wanted)):
            raise Wrong(f"nothing is written yet below the signature of `{wanted}`")
    except LookupError:
        others = ", ".join(f"`{node.name}`" for node in tree.body if isinstance(node, cut.Definition))
        if not any(isinstance(node, ast.Name) and node.id == wanted for node in ast.walk(tree)):
            raise Wrong(f"{file.name} has no `{wanted}`: it defines {others or 'no function'}") from None


def import_file(file: Path, seconds: float) -> ModuleType:
    """Return the file as a module; Wrong if it fails or does not end."""
    with timed(seconds):
        try:
            return run_file(file, ANSWER)
        except OutOfTime:
            raise Wrong(f"{file.name} does not end when it is imported") from None
        except BaseException as error:
            lines = [f"{file.name} fails when it is imported: {first_line(error)}", *line_of(error, file)]
            raise Wrong("\n".join(lines)) from None


def functions(yours: Any, ours: Any) -> list[tuple[Any, Any]]:
    """Return (yours, ours) of the function, or of each method of the class."""
    if not inspect.isclass(ours):
        return [(yours, ours)]
    methods = [name for name, value in vars(ours).items() if inspect.isfunction(value)]
    if missing := [name for name in methods if name not in vars(yours)]:
        raise Wrong(f"`{ours.__name__}` has no method `{missing[0]}`")
    return [(vars(yours)[name], vars(ours)[name]) for name in methods]


def compare_signatures(yours: Any, ours: Any) -> None:
    """Raise Wrong for the first difference in names, their order, their kinds and their defaults."""
    own, wanted = (inspect.signature(inspect.unwrap(f)).parameters for f in (yours, ours))
    if list(own) != list(wanted):
        raise Wrong(
            f"the signature of `{ours.__name__}` takes ({', '.join(own)}), expected ({', '.join(wanted)}): "
            "names and order count"
        )
    for name, parameter in wanted.items():
        if own[name].kind != parameter.kind:
            kinds = own[name].kind.description, parameter.kind.description
            raise Wrong(f"the parameter `{name}` is to be {kinds[1]}, not {kinds[0]}")
        defaults = [p.default for p in (own[name], parameter)]
        if defaults[0] is not defaults[1] and repr(defaults[0]) != repr(defaults[1]):
            given, expected = ("missing" if d is inspect.Parameter.empty else repr(d) for d in defaults)
            raise Wrong(f"the default of `{name}` is {given}, expected {expected}")


def line_of(error: BaseException, file: Path) -> list[str]:
    """Return the line of the answer that raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return [f"  line {frames[-1].lineno}: {frames[-1].line}"] if frames else []
