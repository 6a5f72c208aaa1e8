"""Names in an answer's file of functions that do what the reader is to write: torch's own, or ours. Read, never run."""

import ast
from collections.abc import Iterator

from experiments.drill import cut
from experiments.drill.catalogue import DRILLS


def find_forbidden(tree: ast.Module, name: str, *, allow_torch: bool = False) -> tuple[int, str] | None:
    """(line, function) of the first forbidden function that the file imports or calls."""
    module, _, defined = DRILLS[name].of.partition(":")
    ours = {f"{module}.{function}" for function in (defined, *cut.helpers(name))}
    for line, dotted in sorted(dotted_names(tree)):
        if dotted in ours:
            return line, f"our own `{dotted}`"
        for forbidden in () if allow_torch else DRILLS[name].forbidden:
            if function := _match(dotted, forbidden):
                return line, function
    return None


def _match(dotted: str, forbidden: str) -> str | None:
    """A dotted `forbidden` is that function or module; a bare one is part of a name in torch, or of a method's."""
    if "." in forbidden:
        return f"`{dotted}`" if f"{dotted}.".startswith(f"{forbidden}.") else None
    root, last = dotted.partition(".")[0], dotted.rpartition(".")[2]
    if root in ("", "torch", "torchvision") and _plain(forbidden) in _plain(last):
        return f"{root or 'torch'}'s own `{last}`"
    return None


def _plain(name: str) -> str:
    """torch.nn.LayerNorm is layer_norm too."""
    return name.replace("_", "").lower()


def dotted_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, full name) of all that is imported or an attribute; ".name" is an attribute of an unknown object."""
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
