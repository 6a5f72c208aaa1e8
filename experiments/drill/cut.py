"""Cut a drill from our own function: its imports, signature and docstring, without the body.

The source is read with `ast` and never imported, so that the list of drills needs no torch.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.drill.catalogue import DRILLS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "drills"
"""where the reader writes"""
EMPTY = "raise NotImplementedError"
Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Source:
    """The definition of our function, and the file around it."""

    module: str
    lines: list[str]
    tree: ast.Module
    node: Definition

    @property
    def text(self) -> str:
        first = min([self.node.lineno, *(d.lineno for d in self.node.decorator_list)])
        return "\n".join(self.lines[first - 1 : self.node.end_lineno]) + "\n"


def source(name: str) -> Source:
    return source_of(DRILLS[name].of)


def source_of(where: str) -> Source:
    """Return the definition at a place, module:name."""
    module, _, definition = where.partition(":")
    text = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
    tree = ast.parse(text)
    return Source(module, text.splitlines(), tree, definition_of(tree, definition))


def definition_of(tree: ast.Module, name: str) -> Definition:
    """Return the last function or class of that name at the top level; LookupError if there is none."""
    found = [node for node in tree.body if isinstance(node, Definition) and node.name == name]
    if not found:
        raise LookupError(name)
    return found[-1]


def cut(name: str) -> str:
    """Return the file that a drill begins with."""
    ours = source(name)
    imports = "\n".join(_imports(ours, _needed(ours, DRILLS[name].given)))
    return f"{imports}\n\n\n{_emptied(ours, ours.node)}".lstrip()


def cut_whole(places: Sequence[str]) -> str:
    """Return the file of several functions: what all of them need, then a signature and a docstring of each."""
    sources = [source_of(where) for where in places]
    given = {ours.node.name for ours in sources}
    lines = {line for ours in sources for line in _import_lines(ours, _needed_beside(ours, given))}
    heads = "\n\n".join(_emptied(ours, ours.node) for ours in sources)
    return f"{chr(10).join(_in_order(lines))}\n\n\n{heads}".lstrip()


def is_empty(definition: Definition) -> bool:
    """Return whether the body is only a docstring, `pass`, `...` or the raise that `cut` leaves."""
    return all(
        is_empty(part)
        if isinstance(part, Definition)
        else isinstance(part, ast.Pass)
        or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        or ast.unparse(part).removesuffix("()") == EMPTY
        for part in definition.body
    )


def helpers(name: str) -> list[str]:
    """Return the functions of its module that ours calls and an answer must not: all but those given."""
    ours = source(name)
    beside = {node.name for node in ours.tree.body if isinstance(node, ast.FunctionDef)} - {ours.node.name}
    return sorted(beside & set(_names(ours.node)) - set(DRILLS[name].given) - set(_signature_names(ours.node)))


def _emptied(ours: Source, node: Definition, indent: str = "") -> str:
    """Return the definition without its body; a class keeps the heads of its methods."""
    documented = ast.get_docstring(node) is not None
    last = node.body[0].end_lineno if documented else node.body[0].lineno - 1
    assert last is not None
    head = ours.lines[node.lineno - 1 : last]
    if isinstance(node, ast.FunctionDef):
        return "\n".join([*head, f"{indent}    {EMPTY}"]) + "\n"
    methods = [_emptied(ours, part, indent + "    ") for part in node.body if isinstance(part, Definition)]
    return "\n".join([*head, ""]) + "\n" + "\n".join(methods)


def _names(*nodes: ast.AST) -> Iterator[str]:
    for node in nodes:
        yield from (part.id for part in ast.walk(node) if isinstance(part, ast.Name))


def _signature_names(node: Definition) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        yield from _names(*node.bases)
        for part in node.body:
            if isinstance(part, ast.FunctionDef):
                yield from _signature_names(part)
    else:
        yield from _names(node.args, *([node.returns] if node.returns else []))


def _needed(ours: Source, given: tuple[str, ...]) -> list[str]:
    """Return names in the signature, imported names in our body, and the functions given; not those of decorators."""
    signature = list(_signature_names(ours.node))
    imported = {bound for statement in ours.tree.body for bound in _bound(statement)}
    return [*signature, *(name for name in _names(*ours.node.body) if name in imported), *given]


def _bound(statement: ast.stmt) -> dict[str, str]:
    """Return each name that an import statement binds, and a statement that binds this name alone."""
    if isinstance(statement, ast.Import):
        return {(a.asname or a.name).partition(".")[0]: f"import {ast.unparse(a)}" for a in statement.names}
    if isinstance(statement, ast.ImportFrom):
        return {a.asname or a.name: f"from {statement.module} import {ast.unparse(a)}" for a in statement.names}
    return {}


def _targets(statement: ast.stmt) -> list[ast.expr]:
    """Return the names that a statement binds, those of `A, B = 1, 2` one by one."""
    if isinstance(statement, ast.AnnAssign):
        return [statement.target]
    found = statement.targets if isinstance(statement, ast.Assign) else []
    return [part for target in found for part in (target.elts if isinstance(target, ast.Tuple) else [target])]


def _defined(ours: Source) -> set[str]:
    """Return the functions, classes and constants of the file."""
    here = {node.name for node in ours.tree.body if isinstance(node, Definition)}
    return here | {target.id for node in ours.tree.body for target in _targets(node) if isinstance(target, ast.Name)}


def _needed_beside(ours: Source, given: set[str]) -> list[str]:
    """Return the names that `_needed` does, and those that the body takes of its own file, but for `given`.

    A helper whose name begins with an underscore is left out: it is a part of the answer.
    """
    beside = {name for name in _defined(ours) & set(_names(*ours.node.body)) if not name.startswith("_")}
    needed = _needed(ours, tuple(sorted(beside)))
    return [name for name in needed if name not in given and not name.startswith("_")]


def _imports(ours: Source, names: list[str]) -> list[str]:
    """Return import statements for the names, in the order of isort."""
    return _in_order(_import_lines(ours, names))


def _import_lines(ours: Source, names: list[str]) -> set[str]:
    bound = {name: line for statement in ours.tree.body for name, line in _bound(statement).items()}
    here = _defined(ours)
    return {bound.get(n) or f"from {ours.module} import {n}" for n in names if n in bound or n in here}


def _in_order(lines: set[str]) -> list[str]:
    """Merge import statements of one name each, in isort's order: the standard library, the others, ours."""
    merged: dict[str, list[str]] = {}
    for line in lines:
        head, _, name = line.partition(" import ") if line.startswith("from") else (line, "", "")
        merged.setdefault(head, []).extend([name] if name else [])
    groups: dict[int, list[str]] = {}
    for head, found in merged.items():
        package = head.split()[1].partition(".")[0]
        group = 0 if package in sys.stdlib_module_names else 2 if package in ("fn", "experiments") else 1
        groups.setdefault(group, []).append(f"{head} import {', '.join(sorted(found))}" if found else head)
    ordered = [sorted(lines, key=lambda line: (line.startswith("from"), line)) for _, lines in sorted(groups.items())]
    return "\n\n".join("\n".join(lines) for lines in ordered).split("\n")
