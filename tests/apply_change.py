"""A change of the code as a page proposes it, tried in this process: no file is touched."""

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from experiments.shared.page import ROOT, Change, line_numbers
from fn.checks import remember


@contextmanager
def edited(change: Change) -> Iterator[None]:
    """Put the changed function, class or constant in place of ours, in every module that has imported it."""
    module = import_module(change.file.removesuffix(".py").replace("/", "."))
    name = change.name.partition(".")[0]
    [node] = [node for node in ast.parse(new_source(change)).body if defines(node, name)]
    ours = getattr(module, name)
    checked = change.file.startswith("fn/")
    theirs = run(node, module, name, checked=checked)
    places = [m for m in ours_of_all_modules() if any(value is ours for value in vars(m).values())]
    put(places, ours, theirs)
    try:
        yield
    finally:
        put([*places, module], theirs, ours)


def new_source(change: Change) -> str:
    """Return the file's text after the edit; ValueError unless the old lines stand once in what the change names."""
    first, last = line_numbers(change.file, change.name)
    lines = (ROOT / change.file).read_text(encoding="utf-8").splitlines(keepends=True)
    before, inside, after = ("".join(part) for part in (lines[: first - 1], lines[first - 1 : last], lines[last:]))
    if inside.count(change.old) != 1:
        raise ValueError(f"{change.file}:{change.name} has {inside.count(change.old)} times {change.old!r}")
    return before + inside.replace(change.old, change.new) + after


def defines(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name == name
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


def run(node: ast.stmt, module: ModuleType, name: str, *, checked: bool) -> Any:
    """Execute the definition in its module, with the checks that the import hook gives it; return what it defines."""
    if checked and isinstance(node, ast.FunctionDef):
        node.decorator_list.append(ast.Name("remember", ast.Load()))
    code = compile(ast.fix_missing_locations(ast.Module([node], [])), str(module.__file__), "exec")
    vars(module)["remember"] = remember
    try:
        exec(code, vars(module))
    finally:
        del vars(module)["remember"]
    return vars(module)[name]


def ours_of_all_modules() -> list[ModuleType]:
    return [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in ("fn", "experiments")]


def put(modules: list[ModuleType], old: Any, new: Any) -> None:
    for module in modules:
        for name in [name for name, value in vars(module).items() if value is old]:
            setattr(module, name, new)
