"""The kinds of task: the file that each begins with, its place, and who grades it.

A task is named KIND:NAME, a drill by its name alone. A kind is three functions: `begin(name)` is the text that the file
begins with, `place(name)` where it lies, `grade(name, file)` a Grade. A module becomes a kind by `of_module`.
"""

import random
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from experiments.drill import __main__ as drill
from experiments.drill import whole_lab
from experiments.drill.catalogue import WHOLES
from experiments.drill.launch import Verdict
from experiments.gallery import mine
from experiments.gallery.failures import Failure, gallery
from experiments.learn.questions import QUESTIONS
from experiments.shared import answers
from experiments.since import rewrite


class Grade(NamedTuple):
    passed: bool
    lines: list[str]
    star: bool = True


class Kind(NamedTuple):
    begin: Callable[[str], str]
    place: Callable[[str], Path]
    grade: Callable[[str, Path], Grade]
    hints: Callable[[str], tuple[str, ...]]
    difference: Callable[[str], Any] | None
    """prints ours beside theirs"""


MODULES = {"bug": mine, "rewrite": rewrite}
"""kinds that are modules: begin, place, grade, solution, and warm for a process that grades again and again"""


def grade_here(module: ModuleType, name: str, file: Path) -> list[str]:
    return module.grade(name, file)


def kinds(
    graded: Callable[[str, Path], Verdict], lines: Callable[[ModuleType, str, Path], list[str]] = grade_here
) -> dict[str, Kind]:
    """Return every kind by the name before the colon, "" for drills, which `graded` grades; modules by `lines`."""
    return {
        "": Kind(drill.text, drill.place, _by(graded), drill.hints_of, drill.show),
        "question": Kind(begin_question, place_question, grade_question, _no_hints, None),
        "failure": Kind(begin_failure, place_failure, grade_failure, find_failure, None),
        "shape": Kind(begin_shape, place_shape, grade_shape, shape_hints, None),
        **{kind: of_module(module, lines) for kind, module in MODULES.items()},
    }


def of_module(module: ModuleType, lines: Callable[[ModuleType, str, Path], list[str]] = grade_here) -> Kind:
    """Return a kind from a module of four functions.

    begin(name) -> str              the text that the file begins with
    place(name) -> Path             where it lies
    grade(name, path) -> list[str]  what is wrong, nothing if it is right
    solution(name) -> str           ours, shown beside theirs once theirs has passed
    """

    def grade(name: str, file: Path) -> Grade:
        wrong = lines(module, name, file)
        return Grade(not wrong, wrong or ["right"])

    def difference(name: str) -> None:
        answers.compare("today's way" if module is rewrite else "mended", module.solution(name), module.place(name))

    return Kind(module.begin, module.place, grade, _no_hints, difference)


def _no_hints(_: str) -> tuple[str, ...]:
    return ()


# Drills.


def _by(graded: Callable[[str, Path], Verdict]) -> Callable[[str, Path], Grade]:
    def grade(name: str, file: Path) -> Grade:
        verdict = whole_lab.check(name, file) if name in WHOLES else graded(name, file)
        return Grade(verdict.passed, verdict.lines, verdict.star)

    return grade


# Questions: a file with the question, and a line to complete.

ANSWER = "answer = "


def _ask(lines: list[str]) -> str:
    """Return the text of a question's file."""
    text = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    return f"{text}\n# Write it below, and save the file.\n{ANSWER}\n"


def answer_in(file: Path) -> str:
    """Return the text behind the last `answer =`."""
    found = re.findall(r"^\s*answer\s*=[ \t]*(.*)$", file.read_text(errors="replace"), re.MULTILINE)
    return found[-1].split("#")[0].strip().strip("'\"") if found else ""


def _numbered(choices: list[str]) -> list[str]:
    return ["", *(f"{number}  {choice}" for number, choice in enumerate(choices, start=1))]


def _grade_choice(given: str, right: int, why: str) -> Grade:
    if given not in ("1", "2", "3", "4"):
        return Grade(False, ["write 1, 2, 3 or 4"])
    return Grade(int(given) == right, [f"right: {why}" if int(given) == right else "no: look again"])


def place_question(name: str) -> Path:
    return drill.FOLDER / "questions" / f"{name}.py"


def begin_question(name: str) -> str:
    q = QUESTIONS[name]
    return _ask(["What does this print?", "", *q.code.splitlines(), *_numbered([*q.choices])])


def grade_question(name: str, file: Path) -> Grade:
    q = QUESTIONS[name]
    return _grade_choice(answer_in(file), q.right, q.why)


# Failures of the gallery, under names that give nothing away: a symptom, four causes.


def place_failure(name: str) -> Path:
    return drill.FOLDER / "questions" / f"{name}.py"


def causes(failure: Failure) -> list[str]:
    """Return the titles of four failures, the right one among them; the others are of its kind as far as possible."""
    rng = random.Random(failure.name)
    others = [f for f in gallery().values() if f.name not in failure.akin | {failure.name}]
    rng.shuffle(others)
    others.sort(key=lambda f: f.kind != failure.kind)
    titles = [failure.title, *(f.title for f in others[:3])]
    rng.shuffle(titles)
    return titles


def begin_failure(name: str) -> str:
    failure = mine.named(name)
    symptom = textwrap.wrap(failure.symptom, 76)
    return _ask(["Which cause has this symptom?", "", *symptom, *_numbered(causes(failure))])


def grade_failure(name: str, file: Path) -> Grade:
    failure = mine.named(name)
    right = causes(failure).index(failure.title) + 1
    return _grade_choice(answer_in(file), right, f"{failure.parts['Cause']} just break {failure.name} runs it.")


def find_failure(name: str) -> tuple[str, ...]:
    return (mine.named(name).parts["Expect"], mine.named(name).parts["Find"])


# Shapes: the arithmetic of Lab 1.


def place_shape(name: str) -> Path:
    return drill.FOLDER / "questions" / f"shape_{name}.py"


def shape_of(name: str) -> tuple[dict[str, int], int]:
    """Return the sizes of a convolution, drawn from the name, and the side of what it gives."""
    rng = random.Random(name)
    s = {"image": rng.randrange(16, 65), "kernel": rng.choice([3, 5, 7]), "stride": rng.choice([1, 2, 3])}
    s |= {"padding": rng.randrange(0, 4), "dilation": rng.choice([1, 1, 2])}
    span = s["dilation"] * (s["kernel"] - 1) + 1
    return s, (s["image"] + 2 * s["padding"] - span) // s["stride"] + 1


def begin_shape(name: str) -> str:
    sizes, _ = shape_of(name)
    given = ", ".join(f"{what} {n}" for what, n in sizes.items())
    return _ask(["A convolution, the same along both axes:", f"  {given}", "How long is the side of the result?"])


def grade_shape(name: str, file: Path) -> Grade:
    s, side = shape_of(name)
    given = answer_in(file)
    if not given.isdigit():
        return Grade(False, ["write a whole number"])
    span = s["dilation"] * (s["kernel"] - 1) + 1
    sum_ = f"⌊({s['image']} + 2·{s['padding']} - {span}) / {s['stride']}⌋ + 1 = {side}"
    return Grade(int(given) == side, [f"right: {sum_}" if int(given) == side else "no"])


def shape_hints(_: str) -> tuple[str, ...]:
    return ("A dilated kernel spans d·(k - 1) + 1.", "⌊(n + 2p - span) / s⌋ + 1")
