"""The proof of the graders: every wrong answer of tests/drills is refused in fitting words, every right one passes.

    python -m experiments.drill.prove [NAME…]

An answer is graded in a fork of one process that has torch and our functions in memory. Each file there is an answer in
another style than ours; `torchs`, where there is one, is torch's own function; WRONG lists what people write instead:
what stands in the answer, what they write, and what they must be told.
"""

import ast
import gc
import importlib
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from experiments.drill import cut
from experiments.drill.catalogue import DRILLS
from experiments.drill.launch import CPU_SECONDS, Verdict, read, sealed, verdict

IMPORTED_BY_TESTS = ("tests.strategies", "sklearn.metrics", "scipy.stats", "pycocotools.cocoeval", "torchvision.ops")
"""here, so that no fork has to"""


BARRED = "this calls"
"""how a refusal begins of an answer that has another function do the work"""


class Answer(NamedTuple):
    drill: str
    label: str
    text: str
    right: bool
    allow_torch: bool = False
    phrase: str = ""
    """what a refusal must say"""

    @property
    def kind(self) -> str:
        return "right" if self.right else "barred" if self.phrase.startswith(BARRED) else "wrong"


class Outcome(NamedTuple):
    answer: Answer
    verdict: Verdict

    @property
    def ok(self) -> bool:
        """Passed if right; refused in fitting words if wrong."""
        said = self.answer.phrase in "\n".join(self.verdict.lines)
        return self.verdict.passed == self.answer.right and (self.answer.right or said)


def answers(name: str) -> Iterator[Answer]:
    """The right answer, torch's own, and each wrong one; ValueError for one whose text is not to be found."""
    text = (cut.ROOT / "tests" / "drills" / f"{name}.py").read_text()
    head = text.partition("\nWRONG")[0]
    space: dict = {}
    exec(compile(text, f"tests/drills/{name}.py", "exec"), space)
    defined = DRILLS[name].of.partition(":")[2]
    yield Answer(name, "in another style", head, True)
    if "torchs" in space:
        yield Answer(name, "torch's own", f"{head}\n\n{defined} = torchs\n", True, allow_torch=True)
        yield Answer(
            name, "torch's own, where it is not allowed", f"{head}\n\n{defined} = torchs\n", False, phrase=BARRED
        )
    if not isinstance(cut.source(name).node, ast.ClassDef):
        yield Answer(name, "calls ours", _calls_ours(name), False, phrase=f"{BARRED} our own")
    for label, (*edits, phrase) in space["WRONG"].items():
        wrong = head
        for old, new in zip(edits[::2], edits[1::2], strict=True):
            if wrong.count(old) != 1:
                raise ValueError(f"{name}, {label}: {old!r} is there {wrong.count(old)} times")
            wrong = wrong.replace(old, new)
        yield Answer(name, label, wrong, False, phrase=phrase)


def _calls_ours(name: str) -> str:
    """The file that a drill begins with, and our function called below its signature."""
    module, _, defined = DRILLS[name].of.partition(":")
    node = cut.source(name).node
    assert isinstance(node, ast.FunctionDef)
    arguments = [a.arg for a in node.args.args] + [f"{a.arg}={a.arg}" for a in node.args.kwonlyargs]
    arguments += [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
    body = f"return ours({', '.join(arguments)})"
    return f"from {module} import {defined} as ours\n" + cut.cut(name).replace(cut.EMPTY, body)


def prove(names: Sequence[str]) -> Iterator[Outcome]:
    """Each answer of each drill and its verdict, one after the other."""
    return grade_all([answer for name in names for answer in answers(name)])


def grade_all(some: Sequence[Answer], seconds: float = CPU_SECONDS) -> Iterator[Outcome]:
    from experiments.drill import grade

    for module in IMPORTED_BY_TESTS:
        importlib.import_module(module)
    grade.warm_up(sorted({answer.drill for answer in some}))
    with tempfile.TemporaryDirectory() as folder:
        for answer in some:
            file = Path(folder) / f"{answer.drill}.py"
            file.write_text(answer.text)
            yield Outcome(answer, _in_a_fork(answer, file, seconds))
    gc.unfreeze()


def _in_a_fork(answer: Answer, file: Path, seconds: float) -> Verdict:
    from experiments.drill import grade, limits

    reader, writer = os.pipe()
    seal = secrets.token_hex()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 1
        with suppress(BaseException):
            os.close(reader)
            limits.limit_memory()
            result = grade.grade(answer.drill, file, allow_torch=answer.allow_torch, seconds=seconds)
            os.write(writer, sealed(result, seal))
            status = 0
        os._exit(status)
    os.close(writer)
    said = read(reader)
    _, status = os.waitpid(child, 0)
    return verdict(said, seal, -signal.SIGKILL if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status))


def main(names: Sequence[str]) -> int:
    began, outcomes = time.perf_counter(), []
    for outcome in prove(names or list(DRILLS)):
        outcomes.append(outcome)
        answer = outcome.answer
        told = "passed" if outcome.verdict.passed else outcome.verdict.lines[0]
        print(f"{'ok    ' if outcome.ok else 'WRONG '} {answer.drill}: {answer.label}: {told}", flush=True)
        if not outcome.ok:
            print(
                *(f"           {line}" for line in outcome.verdict.lines),
                f"           to be said: {answer.phrase!r}",
                sep="\n",
            )
    wrong, barred, right = ([o.ok for o in outcomes if o.answer.kind == kind] for kind in ("wrong", "barred", "right"))
    drills = len({o.answer.drill for o in outcomes})
    print(
        f"{sum(wrong)} of {len(wrong)} wrong answers are refused in fitting words, and so are {sum(barred)} of "
        f"{len(barred)} that call ours or torch's; {sum(right)} of {len(right)} right ones pass: {drills} drills, "
        f"{time.perf_counter() - began:.0f} s"
    )
    return 0 if all(o.ok for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
