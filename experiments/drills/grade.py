"""Grade one answer: it takes the place of our function, and the tests that hold ours run.

    python -m experiments.drills.grade NAME FILE

A test counts if it passed and went through the answer. The verdict is one line of JSON on the descriptor of the
first argument; `launch` is who starts this, with limits on time and memory.
"""

import ast
import contextlib
import gc
import importlib.util
import inspect
import io
import json
import linecache
import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies
from jaxtyping import TypeCheckError

from experiments.drills import cut
from experiments.drills.catalogue import DRILLS
from experiments.drills.door import ANSWER, Door, checked
from experiments.drills.explain import explain, show
from experiments.drills.launch import CPU_SECONDS, MEMORY, Verdict

EXAMPLES = 15
"""that Hypothesis draws for a test: its own number holds our function, fewer tell a wrong answer"""


class OutOfTime(BaseException):
    """Past `except Exception`, so that an answer cannot swallow it."""


class Wrong(Exception):
    """What is said of an answer that never came to a test."""


def grade(name: str, file: Path, *, allow_torch: bool = False, seconds: float = CPU_SECONDS) -> Verdict:
    """The verdict on the answer in `file`; this process is good for nothing else afterwards."""
    try:
        yours = answer(name, file, seconds)
    except Wrong as error:
        return Verdict(False, str(error).splitlines())
    door = install(name, yours, allow_torch)
    run = Run(door)
    status = 0
    try:
        with _timed(seconds):
            status = run.tests(DRILLS[name].tests)
    except OutOfTime as error:
        run.error = error
    except MemoryError as error:
        return Verdict(False, _out_of_memory(error))
    if isinstance(run.error, OutOfTime):  # pytest takes it for a failure
        return Verdict(False, [f"not done after {seconds:g} s: is there a loop that does not end?", *_stopped_at(file)])
    if door.refusal is not None:
        return Verdict(False, [f"this calls {door.refusal}, and that is what you are to write"])
    if run.failed is None:
        if not run.counted:
            return Verdict(
                False, [f"no test went through your `{name}` (pytest ended with {status}): nothing is proved"]
            )
        return Verdict(True, [f"{run.counted} tests that hold ours hold yours"], run.counted)
    try:
        with _timed(seconds):
            lines = _taught(run, file)
    except OutOfTime:
        lines = run.said
    return Verdict(False, lines, run.counted)


def answer(name: str, file: Path, seconds: float) -> Any:
    """The reader's function; Wrong says in words what keeps the file from having one."""
    wanted = DRILLS[name].of.partition(":")[2]
    try:
        text = file.read_text()
        tree = ast.parse(text, str(file))
    except SyntaxError as error:
        marked = (error.text or "").rstrip()
        raise Wrong(f"{file.name}, line {error.lineno}: {error.msg}\n    {marked.strip()}") from None
    except (OSError, ValueError) as error:
        raise Wrong(f"{file} cannot be read: {error}") from None
    if not text.strip():
        raise Wrong(f"{file.name} is empty: write `{wanted}` from memory, its signature too")
    try:
        if cut.is_empty(cut.definition_of(tree, wanted)):
            raise Wrong(f"nothing is written yet below the signature of `{wanted}`")
    except LookupError:
        others = [node.name for node in tree.body if isinstance(node, cut.Definition)]
        there = f"it defines {', '.join(f'`{other}`' for other in others)}" if others else "it defines no function"
        if wanted not in text:
            raise Wrong(f"{file.name} has no `{wanted}`: {there}") from None
    with _timed(seconds):
        try:
            module = _loaded(file)
        except OutOfTime:
            raise Wrong(f"{file.name} does not end when it is imported") from None
        except BaseException as error:
            raise Wrong(
                "\n".join([f"{file.name} fails when it is imported: {_named(error)}", *_where(error, file)])
            ) from None
    yours = getattr(module, wanted, None)
    if not callable(yours):
        raise Wrong(f"{file.name} has no function `{wanted}`")
    ours = resolve_name(DRILLS[name].of)
    for mine, theirs in _pairs(yours, ours):
        _compare_signatures(mine, theirs)
    return yours


def _loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(ANSWER, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[ANSWER] = module
    spec.loader.exec_module(module)
    return module


def _pairs(yours: Any, ours: Any) -> list[tuple[Any, Any]]:
    if not inspect.isclass(ours):
        return [(yours, ours)]
    methods = [name for name, value in vars(ours).items() if inspect.isfunction(value)]
    missing = [name for name in methods if name not in vars(yours)]
    if missing:
        raise Wrong(f"`{ours.__name__}` has no method `{missing[0]}`")
    return [(vars(yours)[name], vars(ours)[name]) for name in methods]


def _compare_signatures(yours: Any, ours: Any) -> None:
    """The names, their order, which are keywords, and the defaults; Wrong names the first difference."""
    own, wanted = (inspect.signature(inspect.unwrap(f)).parameters for f in (yours, ours))
    if list(own) != list(wanted):
        raise Wrong(
            f"the signature of `{ours.__name__}` takes ({', '.join(own)}), expected ({', '.join(wanted)}): "
            "names and order count"
        )
    for name, parameter in wanted.items():
        if own[name].kind != parameter.kind:
            raise Wrong(
                f"the parameter `{name}` is to be {parameter.kind.description}, not {own[name].kind.description}"
            )
        defaults = [p.default for p in (own[name], parameter)]
        if defaults[0] is not defaults[1] and repr(defaults[0]) != repr(defaults[1]):
            said = ["missing" if d is inspect.Parameter.empty else repr(d) for d in defaults]
            raise Wrong(f"the default of `{name}` is {said[0]}, expected {said[1]}")


def install(name: str, yours: Any, allow_torch: bool) -> Door:
    """`yours` in the place of ours, and what it is to do without guarded."""
    drill, ours = DRILLS[name], resolve_name(DRILLS[name].of)
    bare = frozenset(f for f in drill.forbidden if "." not in f)
    if inspect.isclass(ours):
        door = Door.of_class(ours, yours)
    else:
        door = Door(ours, checked(yours, ours), frozenset() if allow_torch else bare)
    for helper in cut.helpers(name):
        door.guard(resolve_name(f"{drill.of.partition(':')[0]}:{helper}"), f"our own `{helper}`", direct=True)
    for dotted in set(drill.forbidden) - bare:
        if not allow_torch:
            door.guard(_found(dotted), f"`{dotted.removesuffix('.__init__')}`")
    return door


def _found(dotted: str) -> Any:
    return inspect.unwrap(resolve_name(dotted))


class Run:
    """pytest, watched: how many tests counted, and the first that failed."""

    def __init__(self, door: Door) -> None:
        self.door, self.counted, self.collected = door, 0, 0
        self.failed: str | None = None
        self.said: list[str] = []
        self.error: BaseException | None = None
        self.raised: tuple[BaseException, dict[str, Any]] | None = None
        """what the answer had raised when the test failed, and what it was given"""
        self.printed = ""

    def tests(self, ids: Sequence[str]) -> int:
        options = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
            "--override-ini=addopts=",
            "--override-ini=filterwarnings=",
            "--tb=short",
        ]
        options += [
            "-p",
            "no:threadexception",
            "-p",
            "no:faulthandler",
            "--rootdir",
            str(cut.ROOT),
            "-c",
            str(cut.ROOT / "pyproject.toml"),
        ]
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        paths = [f"{cut.ROOT}/{test}" for test in ids]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return int(pytest.main([*options, *paths], plugins=[self]))

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            own = getattr(item.obj, "_hypothesis_internal_use_settings", None)
            if own is not None:
                phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
                few = hypothesis.settings(
                    own, max_examples=min(own.max_examples, EXAMPLES), phases=phases, database=None
                )
                item.obj._hypothesis_internal_use_settings = few

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Any:
        self.door.calls, self.door.error = 0, None
        try:
            result = yield
        except BaseException as error:
            self.failed = self.failed or item.nodeid
            if self.error is None:
                self.error, self.raised = error, self.door.error
                self.said = [f"{_title(item)}: {_named(error)}"]
            raise
        self.counted += self.door.calls > 0
        return result

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.printed += report.capstdout
        if report.failed and self.failed is None:
            self.failed, self.said = report.nodeid, [str(report.longrepr)[-400:]]


def _title(item: Any) -> str:
    return item.name.removeprefix("test_").replace("_", " ")


def _taught(run: Run, file: Path) -> list[str]:
    """What is wrong, from a second run of the test that failed in which ours answers and yours is compared."""
    door, first = run.door, run.raised
    held = [f"the test that fails: {run.said[0]}"] if run.said else []
    if first is not None and run.error is not None and _is_yours(first[0], run.error):
        error, arguments = first
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return _out_of_memory(error)
        if isinstance(error, TypeCheckError):
            return [*_type_error(error), "", "given", *(f"  {n} = {show(x)}" for n, x in arguments.items())]
        said = "nothing is written there yet" if isinstance(error, NotImplementedError) else _named(error)
        return [
            f"your function raised {said}",
            *_where(error, file),
            "",
            "given",
            *(f"  {n} = {show(x)}" for n, x in arguments.items()),
        ]
    assert run.failed is not None
    door.judging = True
    Run(door).tests([run.failed])
    try:
        lines = explain(door.seen, door.signature, door.ours)
    except Exception as error:  # what an answer returns may be anything; that it is refused stands
        lines = [f"what is returned cannot be compared ({_named(error)})"]
    return [*(lines or ["each call returns what ours returns; what fails is a law that ties several calls"]), "", *held]


def _is_yours(error: BaseException, failure: BaseException) -> bool:
    """Whether the failure of the test is, or comes from, what the answer raised."""
    seen: BaseException | None = failure
    while seen is not None:
        if seen is error:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _type_error(error: BaseException) -> list[str]:
    """jaxtyping's words, less its pointers"""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip() and not line.startswith(("---", "http"))]
    kept = [line for line in lines if not line.startswith(("Called with", "Parameter annotations", "Note"))]
    return ["the shape or dtype does not fit the annotation:", *(f"  {line}"[:300] for line in kept[:6])]


def _named(error: BaseException) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__


def _where(error: BaseException, file: Path) -> list[str]:
    """The line of the answer that was running"""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return [f"  line {frames[-1].lineno}: {frames[-1].line}"] if frames else []


def _out_of_memory(error: BaseException) -> list[str]:
    return [f"out of memory: more than {MEMORY >> 20} MiB were asked for", f"  {_named(error)[:200]}"]


STOPPED: list[int] = []


def _stopped_at(file: Path) -> list[str]:
    return [f"  it was at line {line}: {linecache.getline(str(file), line).strip()}" for line in STOPPED[-1:] if line]


@contextlib.contextmanager
def _timed(seconds: float) -> Any:
    """OutOfTime after so many seconds of computing; waiting is for `launch` to end."""

    def stop(_: int, frame: Any) -> None:
        while frame is not None:
            if frame.f_globals.get("__name__") == ANSWER:
                STOPPED.append(frame.f_lineno)
                break
            frame = frame.f_back
        raise OutOfTime

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def limit_memory() -> None:
    """`MEMORY` more than what is mapped now: torch maps gigabytes that it never touches."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def warm_up(names: Sequence[str]) -> None:
    """What the first use of torch, of torch.func and of our functions takes, once for many answers."""
    import torch
    from torch.func import grad, vmap

    torch.set_num_threads(1)
    grad(lambda x: vmap(lambda y: y * y)(x).sum())(torch.ones(2))
    for name in names:
        resolve_name(DRILLS[name].of)
    hypothesis.given(strategies.integers())(lambda _: None)()
    gc.collect()
    gc.freeze()  # else each fork would go through all that was loaded, and copy it


def main() -> None:
    out, name, file = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    warm_up([name])
    limit_memory()
    verdict = grade(name, file)
    os.write(out, json.dumps(verdict._asdict()).encode())
    sys.stdout.flush()
    os._exit(0)  # at once: libraries complain on their way out of what `freeze` has kept


if __name__ == "__main__":
    from experiments.drills.grade import main as graded  # the module that the answer's tests would import, once

    graded()
