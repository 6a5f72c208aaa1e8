"""Grade one rewrite: the result that is wanted, no warning, and nothing of the old way.

    python -m experiments.since.grade NAME FILE VERDICT.json

`rewrite.grade` starts this, and ends it if it waits too long.
"""

import ast
import inspect
import re
import sys
from pathlib import Path

import torch

from experiments.drill.answer import Wrong, import_file, line_of, parse
from experiments.drill.launch import Verdict, write_verdict
from experiments.drill.limits import MEMORY, OutOfTime, limit_memory, timed
from experiments.since.pairs import Pair, pairs
from experiments.since.running import Outcome, given_in_words, in_words, reaches, run, wanted

SECONDS = 60.0
"""of computing: torch.compile with a cold cache takes twenty"""
SEEDS = 3


def grade(name: str, file: Path, seconds: float = SECONDS) -> list[str]:
    """Return what is wrong with the rewrite in `file`; nothing if it is right."""
    pair = pairs()[name]
    try:
        tree = parse(file)
        _refuse_old(pair, tree)
        new = getattr(import_file(file, seconds), "new", None)
        if not inspect.isfunction(new):
            raise Wrong(f"{file.name} has no function `new`")
        with timed(seconds):
            for seed in range(SEEDS):
                _compare(pair, run(pair, new, seed), seed, file)
    except Wrong as error:
        return str(error).splitlines()
    except OutOfTime:
        return [f"not done after {seconds:g} s: is there a loop that does not end?"]
    except MemoryError:
        return [f"out of memory: more than {MEMORY >> 20} MiB were asked for"]
    return []


def _refuse_old(pair: Pair, tree: ast.Module) -> None:
    """Raise Wrong for a piece of the old way, or for code that could hide a warning; comments may say it."""
    for piece in [*pair.gone, "warnings"]:
        if found := find(piece, tree):
            hides = "this hides warnings, it does not answer them" if piece == "warnings" else "this is the old way"
            raise Wrong(f"{hides}: {piece}\n  {found}")


def find(piece: str, tree: ast.Module) -> str:
    """Return the first line that holds a piece of code; "" if none does."""
    before, after = (r"\b" if re.match(r"\w", end) else "" for end in (piece[0], piece[-1]))
    for line in ast.unparse(_without_docstrings(tree)).splitlines():
        if re.search(before + re.escape(piece) + after, line):
            return line.strip()
    return ""


def _without_docstrings(tree: ast.Module) -> ast.Module:
    kept = ast.parse(ast.unparse(tree))
    for node in ast.walk(kept):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = [*node.body[1:], ast.Pass()]
    return kept


def _compare(pair: Pair, yours: Outcome, seed: int, file: Path) -> None:
    """Raise Wrong for an error, another result, a warning, or a cost that is still the old one, the first of these."""
    if yours.error is not None:
        said = f"{type(yours.error).__name__}: {' '.join(str(yours.error).split())[:300]}"
        raise Wrong("\n".join([f"it raises {said}", *line_of(yours.error, file)]))
    right = wanted(pair, seed)
    if not reaches(yours.result, right):
        rows = ("given ", given_in_words(pair, seed)), ("wanted", in_words(right)), ("yours ", in_words(yours.result))
        raise Wrong("\n".join(["not the result that is wanted", *(f"  {what}  {text}" for what, text in rows)]))
    if yours.warned:
        raise Wrong(f"the result is right, but it warns\n  {' '.join(yours.warned[0].split())[:300]}")
    old = run(pair, pair.load().old, seed)
    if yours.cost is not None and old.cost is not None and pair.today.times * max(yours.cost, 1) > old.cost:
        unit = pair.today.words
        raise Wrong(f"the result is right, but it costs {yours.cost:,} {unit}; the old way costs {old.cost:,}")


def main(name: str, file: Path, out: Path) -> None:
    """Grade, and write the verdict."""
    torch.set_num_threads(1)
    pairs()[name].load()  # before the limit: what our own modules map is not the answer's
    limit_memory()
    lines = grade(name, file)
    write_verdict(Verdict(not lines, lines), out)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in pairs():
        print("usage: python -m experiments.since.grade PAIR FILE VERDICT.json", file=sys.stderr)
        sys.exit(2)
    main(sys.argv[1], *map(Path, sys.argv[2:]))
