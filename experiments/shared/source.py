"""The source of a function with the definitions and the imports that it uses, and code on a terminal."""

import ast
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.syntax import Syntax

from experiments.shared.show import console, folded_code


def source(f: Callable[..., Any]) -> str:
    """Return the source of a function, after the definitions of its own file that it uses."""
    return "\n\n".join(definitions(inspect.getsource(sys.modules[f.__module__]), f.__name__))


def definitions(text: str, function: str) -> list[str]:
    """Return the source of the definitions of a file that a function uses, its own included, in the file's order."""
    tree = ast.parse(text)
    wanted = _used(tree, function)
    return [ast.get_source_segment(text, node) or "" for node in tree.body if wanted & set(_names(node))]


def imports(text: str, function: str) -> list[str]:
    """Return the imports of a file of the names that a function and the definitions that it uses mention."""
    tree = ast.parse(text)
    used = _used(tree, function)
    mentioned = {name for node in tree.body if used & set(_names(node)) for name in _mentioned(node)}
    found = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            kept = [a for a in node.names if (a.asname or a.name).partition(".")[0] in mentioned]
            node.names = kept
            found += [ast.unparse(node)] if kept else []
    return found


def _used(tree: ast.Module, function: str) -> set[str]:
    """Return the names of the file's own definitions that the function reaches."""
    top = {name: node for node in tree.body for name in _names(node)}
    wanted, todo = set(), [function]
    while todo:
        name = todo.pop()
        if name in top and name not in wanted:
            wanted.add(name)
            todo += _mentioned(top[name])
    return wanted


def _mentioned(node: ast.stmt) -> Iterator[str]:
    return (n.id for n in ast.walk(node) if isinstance(n, ast.Name))


def _names(node: ast.stmt) -> list[str]:
    """Return the names that a statement at the top of a file defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    return [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []


def run_file(file: Path, name: str) -> ModuleType:
    """Return the module of that name that the text of a file makes, as the text is now.

    An import would look into Python's cache of bytecode first, which takes two texts of one size, saved in one second,
    for the same.
    """
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(file)
    exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
    return module


def show_code(lines: Sequence[str]) -> None:
    """Print code indented; a line wider than the terminal goes on below, indented further."""
    for line in lines:
        changed = {"- ": "red", "+ ": "green"}.get(line[:2])
        for part in folded_code(f"  {line}").split("\n"):
            shown = Syntax("", "python", theme="ansi_light").highlight(part)
            shown.rstrip()
            console.print(shown if changed is None else part.rstrip(), style=changed, markup=False, soft_wrap=True)


def wait(prompt: str) -> None:
    """Ask for Enter; the end of the input counts as one."""
    try:
        input(prompt)
    except EOFError:
        print()
