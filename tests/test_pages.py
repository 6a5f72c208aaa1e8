"""The page of each lab: what it names is there, what it says of a change is so, and how it is printed."""

import io
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from rich.console import Console

from experiments import lab as labs
from experiments.drill import __main__ as drill
from experiments.drill import cut
from experiments.drill.catalogue import DRILLS
from experiments.gallery.failures import gallery
from experiments.learn.concepts import CONCEPTS
from experiments.learn.loop import Desk, pose
from experiments.learn.questions import QUESTIONS
from experiments.shared import cli, page, show
from experiments.shared.page import Change
from experiments.shared.source import definitions, show_code
from experiments.since.pairs import pairs
from tests.apply_change import edited, new_source, ours_of_all_modules
from tests.lab_parts import PARTS, make_small

SECTIONS = ["Read, in this order", "The equations", "Predict, before you run", "Change it, and run again"]
SECTIONS += ["Write it yourself", "Questions", "Next"]
CHANGES = [(n, change) for n in labs.LABS for change in page.changes(n)]


# What a page holds.


@pytest.mark.parametrize("n", labs.LABS)
def test_a_page_has_its_sections_and_is_short(n):
    text = page.source(n)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert text.startswith(f"# Lab {n}: ")
    assert "\nAfter this lab you can " in text
    assert len(text.splitlines()) <= 160
    assert max(len(line) for line in text.splitlines() if not line.startswith("<details>")) <= 125
    assert len(page.FOLDED.findall(text)) == text.count("<details>") == text.count("</details>") >= 6


@pytest.mark.parametrize("n", labs.LABS)
def test_each_equation_has_a_line_that_fits_60_columns(n):
    """A line of several would be folded in the midst of one."""
    [equations] = re.findall(r"^```text\n(.*?)\n```$", page.source(n), re.MULTILINE | re.DOTALL)
    assert max(map(len, equations.splitlines())) <= 60 - page.MARGIN
    assert not re.search(r"=.* {4,}\S.*=", equations)  # two beside each other


@pytest.mark.parametrize("n", labs.LABS)
def test_every_place_that_a_page_names_is_there(n):
    text = page.page(n)
    named = re.findall(r"`(\S+\.py)(?::[\w.]+)?`", text)
    assert len(named) >= 8
    assert all((page.ROOT / file).is_file() for file in named)
    places = re.findall(r"`(\S+\.py):([\w.]+)` \(lines? (\d+)(?: to (\d+))?\)", text)
    assert len(places) == len(re.findall(r"`\S+\.py:[\w.]+`", text))
    for file, name, first, last in places:
        lines = (page.ROOT / file).read_text().splitlines()
        inside = lines[int(first) - 1 : int(last or first)]
        assert any(re.search(rf"\b{name.split('.')[-1]}\b", line) for line in inside), (file, name)
        assert inside[-1].strip(), (file, name)


def test_a_place_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"fn/layers\.py defines no linaer"):
        page.line_numbers("fn/layers.py", "linaer")
    with pytest.raises(ValueError, match="no page of a lab 99"):
        page.page(99)


def test_the_lines_of_a_place_hold_its_decorators_and_its_end():
    lines = (page.ROOT / "fn/layers.py").read_text().splitlines()
    first, last = page.line_numbers("fn/layers.py", "linear")
    assert lines[first - 1].startswith("@halves_by")
    assert lines[last - 1] == "    return y if bias is None else y + bias"
    first, last = page.line_numbers("experiments/lab6_data.py", "Examples.__len__")
    assert last == first + 1


@pytest.mark.parametrize("n", labs.LABS)
def test_every_drill_and_failure_that_a_page_names_is_there(n):
    text = page.source(n)
    drills = set(re.findall(r"just drill (\w+)", text)) - {"next", f"lab{n}"}
    assert drills >= {name for name, drill in DRILLS.items() if drill.topic.startswith(f"Lab {n} ")}
    assert drills <= DRILLS.keys()
    assert set(re.findall(r"just break (\w+)", text)) <= gallery().keys()


@pytest.mark.parametrize("n", labs.LABS)
def test_a_page_leads_to_predictions_to_your_code_in_the_lab_and_to_the_whole_of_it(n):
    commands = re.findall(r"`(just [^`]+)`", page.source(n))
    assert {f"just lab {n} --predict", f"just lab {n} --mine", f"just drill lab{n}"} <= {*commands}


# The figures of a page.

NUMBER = re.compile(r"(?<![\w.^√/])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
COMPUTED = {
    "0": {"2.3": math.log(10), "10": 10},
    "1": {"256": 64 * 2 * 2, "64": 64, "32": 32, "16": 16, "18,432": 64 * 32 * 9, "294,912": 64 * 32 * 9 * 16},
    "2": {"90": 90, "100": 100},  # the 90 are counted where that change is tried
    "3": {"4.24": 6 / 2**0.5, "4.45": 6.3 / 2**0.5, "2.1": 2.1, "6.3": 3 * 2.1},
    "5": {"50": 5 * 10, "150": 10 * 10 + 10 * 10 - 5 * 10, "0.5": 0.5, "0.95": 0.95, "0.05": 0.05},
    "7": {"32": 100 * (3 / 4) ** 4},
}
"""numbers of an answer that no run has to find: by arithmetic, or as the question or the lab itself has them"""
ROUNDING = {"0": ("1e-16", "1e-8")}
"""orders of magnitude"""


def numbers_in(text: str) -> list[str]:
    """Return the numbers of a text, those of one digit and those in code left out."""
    found = (number.rstrip(",") for number in NUMBER.findall(re.sub(r"`[^`]*`", "", text)))
    return [number for number in found if len(number) > 1]


def rounded(number: str, value: float) -> bool:
    """Return whether a number as written is that value, rounded to its digits."""
    digits = len(number.partition("e")[0].partition(".")[2])
    shown = f"{value:.{digits}{'e' if 'e' in number else 'f'}}"
    return float(shown) == float(number.replace(",", ""))


def measured(n: str) -> str:
    """Return what the table of the labs, and the journal, say of a lab.

    The rows and the entries that name its command.
    """
    commands = [f"just lab {n}", *(["just overfit"] if n == "0" else [])]
    table = (page.ROOT / "experiments" / "README.md").read_text().splitlines()
    journal = re.split(r"^## ", (page.ROOT / "LEARNING.md").read_text(), flags=re.MULTILINE)
    said = [line for line in table if line.startswith("|")] + journal
    return "\n".join(text for text in said if any(command in text for command in commands))


@pytest.mark.parametrize("n", labs.LABS)
def test_the_figures_of_a_page_are_those_of_the_table_or_the_journal(n):
    """A measured figure stands in one of them, and the page's is that one, rounded; others are worked out here."""
    for question, answer in page.FOLDED.findall(page.source(n)):
        beside = {n, *re.findall(r"Lab (\d)", question + answer)}
        known = [float(number.replace(",", "")) for lab in beside for number in numbers_in(measured(lab))]
        for number in numbers_in(answer):
            if number in COMPUTED.get(n, {}):
                assert rounded(number, COMPUTED[n][number]), (question, number)
            elif number not in ROUNDING.get(n, ()) and number not in numbers_in(question):
                assert any(rounded(number, value) for value in known), (question, number)


@pytest.mark.parametrize("n", labs.LABS)
def test_a_page_has_two_changes_or_more(n):
    assert len(page.changes(n)) == page.source(n).count("```change") >= 2
    for change in page.changes(n):
        assert new_source(change) != (page.ROOT / change.file).read_text()
        assert change.file.startswith("fn/") or change.file == f"experiments/{labs.LABS[n]}.py"


# What a page says of a change.


@pytest.fixture
def _small(monkeypatch):
    """The sizes with which a part of a lab takes seconds."""
    make_small(monkeypatch)


LONG = ("damage_checkpoints", "main", "compare_loops", "compare_convolutions", "make_mistakes")
"""parts that take several seconds"""
LONGEST = ("_frozen_apply", "_frozen_init")
"""changes for which Lab 4 trains again"""
TRIED = [
    pytest.param(
        n,
        change,
        marks=[pytest.mark.slow] * (change.part in LONG) + [pytest.mark.longest] * (change.name in LONGEST),
        id=f"lab{n}-{change.name}",
    )
    for n, change in CHANGES
]
HELD: dict[tuple[str, str], list[cli.Check]] = {}
"""the checks of a part without a change, by lab and part"""


@pytest.mark.parametrize(("n", "change"), TRIED)
@pytest.mark.usefixtures("_small")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_change_does_what_the_page_says(capsys, tmp_path, n: str, change: Change):
    part = PARTS[f"lab{n}"](change.part, tmp_path)
    if change.verb == "says":
        with edited(change), pytest.raises((TypeError, ValueError)) as caught:
            part()
        assert change.text in cli.explain(caught.value)
        return
    if (n, change.part) not in HELD:
        HELD[n, change.part] = part()
    [before] = [check for check in HELD[n, change.part] if check.name == change.text]
    with edited(change):
        [after] = [check for check in part() if check.name == change.text]
    if change.part == "damage_checkpoints":
        assert f"{after.value:.0f} of the 100 are loaded" in page.source(n)
    assert before.ok, before
    assert after.ok == (change.verb == "holds"), after


def test_after_a_change_everything_is_as_it_was():
    before = [(module, dict(vars(module))) for module in ours_of_all_modules()]
    for _, change in CHANGES:
        with edited(change):
            pass
    assert all(vars(module) == was for module, was in before)


# How it is printed.


def printed(monkeypatch, flags: list[str], *, width: int = 0, answer: str | None = None, n: str = "0") -> str:
    """Return what `python -m experiments.lab` prints: on a terminal of that width, or into a pipe."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=bool(width), width=width or None, color_system=None, highlight=False)
    monkeypatch.setattr(page, "console", console)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert page.show(n, ["--page", *flags]) == 0
    return out.getvalue()


@pytest.mark.parametrize("n", labs.LABS)
def test_a_pipe_gets_plain_text_and_no_answers(monkeypatch, n):
    text = printed(monkeypatch, [], n=n)
    assert "\x1b" not in text
    assert "<details>" not in text
    _, answer = page.FOLDED.findall(page.source(n))[0]
    assert answer not in text
    assert f"just lab {n} --page --answers" in text
    assert answer in printed(monkeypatch, ["--answers"], n=n)


@pytest.mark.parametrize("n", labs.LABS)
def test_a_terminal_of_60_columns_gets_every_word(monkeypatch, n):
    text = printed(monkeypatch, [], width=60, n=n)
    assert max(map(len, text.splitlines())) <= 60
    words = lambda text: re.sub(r"\W+", "", text)  # noqa: E731
    for change in page.changes(n):
        assert words(change.new) in words(text)
        assert words(change.text) in words(text)
    assert words(page.FOLDED.findall(page.source(n))[0][1].split(".")[0]) not in words(text)


def of_pages() -> Iterator[tuple[str, Callable[[], object]]]:
    for n in labs.LABS:
        yield "\n".join(block[2] for block in page.FENCED.finditer(page.page(n))), partial(page.show, n, ["--page"])


def of_failures_and_pairs() -> Iterator[tuple[str, Callable[[], object]]]:
    for one in [*gallery().values(), *pairs().values()][::4]:
        text = one.file.read_text()
        for function in {"broken", "fixed", "old", "new"} & {*re.findall(r"^def (\w+)", text, re.MULTILINE)}:
            code = "\n\n".join(definitions(text, function))
            yield code, partial(show_code, code.splitlines())


def of_drills() -> Iterator[tuple[str, Callable[[], object]]]:
    for name in DRILLS:
        yield cut.source(name).text, partial(drill.show, name)


def of_questions() -> Iterator[tuple[str, Callable[[], object]]]:
    desk = Desk(lambda _: "0", lambda: 0.0, show.say, {})
    for name, concept in CONCEPTS.items():
        yield QUESTIONS[concept.question].code, partial(pose, desk, name, "the last")


@pytest.mark.parametrize("printers", [of_pages, of_failures_and_pairs, of_drills, of_questions])
def test_code_is_broken_between_words_at_60_columns_and_never_in_a_pipe(monkeypatch, capsys, tmp_path, printers):
    monkeypatch.setattr(drill.attempts, "standings", lambda: dict.fromkeys(DRILLS, drill.Standing(passes=1)))
    monkeypatch.setattr(drill, "FOLDER", tmp_path)
    shown = [*printers()]
    assert len(shown) >= 8
    for width in (60, None):
        for name, value in {"_width": width, "_force_terminal": bool(width), "_color_system": None}.items():
            monkeypatch.setattr(show.console, name, value)
        for code, printer in shown:
            printer()
            out = capsys.readouterr().out
            assert not {*code.split()} - {*out.split()}
            assert width is None or all(len(line) <= width or " " not in line.strip() for line in out.splitlines())
            stripped = {line.strip() for line in out.splitlines()}
            assert width or {line.strip() for line in code.splitlines()} <= stripped


def test_enter_shows_the_answers(monkeypatch):
    assert "Nothing adds up in a .grad" in " ".join(printed(monkeypatch, [], width=100, answer="").split())


def test_ctrl_c_at_the_answers_exits_130(monkeypatch):
    def interrupt(number, flags):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["lab", "0", "--page"])
    monkeypatch.setattr(page, "show", interrupt)
    with pytest.raises(SystemExit) as stop:
        labs.main()
    assert stop.value.code == 130


def test_another_flag_beside_page_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lab", "0", "--page", "--seed", "3"])
    with pytest.raises(SystemExit) as stop:
        labs.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --page goes with --answers alone, not with --seed\n"


def test_a_page_needs_no_torch_and_survives_a_closed_pipe():
    code = "import sys; sys.argv = ['lab', '3', '--page']\nfrom experiments import lab\n"
    code += "try: lab.main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=page.ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")
    command = f"{sys.executable} -m experiments.lab 3 --page | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=page.ROOT)
    assert (done.stdout, done.stderr) == (page.source(3).splitlines()[0] + "\n", "")


def test_every_lab_has_a_page():
    assert all((page.ROOT / "experiments" / f"{stem}.md").is_file() for stem in labs.LABS.values())
