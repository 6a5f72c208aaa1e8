"""The watching loop, with a clock, keys and a grader of the test's own; what is due; a warm grader as it is."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from experiments.drill import __main__ as drill
from experiments.drill import cut, launch, spacing, warm, whole_lab
from experiments.drill.catalogue import DRILLS, WHOLES
from experiments.drill.launch import Verdict
from experiments.gallery import mine
from experiments.gallery.failures import gallery
from experiments.learn import __main__ as learn
from experiments.learn import concepts, fluency, loop, mistakes, schedule
from experiments.learn.concepts import CONCEPTS
from experiments.learn.kinds import Grade, kinds, of_module, shape_of
from experiments.learn.questions import QUESTIONS
from experiments.shared import attempts, cli
from experiments.shared.answers import begin, set_aside
from experiments.since import rewrite

DAY = attempts.DAY
KINDS = ["", "question", "failure", "shape", "bug", "rewrite"]
RIGHT = "def relu(x):\n    return x.masked_fill(x <= 0, 0.0)\n"


@pytest.fixture(autouse=True)
def clock(monkeypatch, tmp_path) -> list[float]:
    """Files of the test's own, and a clock that it moves."""
    now = [1e9]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(drill, "FOLDER", tmp_path / "drills")
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def record(*events: tuple[str, str, dict]) -> None:
    for task, event, details in events:
        attempts.record(task, event, **details)


def passed(task: str, clock: list[float], seconds: float = 30.0, **details) -> None:
    attempts.record(task, "start")
    clock[0] += seconds
    attempts.record(task, "check", **({"passed": True} | details))


class Desk:
    """A desk whose keys are a script: a letter, or a function that the reader does, such as to save a file."""

    def __init__(self, script: Iterable[str | Callable[[], object]], graded=lambda name, file: Verdict(True, ["said"])):
        self.script, self.lines = iter(script), list[str]()
        self.desk = loop.Desk(self.key, time.time, self.lines.append, kinds(graded))

    def key(self, _: float) -> str:
        step = next(self.script, "q")
        if callable(step):
            step()
            return ""
        return step

    @property
    def said(self) -> str:
        return "\n".join(self.lines)


def save(file: Path, text: str) -> Callable[[], object]:
    return lambda: file.write_text(text)


def next_task(now: float) -> schedule.Next:
    found = schedule.next_task(list(attempts.events()), now, ["", "question", "failure", "shape"])
    assert found is not None
    return found


# The tables.


def test_every_drill_and_every_failure_has_a_concept_and_every_mistake_its_remedies():
    tasks = [*DRILLS, *(f"failure:{mine.case(name)}" for name in gallery())]
    assert [task for task in tasks if concepts.concept_of(task) is None] == []
    assert {c.question for c in CONCEPTS.values()} == set(QUESTIONS)
    named = [task for name in mistakes.MISTAKES for task in mistakes.remedies(name)]
    assert [task for task in named if concepts.concept_of(task) is None] == []
    assert {m.failure for m in mistakes.MISTAKES.values()} <= {"", *gallery()}
    assert {name for c in CONCEPTS.values() for name in c.failures} <= set(gallery())
    assert len({mine.case(name) for name in gallery()}) == len(gallery())


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_right_choice_of_a_question_is_what_its_code_prints(name):
    question, printed = QUESTIONS[name], io.StringIO()
    torch.manual_seed(0)
    with contextlib.redirect_stdout(printed):
        exec(question.code, {"torch": torch, "F": F})
    assert printed.getvalue().strip() == question.answer
    assert len(set(question.choices)) == 4
    assert max(map(len, question.code.splitlines())) <= 58  # folded, a line would no longer be code


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("sums to one along axis classes are expected; yours does along batch", "softmax over the wrong axis"),
        ("the values are right, but no gradient reaches `bias`: is it detached?", "no gradient passes"),
        ("NaN where a number is expected: 0 / 0, ∞ - ∞ or log of a negative?", "overflow"),
        ("the term `bias` is missing: the difference is just that", "a term of the wrong sign, or missing"),
        ("dtype torch.float64, expected torch.float32: was a constant made in another?", "another dtype"),
        ("the shape or dtype does not fit the annotation:", None),
        ("nothing is returned: is a `return` missing?", None),
        ("nothing is written yet below the signature of `relu`", None),
    ],
)
def test_the_words_of_a_refusal_name_the_mistake(line, mistake):
    assert mistakes.named([line, "", "given", "  x = dtype"]) == mistake


def test_the_shapes_asked_for_are_torchs():
    for name in map(str, range(20)):
        s, side = shape_of(name)
        x, weight = torch.zeros(1, 1, s["image"], s["image"]), torch.zeros(1, 1, s["kernel"], s["kernel"])
        y = F.conv2d(x, weight, stride=s["stride"], padding=s["padding"], dilation=s["dilation"])
        assert y.shape == (1, 1, side, side)


# The loop.


def test_a_file_is_judged_whenever_it_is_saved_until_it_passes(clock):
    """Refused, hinted at, passed, shown."""
    file = drill.place("relu")
    graded = lambda name, path: Verdict("masked" in path.read_text(), [f"graded {name}"], star=True)  # noqa: E731
    script = ["", "d", save(file, "wrong"), "h", "", save(file, RIGHT), "d", "\n"]
    desk = Desk(script, graded)
    assert loop.work(desk.desk, "relu") == "next"
    assert desk.said.count("graded relu") == 2
    assert "not before yours has passed" in desk.said
    assert "not yet" in desk.said
    assert f"1 of 3: {DRILLS['relu'].hints[0]}" in desk.said
    assert "passed ★" in desk.said
    [done] = spacing.tries(attempts.events())
    assert (done.checks, done.hints, done.passed, done.rating) == (2, 1, True, "Hard")


def test_a_file_that_an_editor_has_emptied_is_judged_when_it_is_written(clock, monkeypatch):
    """It is empty for a moment: what is graded is what stands there once it no longer changes."""
    file, later, texts = drill.place("relu"), [RIGHT], list[str]()
    monkeypatch.setattr(loop.time, "sleep", lambda _: file.write_text(later.pop()) if later else None)
    graded = lambda name, path: texts.append(path.read_text()) or Verdict(True, ["said"])  # noqa: E731
    desk = Desk([save(file, ""), "\n"], graded)
    assert loop.work(desk.desk, "relu") == "next"
    assert texts == [RIGHT]


def test_what_was_written_is_kept_when_a_task_begins_anew_and_goes_on_when_it_is_under_way(clock):
    file = drill.place("relu")
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    desk = Desk(["q"])
    assert loop.work(desk.desk, "relu") == "quit"
    assert f"what stood in relu.py is in {file}.old now" in desk.said
    assert file.read_text() == cut.cut("relu")
    assert file.with_name("relu.py.old").read_text() == "mine"
    file.write_text("half")
    found = next_task(clock[0])
    assert found == ("relu", "under way")
    loop.work(Desk(["q"]).desk, "relu", resumed=True)
    assert file.read_text() == "half"


def test_nothing_that_was_kept_is_written_over_and_what_is_untouched_is_not_kept(tmp_path):
    file = tmp_path / "relu.py"
    for text in ("first", "second"):
        begin(file, "given")
        file.write_text(text)
    for _ in range(3):
        begin(file, "given")
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"relu.py": "given", "relu.py.old": "first", "relu.py.old2": "second"}
    assert [path.name for path in set_aside(file)] == ["relu.py.old", "relu.py.old2", "relu.py.old3"]


def test_the_next_hint_after_a_task_was_left_is_the_next_one():
    loop.work(Desk(["h", "h", "q"]).desk, "softmax")
    desk = Desk(["h", "h", "q"])
    loop.work(desk.desk, "softmax", resumed=True)
    assert f"3 of 3: {DRILLS['softmax'].hints[2]}" in desk.said
    assert "there are no more hints" in desk.said
    assert sum(e["event"] == "hint" for e in attempts.events()) == 3


def test_a_skipped_task_is_no_longer_under_way(clock):
    assert loop.work(Desk(["s"]).desk, "relu") == "next"
    assert not attempts.standings()["relu"].open
    assert next_task(clock[0]).why != "under way"
    assert [t.rating for t in spacing.tries(attempts.events())] == ["Again"]


def test_a_file_that_is_replaced_or_gone_for_a_moment_is_no_surprise():
    file = drill.place("relu")

    def replace() -> None:
        file.with_name("new").write_text(RIGHT)
        file.with_name("new").replace(file)

    desk = Desk([lambda: file.unlink(), "", replace, "\n"])
    assert loop.work(desk.desk, "relu") == "next"
    assert desk.said.count("passed,") == 1


def test_the_loop_leads_from_one_task_to_the_next_and_quits(clock):
    desk = Desk(["s", "s", "q"])
    loop.learn(desk.desk)
    begun = [e["drill"] for e in attempts.events() if e["event"] == "start"]
    assert len(begun) == len(set(begun)) == 3


def test_a_question_is_answered_in_its_file(clock):
    file = kinds(lambda name, file: Verdict(False, []))["question"].place("softmax")
    right = QUESTIONS["softmax"].right
    desk = Desk(
        [
            lambda: save(file, file.read_text().replace("answer = ", "answer = 1"))(),
            lambda: save(file, f"answer = {right}\n")(),
            "\n",
        ]
    )
    assert loop.work(desk.desk, "question:softmax") == "next"
    assert "no: look again" in desk.said
    assert QUESTIONS["softmax"].why in desk.said


def test_a_module_with_four_functions_is_a_kind(tmp_path, capsys):
    class Module:
        begin = staticmethod(lambda name: f"# {name}\n")
        place = staticmethod(lambda name: tmp_path / f"{name}.py")
        grade = staticmethod(lambda name, path: [] if "fixed" in path.read_text() else ["still broken"])
        solution = staticmethod(lambda name: "fixed by us")

    kind = of_module(Module)  # pyright: ignore[reportArgumentType]
    kind.place("bug").write_text(kind.begin("bug"))
    assert kind.grade("bug", kind.place("bug")) == Grade(False, ["still broken"])
    kind.place("bug").write_text("fixed")
    assert kind.grade("bug", kind.place("bug")).passed
    assert kind.difference
    kind.difference("bug")
    assert re.search(r"fixed by us.*fixed", capsys.readouterr().out, re.DOTALL)


# The placement.


def test_a_placement_does_not_ask_what_a_known_concept_rests_on_directly():
    desk = Desk([str(QUESTIONS[CONCEPTS["processes"].question].right), *["0"] * 30])
    assert loop.place(desk.desk)
    placed = {e["drill"].removeprefix("concept:"): e.get("known") for e in attempts.events() if e["event"] == "place"}
    assert concepts.hardest_first()[0] == "processes"
    assert placed["processes"] is placed["training"] is placed["data"] is True
    assert f"\n{CONCEPTS['training'].title} (" not in desk.said
    assert f"\n{CONCEPTS['loops'].title} (" in desk.said  # two steps below: one answer may be luck
    assert placed["loops"] is False
    asked = schedule._asked(list(attempts.events()))
    assert "question:processes" in asked
    assert "question:training" not in asked  # known from another answer: it may come
    assert placed["attention"] is False
    assert schedule.is_placed(list(attempts.events()))


def test_what_a_placement_finds_forgotten_comes_first_and_what_is_known_later(clock):
    loop.place(Desk(["0"] * 40).desk)
    first = next_task(clock[0])
    assert first.why == f"due: {CONCEPTS['tensors'].title}"
    assert first.task == f"failure:{mine.case('silent_broadcast')}"  # not the question whose answer was just told
    due = schedule.due_concepts(list(attempts.events()), clock[0])
    assert set(due) == set(CONCEPTS)
    passed("question:broadcasting", clock)
    assert "tensors" not in schedule.due_concepts(list(attempts.events()), clock[0])


def test_a_placement_ends_after_ten_minutes_and_goes_on_where_it_was_left(clock):
    def later() -> None:
        clock[0] += 700

    assert not loop.place(Desk(["0", "q"]).desk)
    assert not schedule.is_placed(list(attempts.events()))
    desk = Desk([later, "0", "0"])
    assert loop.place(desk.desk)
    assert len([e for e in attempts.events() if e["drill"].startswith("concept:")]) == 2


def test_a_placement_that_is_ended_counts_only_what_it_asked():
    desk = Desk(["0", "s"])
    assert loop.place(desk.desk)
    first = CONCEPTS[concepts.hardest_first()[0]].title
    assert f"0 of 1 concepts are there, {len(CONCEPTS) - 1} were not asked; to begin with: {first}" in desk.said
    assert "it is 2: " in desk.said
    assert "no, it is" not in desk.said  # 0 was no mistake


def test_only_keys_that_do_something_are_named():
    desk = Desk(["q"])
    loop.work(desk.desk, "question:broadcasting")
    assert desk.said.endswith("\ns skip · q quit")
    desk = Desk(["q"])
    loop.work(desk.desk, "relu")
    assert desk.said.endswith("\nh hint · s skip · d difference · q quit")


# What is due.


@pytest.mark.parametrize(
    ("checks", "hints", "seconds", "rating"),
    [
        (1, 0, 30, "Easy"),
        (1, 0, 1000, "Good"),
        (2, 0, 30, "Good"),
        (3, 0, 30, "Hard"),
        (5, 0, 30, "Hard"),
        (1, 1, 30, "Hard"),
        (1, 2, 30, "Hard"),
        (1, 3, 30, "Again"),
        (6, 0, 30, "Again"),
    ],
)
def test_the_rating_follows_from_tries_hints_and_time(checks, hints, seconds, rating):
    assert spacing.Try("relu", 0.0, seconds, checks, hints, True).rating == rating


def test_a_concept_that_is_passed_comes_back_later_and_later_the_same_each_time(clock):
    waits = []
    for _ in range(4):
        passed("relu", clock)
        due = schedule.cards(list(attempts.events()))["relu"].due.timestamp()
        waits.append((due - clock[0]) / DAY)
        assert schedule.cards(list(attempts.events()))["relu"].due.timestamp() == due
        clock[0] = due
    assert waits == sorted(waits)
    assert waits[0] >= 1
    assert waits[-1] > 10 * waits[0]


def test_in_the_end_everything_was_practised(clock, monkeypatch):
    """A reader who passes all, ten tasks a day, meets every drill, bug, symptom, rewrite and lab within two months."""
    events, met, every = [], set(), set(schedule.every_task(KINDS))
    for day in range(60):
        now = 1e9 + day * DAY
        for minute in range(10):
            found = schedule.next_task(events, now + 60 * minute, KINDS)
            if found is None:
                break
            met.add(found.task)
            begun = {"drill": found.task, "at": now + 60 * minute}
            events += [begun | {"event": "start"}, begun | {"event": "check", "passed": True}]
    assert every - met == set()
    assert every >= {*DRILLS, *WHOLES, *(f"rewrite:{name}" for name in concepts.rewrites())}
    assert every >= {f"{kind}:{mine.case(name)}" for name in gallery() for kind in ("bug", "failure")}


def test_the_whole_of_a_lab_goes_on_where_it_was_left_and_is_graded_by_the_lab(clock, monkeypatch):
    graded = []
    monkeypatch.setattr(whole_lab, "check", lambda name, file: graded.append(name) or Verdict(True, ["said"]))
    file = drill.place("lab0")
    desk = Desk([save(file, "mine"), "h", "q"])
    loop.work(desk.desk, "lab0")
    assert graded == ["lab0"]
    record(("lab1", "start", {}))
    assert next_task(clock[0]) == ("lab1", "under way")


def test_a_named_mistake_decides_what_is_next(clock):
    """Its failure, its question and its drill, once what is under way has passed; each until it is done."""
    record(("layer_norm", "start", {}), ("layer_norm", "check", {"passed": False, "mistake": "overflow"}))
    assert next_task(clock[0]).task == "layer_norm"
    clock[0] += 10
    record(("layer_norm", "check", {"passed": True}))
    for task in (f"failure:{mine.case('fp16_overflow')}", "question:softmax", "softmax"):
        found = next_task(clock[0])
        assert found == (task, "after a mistake: overflow")
        passed(task, clock)
    assert not next_task(clock[0]).why.startswith("after a mistake")


def test_the_first_line_of_a_refusal_names_the_mistake():
    said = [
        "dtype torch.float16, expected torch.float64",
        "sums to one along axis 1 are expected; yours does along none",
    ]
    assert mistakes.named(said) == "another dtype"
    assert mistakes.named(said[1:]) == "softmax over the wrong axis"
    assert mistakes.named(["right on ordinary input", "  dtype torch.float16"]) is None


def test_the_last_two_mistakes_are_remedied_the_later_first_for_two_weeks(clock):
    for mistake in ("overflow", "a wrong slope", "another dtype"):
        wrong = {"passed": False, "mistake": mistake}
        record(("linear", "start", {}), ("linear", "check", wrong), ("linear", "skip", {}))
        clock[0] += 10

    def called_for(now: float) -> list[str]:
        return list(dict.fromkeys(mistake for _, mistake in schedule.pending_remedies(list(attempts.events()), now)))

    assert called_for(clock[0]) == ["another dtype", "a wrong slope"]
    assert called_for(clock[0] - 11 + 14 * DAY) == ["another dtype"]
    assert called_for(clock[0] - 10 + 14 * DAY) == []


def test_a_refusal_in_the_loop_is_remembered_by_its_mistake(clock):
    file = drill.place("relu")
    graded = lambda name, path: Verdict(False, ["no gradient reaches `x`"])  # noqa: E731
    loop.work(Desk([save(file, "wrong"), "s"], graded).desk, "relu")
    assert next_task(clock[0]) == (f"failure:{mine.case('detached_loss')}", "after a mistake: no gradient passes")


def test_events_of_no_kind_here_and_lines_that_are_garbled_do_no_harm(clock):
    passed("relu", clock)
    with attempts.file().open("ab") as log:
        log.write(b'{"drill": "song:9", "event": "start", "at": 1e9}\n\xff{"drill": "relu", "event": "check", "at"')
    record(
        ("softmax", "check", {"passed": True, "mistake": 3}), ("softmax", "check", {"passed": False, "mistake": "?"})
    )
    assert next_task(clock[0]).task not in ("relu", "song:9")
    assert list(schedule.cards(list(attempts.events()))) == ["relu"]


# Progress.


def test_progress_is_a_row_per_concept_and_a_picture_at_any_width(clock, tmp_path, capsys, monkeypatch):
    for week in range(3):
        passed("relu", clock, seconds=120 / (week + 1))
        passed("softmax", clock, mistake="overflow")
        clock[0] += 7 * DAY
    for width in (60, 120):
        monkeypatch.setattr(fluency.console, "width", width)
        assert learn.main(cli.parse_flags(learn.Config, ["--progress", "--out", str(tmp_path)])) == 0
        said = capsys.readouterr().out
        assert re.search(r"activations +3 +0:40 +\S+ +100% +\d+ days", said)
        assert max(map(len, said.splitlines()[:-1])) <= width
    assert (tmp_path / "fluency.png").stat().st_size > 10_000


@pytest.mark.parametrize("events", [[], ["start", "check"]], ids=["nothing", "the whole of a lab, which is no concept"])
def test_without_a_try_of_a_concept_progress_says_how_to_begin(clock, tmp_path, capsys, events):
    record(*(("lab0", event, {"passed": True} if event == "check" else {}) for event in events))
    assert learn.main(cli.parse_flags(learn.Config, ["--progress", "--out", str(tmp_path)])) == 0
    assert "just learn begins" in capsys.readouterr().out


def test_in_a_pipe_it_says_what_is_due_and_ends(tmp_path):
    """Without torch, and before the placement too."""
    code = "import sys; from experiments.learn import __main__ as learn\n"
    code += "try: learn.run()\nfinally: print('torch' in sys.modules)"
    for events, said in (
        ([], "ten minutes"),
        ([{"drill": "placement", "event": "place", "at": 5}], "first: question:"),
    ):
        attempts.file().parent.mkdir(parents=True, exist_ok=True)
        attempts.file().write_text("".join(json.dumps(e) + "\n" for e in events))
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=cut.ROOT, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert done.stdout.rstrip().endswith("False")


# Keys.


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals of this kind here")
def test_a_key_of_a_terminal_needs_no_enter_and_the_terminal_is_left_as_it_was(monkeypatch):
    import termios

    from experiments.learn.keys import keys

    reader, terminal = os.openpty()
    with open(terminal, closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        before = termios.tcgetattr(terminal)
        with keys() as key:
            assert key(0.01) == ""
            os.write(reader, b"H")
            assert key(1.0) == "h"
            os.write(reader, b"\x1b[A")  # an arrow
            assert key(1.0) == ""
        assert termios.tcgetattr(terminal) == before
    os.close(terminal)
    os.close(reader)


def test_where_there_is_no_terminal_a_line_is_a_key(monkeypatch):
    from experiments.learn.keys import keys

    monkeypatch.setattr(sys, "stdin", io.StringIO("hint\n\ns\n"))
    with keys() as key:
        assert [key(1.0) for _ in range(4)] == ["h", "\n", "s", "q"]


# A warm grader, as it is.


@pytest.mark.slow
def test_a_warm_grader_grades_forks_and_survives_what_an_answer_does(tmp_path, monkeypatch):
    """The second verdict comes from the same process; one that was killed is replaced by a grader of its own."""
    file = tmp_path / "relu.py"
    with warm.Grader() as grader:
        assert not grader.is_loading(), "nothing was begun"
        grader.warm()
        grader.warm("relu")
        assert grader.awaited == 2
        for text, said in (
            (RIGHT, "★"),
            ("import os\ndef relu(x):\n    print('{}')\n    os.kill(os.getpid(), 9)\n", "the process was killed"),
            ("def relu(x):\n    return x.abs()\n", "just where `x` is negative"),
        ):
            file.write_text(text)
            verdict = grader.graded("relu", file)
            assert said in "\n".join([*verdict.lines, "★" if verdict.star else ""])
        assert not grader.is_loading()
        process = grader.process
        assert process is not None
        file.write_text(rewrite.begin("byte_mask"))
        with monkeypatch.context() as here:
            here.setattr(rewrite, "grade", None)
            assert grader.lines(rewrite, "byte_mask", file)[0].startswith("this is the old way: ")
        file.write_text(rewrite.solution("byte_mask"))
        assert grader.lines(rewrite, "byte_mask", file) == []
        assert grader.process is process
        os.kill(process.pid, signal.SIGSTOP)  # what a text alone tells waits for no process
        file.write_text("def rleu(x):\n    return x\n")
        assert grader.graded("relu", file).lines == ["relu.py has no `relu`: it defines `rleu`"]
        file.write_text(RIGHT)
        process.kill()
        monkeypatch.setattr(launch, "graded", lambda name, path: Verdict(True, ["by launch"]))
        assert grader.graded("relu", file).lines == ["by launch"]
        assert grader.process is None
        monkeypatch.setattr(rewrite, "grade", lambda name, path: ["here"])
        monkeypatch.setattr(warm.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
        assert grader.lines(rewrite, "byte_mask", file) == ["here"]


def test_a_verdict_that_waits_for_the_grader_to_load_says_so():
    file = drill.place("relu")
    for loading in (True, False):
        desk = Desk([save(file, RIGHT + "\n" * (1 + loading)), "\n"])
        loop.work(desk.desk._replace(loading=lambda loading=loading: loading), "relu")
        assert ("the grader is still loading" in desk.said) == loading
