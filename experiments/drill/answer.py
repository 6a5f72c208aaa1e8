"""The reader's function, from the file that it was written in; or, in words, why there is none."""

import ast
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

from experiments.drill import cut
from experiments.drill.catalogue import DRILLS
from experiments.drill.door import ANSWER
from experiments.drill.limits import OutOfTime, timed

ELSEWHERE = ("exec", "eval", "compile", "getsource", "exec_module", "run_path", "reload", "__code__", "__file__")
"""names by which an answer could run a text that it does not hold: ours, say"""


class Wrong(Exception):
    """What is said of an answer that never came to a test."""


def answer(name: str, file: Path, seconds: float) -> Any:
    """The reader's function; Wrong says in words what keeps the file from having one."""
    wanted = DRILLS[name].of.partition(":")[2]
    try:
        text = file.read_text()
        tree = ast.parse(text, str(file))
    except SyntaxError as error:
        marked = (error.text or "").rstrip()
        raise Wrong(f"{file.name}, line {error.lineno}: {error.msg}\n    {marked.strip()}") from None
    except (OSError, ValueError) as error:
        raise Wrong(f"{file} cannot be read: {error}") from None
    if not text.strip():
        raise Wrong(f"{file.name} is empty: write `{wanted}` from memory, its signature too")
    try:
        if cut.is_empty(cut.definition_of(tree, wanted)):
            raise Wrong(f"nothing is written yet below the signature of `{wanted}`")
    except LookupError:
        others = [node.name for node in tree.body if isinstance(node, cut.Definition)]
        there = f"it defines {', '.join(f'`{other}`' for other in others)}" if others else "it defines no function"
        if wanted not in text:
            raise Wrong(f"{file.name} has no `{wanted}`: {there}") from None
    _refuse_texts_from_elsewhere(tree, file)
    with timed(seconds):
        try:
            module = _loaded(file)
        except OutOfTime:
            raise Wrong(f"{file.name} does not end when it is imported") from None
        except BaseException as error:
            raise Wrong(
                "\n".join([f"{file.name} fails when it is imported: {named(error)}", *where(error, file)])
            ) from None
    yours = getattr(module, wanted, None)
    if not callable(yours):
        raise Wrong(f"{file.name} has no function `{wanted}`")
    ours = resolve_name(DRILLS[name].of)
    if not (inspect.isfunction(yours) or inspect.isclass(ours)):
        raise Wrong(f"`{wanted}` is a {type(yours).__name__}, no function of Python's: write `def {wanted}(…)`")
    for mine, theirs in _pairs(yours, ours):
        _compare_signatures(mine, theirs)
    return yours


def _refuse_texts_from_elsewhere(tree: ast.Module, file: Path) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            name = node.id
        elif isinstance(node, ast.Attribute) and node.attr not in ("eval", "compile"):  # model.eval(), torch.compile
            name = node.attr
        else:
            continue
        if name in ELSEWHERE:
            raise Wrong(f"{file.name}, line {node.lineno}: `{name}` can run what is written elsewhere: write it here")


def _loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(ANSWER, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[ANSWER] = module
    spec.loader.exec_module(module)
    return module


def _pairs(yours: Any, ours: Any) -> list[tuple[Any, Any]]:
    if not inspect.isclass(ours):
        return [(yours, ours)]
    methods = [name for name, value in vars(ours).items() if inspect.isfunction(value)]
    missing = [name for name in methods if name not in vars(yours)]
    if missing:
        raise Wrong(f"`{ours.__name__}` has no method `{missing[0]}`")
    return [(vars(yours)[name], vars(ours)[name]) for name in methods]


def _compare_signatures(yours: Any, ours: Any) -> None:
    """The names, their order, which are keywords, and the defaults; Wrong names the first difference."""
    own, wanted = (inspect.signature(inspect.unwrap(f)).parameters for f in (yours, ours))
    if list(own) != list(wanted):
        raise Wrong(
            f"the signature of `{ours.__name__}` takes ({', '.join(own)}), expected ({', '.join(wanted)}): "
            "names and order count"
        )
    for name, parameter in wanted.items():
        if own[name].kind != parameter.kind:
            raise Wrong(
                f"the parameter `{name}` is to be {parameter.kind.description}, not {own[name].kind.description}"
            )
        defaults = [p.default for p in (own[name], parameter)]
        if defaults[0] is not defaults[1] and repr(defaults[0]) != repr(defaults[1]):
            said = ["missing" if d is inspect.Parameter.empty else repr(d) for d in defaults]
            raise Wrong(f"the default of `{name}` is {said[0]}, expected {said[1]}")


def named(error: BaseException) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__


def where(error: BaseException, file: Path) -> list[str]:
    """The line of the answer that was running"""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return [f"  line {frames[-1].lineno}: {frames[-1].line}"] if frames else []
