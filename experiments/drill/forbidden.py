"""Find the names, in an answer's file, of functions that do what the reader is to write: torch's own, or ours.

torch's own function passes every test that compares with torch; only its name tells it from an answer. The file is
read, never run.
"""

import ast
from collections.abc import Iterable, Iterator

from experiments.drill import cut
from experiments.drill.catalogue import DRILLS


def find_forbidden(tree: ast.Module, name: str, *, allow_torch: bool = False) -> tuple[int, str] | None:
    """Return (line, function) of the first forbidden function that the file imports or calls; None without one."""
    module, _, defined = DRILLS[name].of.partition(":")
    ours = {f"{module}.{function}" for function in (defined, *cut.helpers(name))}
    for line, dotted in sorted(dotted_names(tree)):
        if dotted in ours:
            return line, f"our own `{dotted}`"
        if not allow_torch and (function := _first_match(dotted, DRILLS[name].forbidden)):
            return line, function
    return None


def find_forbidden_in_part(tree: ast.Module, name: str, beside: Iterable[str]) -> tuple[int, str] | None:
    """Return (line, function) of the first forbidden function that one of several in a file leaves its work to.

    `beside` are the places of the others, module:name. To leave the work to one of those is as forbidden.
    """
    forbidden, defined = DRILLS[name].forbidden, DRILLS[name].of.partition(":")[2]
    others = {place.partition(":")[2]: place.replace(":", ".") for place in beside}
    part = _part(tree, defined)
    for line, dotted in sorted(dotted_names(part)):
        if function := _first_match(dotted, forbidden):
            return line, function
    for node in ast.walk(part):
        if isinstance(node, ast.Name) and node.id in others and _first_match(others[node.id], forbidden):
            return node.lineno, f"your own `{node.id}`"
    return None


def is_beside(tree: ast.Module, name: str, line: int) -> bool:
    """Return whether a line of the file belongs to nothing that the function of that name uses."""
    part = _part(tree, name)
    first = [min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) for node in part.body]
    spans = [(at, node.end_lineno or at) for at, node in zip(first, part.body, strict=True)]
    return any(isinstance(node, cut.Definition) and node.name == name for node in part.body) and not any(
        at <= line <= end for at, end in spans
    )


def _part(tree: ast.Module, name: str) -> ast.Module:
    """Return what a function of the file uses: its definition, those that it names, and the imports of all of them."""
    bound = {node.name: node for node in tree.body if isinstance(node, cut.Definition)}
    waiting, used = [name], dict[str, ast.stmt]()
    names = set[str]()
    while waiting:
        if (one := waiting.pop()) in bound and one not in used:
            used[one] = bound[one]
            found = {node.id for node in ast.walk(bound[one]) if isinstance(node, ast.Name)}
            names |= found
            waiting += sorted(found)
    imports = [_only(node, names) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.Module([*(node for node in imports if node.names), *used.values()], [])


def _only(node: ast.Import | ast.ImportFrom, names: set[str]) -> ast.Import | ast.ImportFrom:
    """Return an import without the names that are not used."""
    kept = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) in names]
    new = ast.Import(kept) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, kept, node.level)
    return ast.copy_location(new, node)


def _first_match(dotted: str, forbidden: Iterable[str]) -> str | None:
    return next((function for one in forbidden if (function := _match(dotted, one))), None)


def _match(dotted: str, forbidden: str) -> str | None:
    """Return the forbidden function that a name stands for.

    A dotted `forbidden` is that function or module; a bare one is part of a name in torch, or of a method's.
    """
    if "." in forbidden:
        return f"`{dotted}`" if f"{dotted}.".startswith(f"{forbidden}.") else None
    root, last = dotted.partition(".")[0], dotted.rpartition(".")[2]
    if root in ("", "torch", "torchvision") and _plain(forbidden) in _plain(last):
        return f"{root or 'torch'}'s own `{last}`"
    return None


def _plain(name: str) -> str:
    """Return a name without case and underscores: torch.nn.LayerNorm is layer_norm too."""
    return name.replace("_", "").lower()


def dotted_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, full name) of all that is imported or an attribute; ".name" is one of an unknown object."""
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                imported[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield node.lineno, f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.end_lineno or node.lineno, _dotted(node, imported)


def _dotted(node: ast.expr, imported: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, imported)}.{node.attr}"
    return imported.get(node.id, "") if isinstance(node, ast.Name) else ""
