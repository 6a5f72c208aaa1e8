"""Prove the graders: every wrong answer of tests/drills is refused in fitting words, every right one passes.

    python -m experiments.drill.prove [NAME…]

Each file there is an answer in another style than ours. `torchs`, if there is one, calls torch's own function. WRONG
lists mistakes that people make: what stands in the answer, what they write instead, and what they must be told. An
answer is graded in a fork of one process that has torch and our functions in memory.
"""

import ast
import contextlib
import gc
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.drill import cut, warm
from experiments.drill.catalogue import DRILLS
from experiments.drill.launch import ROOT, Verdict
from experiments.drill.limits import CPU_SECONDS

REHEARSED_FROM = 4
"""answers to one drill, from which on it pays to have its tests in memory"""
BARRED = "this calls"
"""how the refusal begins of an answer that leaves the work to another function"""


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
        """Return whether a right answer got a star, or a wrong one fitting words: refused, or passed without a star."""
        told = self.answer.phrase in "\n".join(self.verdict.lines)
        return self.verdict.star == self.answer.right and (self.answer.right or told)


def answers(name: str) -> Iterator[Answer]:
    """Yield the right answer, torch's own, one that calls ours, the wrong ones.

    ValueError for an edit without a place.
    """
    head, wrong = (ROOT / "tests" / "drills" / f"{name}.py").read_text().split("\nWRONG = ")
    right, torchs = _cut_out(head, "torchs")
    yield Answer(name, "in another style", right, True)
    if torchs:
        renamed = f"{right}\n\n{torchs}\n\n{DRILLS[name].of.partition(':')[2]} = torchs\n"
        yield Answer(name, "torch's own", renamed, True, allow_torch=True)
        yield Answer(name, "torch's own, where it is not allowed", renamed, False, phrase=BARRED)
    if isinstance(cut.source(name).node, ast.FunctionDef):
        yield Answer(name, "calls ours", _calls_ours(name), False, phrase=f"{BARRED} our own")
    for label, (*edits, phrase) in ast.literal_eval(wrong).items():
        text = right
        for old, new in zip(edits[::2], edits[1::2], strict=True):
            if text.count(old) != 1:
                raise ValueError(f"{name}, {label}: {old!r} is in the answer {text.count(old)} times")
            text = text.replace(old, new)
        yield Answer(name, label, text, False, phrase=phrase)


def _cut_out(text: str, function: str) -> tuple[str, str]:
    """Return (the file without this function, the function)"""
    with contextlib.suppress(LookupError):
        node, lines = cut.definition_of(ast.parse(text), function), text.splitlines()
        first, end = node.lineno - 1, node.end_lineno
        return "\n".join(lines[:first] + lines[end:]), "\n".join(lines[first:end])
    return text, ""


def _calls_ours(name: str) -> str:
    """Return the file that a drill begins with, and below its signature a call of our function."""
    module, _, defined = DRILLS[name].of.partition(":")
    node = cut.source(name).node
    assert isinstance(node, ast.FunctionDef)
    arguments = [a.arg for a in node.args.args] + [f"{a.arg}={a.arg}" for a in node.args.kwonlyargs]
    arguments += [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
    body = f"return ours({', '.join(arguments)})"
    return f"from {module} import {defined} as ours\n" + cut.cut(name).replace(cut.EMPTY, body)


def grade_all(answers: Sequence[Answer], seconds: float = CPU_SECONDS) -> Iterator[Outcome]:
    """Grade one answer after the other, each in a fork."""
    count = Counter(answer.drill for answer in answers)
    warm.import_all(count)
    rehearsed = {name for name, n in count.items() if n < REHEARSED_FROM}
    with tempfile.TemporaryDirectory() as folder:
        for answer in answers:
            if answer.drill not in rehearsed:
                rehearsed.add(answer.drill)
                warm.rehearse(answer.drill)
            file = Path(folder) / f"{answer.drill}.py"
            file.write_text(answer.text)
            yield Outcome(answer, warm.forked(answer.drill, file, allow_torch=answer.allow_torch, seconds=seconds))
    gc.unfreeze()


def main(names: Sequence[str]) -> int:
    """Print a line per answer and the counts; 1 if a grader is wrong."""
    if unknown := [name for name in names if name not in DRILLS]:
        print(f"error: there is no drill {unknown[0]!r}; just drill lists them", file=sys.stderr)
        return 2
    began, outcomes = time.perf_counter(), []
    for outcome in grade_all([answer for name in names or DRILLS for answer in answers(name)]):
        outcomes.append(outcome)
        answer, verdict = outcome
        told = (
            "passed"
            if verdict.star
            else "; ".join(verdict.lines[: 3 if verdict.lines[0].startswith("right on") else 1])
        )
        print(f"{'ok    ' if outcome.ok else 'WRONG '} {answer.drill}: {answer.label}: {told}", flush=True)
        if not outcome.ok:
            print(*(f"           {line}" for line in verdict.lines), sep="\n")
            print(f"           to be said: {answer.phrase!r}")
    wrong, barred, right = ([o.ok for o in outcomes if o.answer.kind == kind] for kind in ("wrong", "barred", "right"))
    print(
        f"{sum(wrong)} of {len(wrong)} wrong answers are refused in fitting words, and so are {sum(barred)} of "
        f"{len(barred)} that call ours or torch's; {sum(right)} of {len(right)} right ones pass: "
        f"{len({o.answer.drill for o in outcomes})} drills, {time.perf_counter() - began:.0f} s"
    )
    return 0 if all(o.ok for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
