"""Mend it yourself: a broken program in a file of yours, the grader of what you make of it, and the question why.

    begin(name) -> str              the text of the file, which does not say what is wrong
    place(name) -> Path             where it lies
    grade(name, path) -> list[str]  what is wrong still, in words; nothing if it is mended
    solution(name) -> str           the text of a file that is mended
    warm()                          for who grades again and again: makes every grade quick

A name is that of a failure, or its case: a number that gives nothing away.
"""

import ast
import sys
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path

from experiments.drill import launch
from experiments.gallery.failures import Failure, gallery
from experiments.shared.flags import UsageError
from experiments.shared.source import definitions, imports

FOLDER = launch.ROOT / "drills" / "bugs"
UNCHANGED = "nothing has been changed yet"
HEAD = '''"""Something is wrong in this program. Find it, and mend it.

What it should do:
{task}

    Run it      python -m drills.bugs.{name}
    Grade it    just break {name} --mine --check

Keep the name of `program`, and its `return` as it is: what it returns is
what is graded.
"""
'''


def case(name: str) -> str:
    """Return the case of a failure: a name for its file that gives nothing away, the same for ever."""
    return f"case_{1000 + zlib.crc32(name.encode()) % 9000}"


def find(name: str) -> Failure | None:
    """Return the failure of that name or case."""
    return gallery().get(name) or next((failure for failure in gallery().values() if case(failure.name) == name), None)


def place(name: str) -> Path:
    return FOLDER / f"{name}.py"


def task(name: str) -> str:
    """Return the name under which `just learn` and the log of attempts know it."""
    return f"bug:{case(named(name).name)}"


def begin(name: str) -> str:
    """Return the text of the file: the task, the broken program and what it uses, how to run and to grade it."""
    return write(named(name), name, "broken")


def solution(name: str) -> str:
    """Return the text of a file that is right: the program, mended."""
    return write(named(name), name, "fixed")


def write(failure: Failure, name: str, function: str) -> str:
    """Return a function of a failure, broken or fixed, as the file of that name has it."""
    source = failure.file.read_text(encoding="utf-8")
    used = [line for line in imports(source, function) if not line.endswith(" import Seen")]
    used += ["from experiments.gallery.seen import show_seen"]
    code = [part.replace(f"def {function}(", "def program(") for part in definitions(source, function)]
    code = [part.replace("-> Seen:", "-> dict:") for part in code]
    head = HEAD.format(task=textwrap.fill(failure.task, 76), name=name)
    end = 'if __name__ == "__main__":\n    show_seen(program(seed=0))\n'
    return "\n\n\n".join(["\n".join([head, *sorted(used, key=_rank)]), *code, end])


def named(name: str) -> Failure:
    """Return the failure of that name or case; UsageError if there is none."""
    failure = find(name)
    if failure is None:
        raise UsageError(f"there is no failure {name!r}; just break lists them")
    return failure


def _rank(line: str) -> tuple[bool, bool, str]:
    """Return a key that puts the standard library first, as ruff does."""
    module = line.split()[1].partition(".")[0]
    return module not in sys.stdlib_module_names, line.startswith("from"), line


def grade(name: str, path: Path) -> list[str]:
    """Return what is wrong with the file, in words; nothing if the symptom is gone and the task is done.

    The program runs in a process of its own, within limits of time and memory. The process is a fork of this one where
    torch is loaded already.
    """
    failure = named(name)
    return _wrong_unrun(failure, path) or _run(failure.name, path.resolve()).lines


def warm() -> None:
    """Load torch and what programs make it load: from then on `grade` forks this process, and answers in a second."""
    from experiments.gallery import grading

    grading.warm()


def _wrong_unrun(failure: Failure, path: Path) -> list[str]:
    """Return what is wrong with the text of the file."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        return [f"{path.name}, line {error.lineno}: {error.msg}", f"  {(error.text or '').strip()}"]
    except (OSError, ValueError) as error:
        return [f"{path} cannot be read: {error}"]
    before = ast.parse(begin(failure.name))
    if _dumped(tree) == _dumped(before):
        return [UNCHANGED]
    program, as_it_was = _program(tree), _program(before)
    if program is None or as_it_was is None:
        return ["there is no function `program` any more: keep its name"]
    if [*map(ast.dump, _returns(program))] != [*map(ast.dump, _returns(as_it_was))]:
        kept = "\n".join(map(ast.unparse, _returns(as_it_was)))
        return ["`program` is to return what it did, computed as it was; keep this line:", *_inset(kept)]
    return []


def _inset(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _dumped(tree: ast.Module) -> list[str]:
    """Return the statements, without the texts and the comments that stand among them."""
    return [ast.dump(node) for node in tree.body if not _is_text(node)]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _program(tree: ast.Module) -> ast.FunctionDef | None:
    return next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "program"), None)


def _returns(node: ast.AST) -> Iterator[ast.Return]:
    """Yield the returns of a function, not those of functions within it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Return):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            yield from _returns(child)


def _run(name: str, path: Path) -> launch.Verdict:
    if "torch" not in sys.modules or sys.platform != "linux":
        return launch.graded(name, path, grader="experiments.gallery.grading")
    from experiments.gallery import grading

    grading.warm()  # before the fork, so that it has not to import what the program needs
    gallery()[name].load()
    return launch.forked(grading.main, name, path)
