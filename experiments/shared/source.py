"""The source of a function with what it uses, and code on a terminal."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from rich.syntax import Syntax

from experiments.shared.show import console


def source(f: Callable[..., Any]) -> str:
    """Return the source of a function, after the definitions of its own file that it uses."""
    text = inspect.getsource(sys.modules[f.__module__])
    top = {name: node for node in ast.parse(text).body for name in _names(node)}
    wanted, todo = set(), [f.__name__]
    while todo:
        name = todo.pop()
        if name in top and name not in wanted:
            wanted.add(name)
            todo += [n.id for n in ast.walk(top[name]) if isinstance(n, ast.Name)]
    parts = [ast.get_source_segment(text, node) or "" for name, node in top.items() if name in wanted]
    return "\n\n".join(parts)


def _names(node: ast.stmt) -> list[str]:
    """Return the names that a statement at the top of a file defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    return [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []


def show_code(lines: Sequence[str]) -> None:
    """Print code indented; a line wider than the terminal goes on below, indented further."""
    for line in lines:
        changed = {"- ": "red", "+ ": "green"}.get(line[:2])
        inset = " " * (len(line) - len(line.lstrip()) + 8)
        folded = textwrap.wrap(
            "  " + line, console.width, subsequent_indent=inset, drop_whitespace=False, break_long_words=False
        )
        for part in folded or [""]:
            shown = Syntax("", "python", theme="ansi_light").highlight(part)
            shown.rstrip()
            console.print(shown if changed is None else part.rstrip(), style=changed, markup=False, soft_wrap=True)


def wait(prompt: str) -> None:
    """Ask for Enter; the end of the input counts as one."""
    try:
        input(prompt)
    except EOFError:
        print()
