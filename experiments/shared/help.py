"""Answer --help from the docstring and the flags of a script: what else it imports, torch above all, takes seconds.

`python -m experiments.NAME` imports experiments/__init__.py first, which calls `answer`; lab.py does for a number.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from experiments.shared.flags import UsageError, parse_flags
from experiments.shared.show import print_anything

ROOT = Path(__file__).parents[2]
Import = ast.Import | ast.ImportFrom
Definition = ast.FunctionDef | ast.ClassDef


def answer(module: str, argv: Sequence[str]) -> None:
    """Print the help of a script and exit. Return for a script without a Config, and for flags that it refuses."""
    script = load(module, "Config")
    if script is None:
        return
    print_anything()
    sys.argv[0] = str(script.__file__)
    before = sys.modules.get(module)
    sys.modules[module] = script  # where tyro looks for the source, in which the flags are described
    try:
        with suppress(UsageError):  # the script says it
            parse_flags(script.Config, argv)
    finally:
        del sys.modules[module]
        if before:
            sys.modules[module] = before


def load(module: str, name: str) -> ModuleType | None:
    """Return the module with `name`, and what that hangs on, alone; None if there is no such module or name."""
    path = ROOT.joinpath(*module.split("."))
    places = (path.with_suffix(".py"), path / "__main__.py", path / "__init__.py")
    file = next((place for place in places if place.exists()), None)
    tree = ast.parse(file.read_bytes()) if file else ast.Module([], [])
    kept = cut(tree, name)
    if not kept:
        return None
    loaded = ModuleType(module, ast.get_docstring(tree, clean=False))
    loaded.__file__ = str(file)
    for statement in kept:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("fn."):
            statement.names = [alias for alias in statement.names if not _take(loaded, str(statement.module), alias)]
        if not isinstance(statement, Import) or statement.names:
            exec(compile(ast.Module([statement], []), str(file), "exec"), vars(loaded))
    return loaded


def _take(loaded: ModuleType, source: str, alias: ast.alias) -> bool:
    """Return whether the name of a module of fn is now in `loaded`, without an import of fn."""
    found = load(source, alias.name)
    if found:
        setattr(loaded, alias.asname or alias.name, getattr(found, alias.name))
    return found is not None


def cut(tree: ast.Module, name: str) -> list[ast.stmt]:
    """Return the statements at the top of a file that `name` hangs on, in order; classes come without their methods."""
    needed, kept = {name}, []
    for statement in reversed(tree.body):
        if not needed & set(_binds(statement)):
            continue
        if isinstance(statement, Import):
            statement.names = [alias for alias in statement.names if _bound(alias) in needed]
        if isinstance(statement, ast.ClassDef):
            statement.body = [part for part in statement.body if not isinstance(part, ast.FunctionDef)]
        needed |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        kept.insert(0, statement)
    return kept


def _binds(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement gives a value."""
    if isinstance(statement, Definition):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.alias):
            yield _bound(node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]
