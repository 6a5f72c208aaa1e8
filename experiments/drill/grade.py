"""Grade one answer: it takes the place of our function, and the tests that hold ours run.

    python -m experiments.drill.grade NAME FILE

A test counts if it passed and went through the answer. `launch` is who starts this, with limits on time and memory, and
says on its standard input to which descriptor the verdict goes, and under which seal.
"""

import contextlib
import gc
import inspect
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import hypothesis
import pytest
from hypothesis import strategies
from jaxtyping import TypeCheckError

from experiments.drill import cut
from experiments.drill.answer import Wrong, answer, named, where
from experiments.drill.catalogue import DRILLS
from experiments.drill.door import Door, checked
from experiments.drill.explain import explain, show
from experiments.drill.launch import CPU_SECONDS, MEMORY, Verdict, sealed
from experiments.drill.limits import OutOfTime, limit_memory, stopped_at, timed

AS_OURS = (
    "nothing that it returned could be compared with ours",
    "what it returns is what ours returns; what fails is what else the test asks for",
    "each call returns what ours returns; what fails is a law that ties several calls",
)
"""of no call, of one, of several"""
UNDER_VMAP = "it is run under vmap too, where no number can be taken out of a tensor: no float(), .item(), math or if"
TAKES_A_NUMBER = ("vmap:", "Cannot access data pointer of Tensor that doesn't have storage")
"""how torch begins to say that there is none to take: .item(), and .tolist()"""
EXAMPLES = 15
"""that Hypothesis draws for a test: its own number holds our function, fewer tell a wrong answer"""


def grade(name: str, file: Path, *, allow_torch: bool = False, seconds: float = CPU_SECONDS) -> Verdict:
    """The verdict on the answer in `file`; this process is good for nothing else afterwards."""
    try:
        yours = answer(name, file, seconds)
    except Wrong as error:
        return Verdict(False, str(error).splitlines())
    door = install(name, yours, allow_torch)
    verdict = _judged(door, name, file, seconds)
    return verdict._replace(lines=[*verdict.lines, *_printed(door.printed.getvalue())])


def _judged(door: Door, name: str, file: Path, seconds: float) -> Verdict:
    run = Run(door)
    status = 0
    try:
        with timed(seconds):
            status = run.tests(DRILLS[name].tests)
    except OutOfTime as error:
        run.error = error
    except MemoryError as error:
        return Verdict(False, _out_of_memory(error))
    if isinstance(run.error, OutOfTime):  # pytest takes it for a failure
        return Verdict(False, [f"not done after {seconds:g} s: is there a loop that does not end?", *stopped_at(file)])
    if door.refusal is not None:
        return Verdict(False, [f"this calls {door.refusal}, which does what you are to write"])
    if run.failed is None:
        if not run.counted:
            return Verdict(
                False, [f"no test went through your `{name}` (pytest ended with {status}): nothing is proved"]
            )
        return Verdict(True, [f"{run.counted} tests that hold ours hold yours"], run.counted)
    try:
        with timed(seconds):
            lines = _taught(run, file, DRILLS[name].tests)
    except OutOfTime:
        lines = run.said
    return Verdict(False, lines, run.counted)


def _printed(text: str, most: int = 10) -> list[str]:
    """What the answer printed: the first lines of it"""
    lines = [line[:120] for line in text.splitlines()]
    more = [f"  … of {len(lines)} lines"] if len(lines) > most else []
    return ["", "yours printed", *(f"  {line}" for line in lines[:most]), *more] if lines else []


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
        self.door, self.counted = door, 0
        self.failed: str | None = None
        self.said: list[str] = []
        self.error: BaseException | None = None
        self.raised: tuple[BaseException, dict[str, Any]] | None = None
        """what the answer had raised when the test failed, and what it was given"""

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
        raises = pytest.raises
        in_any_words = patch.object(pytest, "raises", lambda *args, match=None, **kwargs: raises(*args, **kwargs))
        with in_any_words, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
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
                self.said = [f"{_title(item)}: {named(error)}"]
            raise
        self.counted += self.door.calls > 0
        return result

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed, self.said = report.nodeid, [str(report.longrepr)[-400:]]


def _title(item: Any) -> str:
    return item.name.removeprefix("test_").replace("_", " ")


def _taught(run: Run, file: Path, tests: Sequence[str]) -> list[str]:
    """What is wrong: the test that failed, with all its cases, once more, where ours answers and yours is compared."""
    door, first = run.door, run.raised
    held = [f"the test that fails: {run.said[0]}"] if run.said else []
    if first is not None and run.error is not None and _is_yours(first[0], run.error):
        error, arguments = first
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return _out_of_memory(error)
        if isinstance(error, TypeCheckError):
            return [*_type_error(error), "", "given", *(f"  {n} = {show(x)}" for n, x in arguments.items())]
        said = "nothing is written there yet" if isinstance(error, NotImplementedError) else named(error)
        return [
            f"your function raised {said}",
            *([UNDER_VMAP] if str(error).startswith(TAKES_A_NUMBER) else []),
            *where(error, file),
            "",
            "given",
            *(f"  {n} = {show(x)}" for n, x in arguments.items()),
        ]
    assert run.failed is not None
    door.judging = True
    failed = run.failed.partition("[")[0]
    Run(door).tests([test for test in tests if test.partition("[")[0] == failed])
    try:
        lines = explain(door.seen, door.signature, door.ours)
    except Exception as error:  # what an answer returns may be anything; that it is refused stands
        lines = [f"what is returned cannot be compared ({named(error)})"]
    return [*(lines or [AS_OURS[min(len(door.seen), 2)]]), "", *held]


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


def _out_of_memory(error: BaseException) -> list[str]:
    return [f"out of memory: more than {MEMORY >> 20} MiB were asked for", f"  {named(error)[:200]}"]


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
    name, file = sys.argv[1], Path(sys.argv[2])
    out, seal = sys.stdin.readline().split()
    warm_up([name])
    limit_memory()
    verdict = grade(name, file)
    os.write(int(out), sealed(verdict, seal))
    sys.stdout.flush()
    os._exit(0)  # at once: libraries complain on their way out of what `freeze` has kept


if __name__ == "__main__":
    from experiments.drill.grade import main as graded  # the module that the answer's tests would import, once

    graded()
