"""Grade one answer: it stands in for our function, and the tests that hold ours run.

    python -m experiments.drill.grade NAME FILE VERDICT.json

A test counts if it passed and called the answer. The main thing is graded first, then the options, then the edges, up
to the first test that fails. `launch` starts this in a process of its own, `warm` in a fork; either ends it if it waits
too long.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

import hypothesis
import pytest
import torch
from jaxtyping import TypeCheckError

from experiments.drill.answer import Wrong, line_of, load
from experiments.drill.catalogue import DRILLS
from experiments.drill.explain import explain, show
from experiments.drill.launch import ROOT, Verdict, write_verdict
from experiments.drill.limits import CPU_SECONDS, MEMORY, OutOfMemory, OutOfTime, limit_memory, memory_limited, timed
from experiments.drill.recorder import RECORDER, Arguments, Recorder
from experiments.shared.errors import first_line

AS_OURS = (
    "nothing that it returned could be compared with ours",
    "what it returns is what ours returns; what fails is what else the test asks for",
    "each call returns what ours returns; what fails is a law that ties several calls",
)
"""of no call, of one, of several"""
UNDER_VMAP = "it is run under vmap too, where no number can be taken out of a tensor: no float(), .item(), math or if"
TAKES_A_NUMBER = ("vmap:", "Cannot access data pointer of Tensor that doesn't have storage")
"""how torch's messages begin for .item() and .tolist() under vmap"""
EXAMPLES = 15
"""that Hypothesis draws for a test: its own number holds our function, fewer tell a wrong answer"""
CALLS = 30
"""of each test that are compared first: a loop of an optimizer makes more, which go wrong alike"""
SEED = 1
"""of the examples: without it they would change with the source of a test; with this one they show every mistake"""
OPTIONS = [f"--rootdir={ROOT}", f"--config-file={ROOT}/pyproject.toml", "--override-ini=addopts=", "-x", "-q"]
OPTIONS += ["--override-ini=filterwarnings=", "-Wignore::pytest.PytestAssertRewriteWarning"]
OPTIONS += [f"-pno:{plugin}" for plugin in ("cacheprovider", "faulthandler", "threadexception", "unraisableexception")]


def grade(name: str, file: Path, *, allow_torch: bool = False, seconds: float = CPU_SECONDS) -> Verdict:
    """Return the verdict on the answer in `file`."""
    try:
        recorder = Recorder(load(name, file, seconds, allow_torch=allow_torch), resolve_name(DRILLS[name].of))
    except Wrong as error:
        return Verdict(False, str(error).splitlines())
    run = Run(recorder, DRILLS[name].stages, seconds)
    verdict = _verdict(run, name, file, seconds, run.tests())
    return verdict._replace(lines=[*verdict.lines, *_printed(run.printed)])


def _verdict(run: "Run", name: str, file: Path, seconds: float, status: int) -> Verdict:
    if isinstance(run.error, OutOfTime):
        line = run.error.args[0]
        stopped = [f"  it was at line {line}: {file.read_text().splitlines()[line - 1].strip()}"] if line else []
        return Verdict(False, [f"not done after {seconds:g} s: is there a loop that does not end?", *stopped])
    if isinstance(run.error, OutOfMemory):
        return Verdict(False, [f"out of memory: more than {MEMORY >> 20} MiB were asked for", f"  {run.error}"[:200]])
    if run.failed is not None:
        lines = run.said
        with contextlib.suppress(OutOfTime, OutOfMemory), timed(seconds):
            lines = _explain(run, file)
        return _refused(run, lines)
    if not run.counted:
        return Verdict(False, [f"no test went through your `{name}` (pytest ended with {status}): nothing is proved"])
    said = f"{run.counted} tests that hold ours hold yours"
    return Verdict(True, [*_right_so_far(run), said], run.counted, star=True)


def _refused(run: "Run", lines: list[str]) -> Verdict:
    """Return the verdict where a test failed: a pass, short of the star, if it was one of an edge."""
    if run.stage == "main":
        return Verdict(False, lines, run.counted)
    is_edge = run.stage == "edges"
    wanted = "for the star, an edge wants more:" if is_edge else "to pass, it has to do more:"
    return Verdict(is_edge, [*_right_so_far(run), wanted, *lines], run.counted)


def _right_so_far(run: "Run") -> list[str]:
    """Say which stages are right, on how many calls."""
    words = {"main": "right on ordinary input", "options": "with its options", "edges": "on its edges"}
    done = run.cases if run.failed is None else {s: n for s, n in run.cases.items() if s != run.stage}
    said = [f"{words[stage]} ({n} case{'s' * (n != 1)})" for stage, n in done.items()]
    return [", ".join(said)] if said else []


class Run:
    """A plugin of pytest that hands the answer to the tests, counts those that call it, and keeps the first failure."""

    def __init__(self, recorder: Recorder, stages: dict[str, tuple[str, ...]], seconds: float | None = None) -> None:
        self.recorder, self.stages, self.counted, self.printed = recorder, stages, 0, ""
        self.seconds = seconds
        """for all tests, once they are collected; None where who calls holds the clock"""
        self.stage = "main"
        """of the test that ran last"""
        self.cases: dict[str, int] = {}
        """calls of the answer in the tests of each stage that passed"""
        self.failed: str | None = None
        self.said: list[str] = []
        self.error: BaseException | None = None
        self.raised: tuple[BaseException, Arguments] | None = None
        """the exception of the answer when the test failed, and the arguments of that call"""

    def tests(self, ids: Sequence[str] | None = None) -> int:
        """Run them, or those of every stage, up to the first failure; pytest's exit status."""
        if ids is None:
            ids = [test for stage in self.stages.values() for test in stage]
        raises = pytest.raises
        any_words = patch.object(pytest, "raises", lambda *args, match=None, **options: raises(*args, **options))
        only_ours = patch.dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with any_words, only_ours, silent[0], silent[1]:
            return int(pytest.main([*OPTIONS, *(f"{ROOT}/{test}" for test in ids)], plugins=[self]))

    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[RECORDER] = self.recorder

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            own = getattr(item.obj, "_hypothesis_internal_use_settings", None)
            if own is not None:
                few: dict[str, Any] = {"max_examples": min(own.max_examples, EXAMPLES), "database": None}
                few["phases"] = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # no time for shrinking
                few["report_multiple_bugs"] = False  # a group of exceptions is not the answer's own
                item.obj._hypothesis_internal_use_settings = hypothesis.settings(own, **few)
                item.obj._hypothesis_internal_use_seed = SEED

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Any:
        try:
            with timed(self.seconds) if self.seconds is not None else contextlib.nullcontext():
                return (yield)
        except OutOfTime as error:  # between two tests
            self.error = error
            raise

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        self.recorder.calls, self.recorder.error = 0, None
        self.stage = self._stage_of(item.nodeid)
        try:
            with memory_limited():
                result = yield
        except BaseException as error:
            self.error, self.raised = error, self.recorder.error
            title = item.name.removeprefix("test_").replace("_", " ")
            self.failed, self.said = item.nodeid, [f"{title}: {first_line(error)}"]
            raise
        if self.recorder.calls:
            self.counted += 1
            self.cases[self.stage] = self.cases.get(self.stage, 0) + self.recorder.calls
        return result

    def _stage_of(self, nodeid: str) -> str:
        """Return the stage of a test; a row names a case, or a test for all of its cases."""
        test = nodeid.partition("[")[0]
        return next((stage for stage, ids in self.stages.items() if nodeid in ids or test in ids), "main")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.printed += report.capstdout
        if report.failed and self.failed is None:
            self.failed, self.said = report.nodeid, [str(report.longrepr)[-400:]]


def _explain(run: Run, file: Path) -> list[str]:
    """Say what is wrong: run the failing test, with its cases of that stage, again, and compare each call with ours."""
    if run.raised is not None and run.error is not None and _comes_from(run.raised[0], run.error):
        return _say_raised(*run.raised, file)
    assert run.failed is not None
    recorder, test = run.recorder, run.failed.partition("[")[0]
    cases = [case for case in run.stages[run.stage] if case.partition("[")[0] == test]
    lines = _compared(run, cases, CALLS)
    if not lines and recorder.cut:
        lines = _compared(run, cases, None)
    said = [f"the test that fails: {run.said[0]}"] if run.said else []
    return [*(lines or [AS_OURS[min(len(recorder.seen), 2)]]), "", *said]


def _compared(run: Run, cases: Sequence[str], most: int | None) -> list[str]:
    """Run tests with both functions, up to so many calls in each; say what differs, if anything does."""
    recorder = run.recorder
    recorder.comparing, recorder.most, recorder.seen = True, most, []
    Run(recorder, run.stages).tests(cases)
    try:
        return explain(recorder.seen, recorder.signature, recorder.ours)
    except Exception as error:  # an answer may return anything; that it is refused stands
        return [f"what is returned cannot be compared ({first_line(error)})"]


def _comes_from(error: BaseException, failure: BaseException | None) -> bool:
    """Return whether the failure of the test is the exception of the answer, or was raised from it."""
    while failure is not None and failure is not error:
        failure = failure.__cause__ or failure.__context__
    return failure is error


def _say_raised(error: BaseException, arguments: Arguments, file: Path) -> list[str]:
    given = ["", "given", *(f"  {name} = {show(x)}" for name, x in arguments.items())]
    if isinstance(error, TypeCheckError):
        return [*_type_error(error), *given]
    said = "nothing is written there yet" if isinstance(error, NotImplementedError) else first_line(error)
    under_vmap = [UNDER_VMAP] if str(error).startswith(TAKES_A_NUMBER) else []
    return [f"your function raised {said}", *under_vmap, *line_of(error, file), *given]


def _type_error(error: BaseException) -> list[str]:
    """Return jaxtyping's words, less its pointers."""
    text = re.sub(r"\n(\s+|(?=[\])}]))", " ", str(error))  # a value of many lines is one
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith(("---", "http"))]
    kept = [line for line in lines if not line.startswith(("Called with", "Parameter annotations", "Note"))]
    if "return value" in text and "  Actual value: None" in (f"  {line.strip()}" for line in kept):
        return ["nothing is returned: is a `return` missing?"]
    return ["the shape or dtype does not fit the annotation:", *(f"  {line}"[:300] for line in kept[:6])]


def _printed(text: str, most: int = 10) -> list[str]:
    """Return the first lines that the answer printed."""
    lines = [line[:120] for line in text.splitlines()]
    more = [f"  … of {len(lines)} lines"] if len(lines) > most else []
    return ["", "yours printed", *(f"  {line}" for line in lines[:most]), *more] if lines else []


def main() -> None:
    if len(sys.argv) != 4 or sys.argv[1] not in DRILLS:
        print("usage: python -m experiments.drill.grade DRILL FILE VERDICT.json", file=sys.stderr)
        sys.exit(2)
    name, file, out = sys.argv[1], *map(Path, sys.argv[2:])
    torch.set_num_threads(1)
    resolve_name(DRILLS[name].of)  # before the limit: what our own modules map is not the answer's
    limit_memory()
    write_verdict(grade(name, file), out)


if __name__ == "__main__":
    main()
