"""Let functions of the reader's stand in for ours, in everything that calls ours.

A function is an object, and its body, `__code__`, is a part of it that can be exchanged. Modules that import ours by
name, tables, partials and defaults all hold that one object: a new value for each module's name would miss the last
three. So ours gets a new body, a single line that calls yours: whoever calls ours, calls yours. The shape checks of
`fn` stay, as they are wrapped around the body.
"""

import contextlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path
from pkgutil import resolve_name
from types import CodeType, ModuleType
from typing import Any

from experiments.drill.catalogue import DRILLS, WHOLES

FILES = "FN_MINE"
"""the variable of the environment that tells a process of such a lab, as JSON, which file holds which drill"""


@dataclass
class Yours:
    """A function of the reader's, and how often it was called in place of ours."""

    name: str
    function: Callable
    calls: int = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.function(*args, **kwargs)


@dataclass
class Stand:
    """The functions of the reader that stand in for ours in a run."""

    yours: list[Yours] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """drills that do not pass their tests"""

    def calls(self) -> dict[str, int]:
        """Return how often each drill's function was called, or its methods, in this process."""
        counts: dict[str, int] = {}
        for one in self.yours:
            counts[one.name] = counts.get(one.name, 0) + one.calls
        return counts

    def said(self) -> str:
        """Return which parts of the run were the reader's."""
        calls = self.calls()
        called, idle = [n for n, c in calls.items() if c], [n for n, c in calls.items() if not c]
        parts = [f"Yours: {', '.join(called) or 'nothing'}; ours: the others."]
        if idle:
            parts.append(f"Yours too, but not called here: {', '.join(idle)}.")
        if self.refused:
            parts.append(said_of_refused(self.refused))
        return " ".join(parts)

    def as_json(self) -> dict[str, Any]:
        return {"calls": self.calls(), "refused": self.refused}


def said_of_refused(names: list[str]) -> str:
    return f"Refused: {', '.join(names)} (just check-drill {names[0]} says why)."


def from_environment(main: Callable) -> contextlib.AbstractContextManager[Stand]:
    """Put in place what the process that started this one says: it has graded them."""
    files = json.loads(os.environ[FILES])
    return standing_in({name: Path(file) for name, file in files.items()}, main)


@contextlib.contextmanager
def standing_in(files: dict[str, Path], main: Callable) -> Iterator[Stand]:
    """Put the functions of these files in place of ours, here and in each process that is started inside."""
    stand, before = Stand(), os.environ.get(FILES)
    with contextlib.ExitStack() as stack:
        for name, file in files.items():
            where = [of for of in places(name) if _is_at_hand(of, main)]
            module = load(name, file, main) if where else None
            for of in where:
                own = of.partition(":")[2]
                yours = getattr(module, own)
                ours = find(of, main)
                stood = stack.enter_context(in_place(label(name, of), ours, yours))
                stand.yours += stood
                # so that calls from within their file are counted too
                setattr(module, own, ours if inspect.isclass(ours) else stood[0])
        os.environ[FILES] = json.dumps({name: str(file.resolve()) for name, file in files.items()})
        try:
            yield stand
        finally:
            del os.environ[FILES]
            if before is not None:
                os.environ[FILES] = before


def places(name: str) -> tuple[str, ...]:
    """Return where ours are, module:name, of a drill or of a whole lab."""
    return WHOLES[name] if name in WHOLES else (DRILLS[name].of,)


def label(name: str, of: str) -> str:
    return of.partition(":")[2] if name in WHOLES else name


def _is_at_hand(of: str, main: Callable) -> bool:
    """Return whether a place is in `fn`, or in the lab that runs: another lab's function is not called."""
    module = of.partition(":")[0]
    return module.startswith("fn.") or module in (main.__module__, _name_of_main(main))


def _name_of_main(main: Callable) -> str:
    """Return the name of the lab's module, also where it is run as __main__."""
    spec = main.__globals__.get("__spec__")
    return spec.name if spec else main.__module__


def find(of: str, main: Callable) -> Any:
    """Return our function; of a lab that runs as __main__ that one, not one of the same file imported once more."""
    module, _, name = of.partition(":")
    return main.__globals__[name] if module == _name_of_main(main) else resolve_name(of)


def load(name: str, file: Path, main: Callable) -> ModuleType:
    """Import the reader's file. What it imports from the lab comes from the one that runs."""
    sys.modules.setdefault(_name_of_main(main), sys.modules[main.__module__])
    loader = SourceFileLoader(f"drills_{name}", str(file))  # of NAME.py.old too
    spec = importlib.util.spec_from_file_location(f"drills_{name}", file, loader=loader)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def in_place(name: str, ours: Any, yours: Any) -> Iterator[list[Yours]]:
    """Let every call of `ours` call `yours`; of a class, each method's."""
    with contextlib.ExitStack() as stack:
        pairs = [(vars(ours)[m], vars(yours)[m]) for m in methods(ours)] if inspect.isclass(ours) else [(ours, yours)]
        for own, value in vars(yours).items() if inspect.isclass(ours) else ():
            if own not in vars(ours) and (inspect.isfunction(value) or not own.startswith("__")):  # that ours lacks
                setattr(ours, own, value)
                stack.callback(delattr, ours, own)
        yield [stack.enter_context(_calls(name, own, their, ours)) for own, their in pairs]


def methods(ours: type) -> Iterable[str]:
    return [name for name, value in vars(ours).items() if inspect.isfunction(value)]


@contextlib.contextmanager
def _calls(name: str, ours: Callable, yours: Callable, owner: Any) -> Iterator[Yours]:
    inner, written, stand_in = inspect.unwrap(ours), inspect.unwrap(yours), Yours(name, yours)
    for free, cell in zip(written.__code__.co_freevars, written.__closure__ or (), strict=True):
        if free == "__class__":  # super() looks there for the class
            cell.cell_contents = owner
    body, known_as = inner.__code__, f"yours_{id(inner)}"
    inner.__globals__[known_as], inner.__code__ = stand_in, one_line(inner, known_as, written.__code__)
    try:
        yield stand_in
    finally:
        inner.__code__ = body
        del inner.__globals__[known_as]


KIND = inspect.Parameter
HANDED = {KIND.POSITIONAL_ONLY: "{0}", KIND.POSITIONAL_OR_KEYWORD: "{0}", KIND.VAR_POSITIONAL: "*{0}"}
HANDED |= {KIND.KEYWORD_ONLY: "{0}={0}", KIND.VAR_KEYWORD: "**{0}"}


def one_line(ours: Any, known_as: str, written: CodeType) -> CodeType:
    """Return the code of `def f(x, weight, *, key): return yours(x, weight, key=key)`, with the parameters of ours.

    Of a generator, `yield from yours(…)`: the code that is replaced was one too.
    Their names stay, as `fn.trace` reads them in the frame. The line says that it stands where yours begins: tracebacks
    and `inspect.getsource` go there.
    """
    signature = inspect.signature(ours)
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
    head = signature.replace(parameters=bare, return_annotation=signature.empty)
    call = ", ".join(HANDED[p.kind].format(p.name) for p in bare)
    result = f"(yield from {known_as}({call}))" if inspect.isgeneratorfunction(ours) else f"{known_as}({call})"
    line = f"def {ours.__name__}{head}: return {result}"
    namespace: dict[str, Any] = {}
    exec(compile("\n" * (written.co_firstlineno - 1) + line, written.co_filename, "exec"), namespace)
    return namespace[ours.__name__].__code__
