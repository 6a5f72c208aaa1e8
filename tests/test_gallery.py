"""Every failure shows its symptom, its fix does not, and the shape checks answer as stated; the command; the notes."""

import importlib
import io
import json
import math
import random
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError, jaxtyped
from PIL import Image
from torch import Tensor

from experiments.gallery import __main__ as gallery
from experiments.gallery import breaking
from experiments.gallery import quiz as quizzing
from experiments.gallery.failures import KINDS, Failure, read
from experiments.gallery.failures import gallery as entries
from experiments.gallery.failures.toys import message
from experiments.gallery.seen import landmarks
from experiments.note import __main__ as note
from experiments.shared import show
from fn.losses import mse_loss
from tests.launch import run_in_process

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _score_in_a_temporary_folder(monkeypatch, tmp_path):
    """Keep the tests away from the score of the person who runs them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def launch(monkeypatch, capsys, *flags: str) -> tuple[int, str, str]:
    """Run the command: (exit status, stdout, stderr)."""
    return run_in_process(monkeypatch, capsys, gallery.Config, gallery.main, *flags, parse=gallery.parse)


def type_answers(monkeypatch, *answers: str) -> None:
    """Make `input` return these answers one after the other, then raise EOFError."""
    remaining = iter(answers)

    def answer(_: str = "") -> str:
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)


@pytest.mark.parametrize("failure", entries().values(), ids=lambda failure: failure.name)
def test_broken_shows_its_symptom_and_fixed_does_not_nor_do_the_checks_lie(failure: Failure):
    run = failure.load()
    broken, fixed = run.broken(11), run.fixed(11)
    assert run.shows(broken), broken
    assert not run.shows(fixed), fixed
    assert run.solves(fixed), fixed
    assert broken.keys() == fixed.keys()
    refused = breaking.refusal(run, 11)
    assert (refused and refused.by) == failure.catcher
    assert re.match(r"(caught by fn\.|blind)", failure.parts["Checks"])


@pytest.mark.parametrize("failure", entries().values(), ids=lambda failure: failure.name)
def test_every_entry_says_all_and_fits(failure: Failure):
    assert len(failure.title) <= 58, "one line of the list, at 80 columns"
    assert all(len(text) > 20 for text in failure.parts.values())
    assert failure.parts["Expect"].count("?") >= 1
    assert failure.symptom.endswith(".")
    assert failure.task.endswith(".")
    run = failure.load()
    code = breaking.source(run.broken)
    assert max(map(len, code.splitlines())) <= 76
    assert code != breaking.source(run.fixed)
    module = Path(sys.modules[run.broken.__module__].__file__ or "").read_text()
    parts = re.split(r"\n\n(?=\S)", code)
    assert all(part in module for part in parts), "what is shown is what is in the file"


def test_every_kind_has_entries_and_no_name_stands_twice():
    files = [file.stem for kind in KINDS for file in (ROOT / "experiments/gallery/failures" / kind).glob("*.py")]
    assert sorted(files) == sorted(set(files)) == sorted(entries())
    assert len(files) == 40
    assert {failure.kind for failure in entries().values()} == set(KINDS)
    titles = [failure.title for failure in entries().values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("lost", ["Cause", "shows", "solves"])
def test_a_file_that_is_not_of_the_form_is_refused(tmp_path, lost):
    docstring = "t\n\nExpect: a?\n\nCause: b\n\nFind: c\n\nFix: d\n\nChecks: blind: e\n"
    text = f'"""{docstring}"""\n\ndef shows(seen):\n    """s."""\n\ndef solves(seen):\n    """t."""\n'
    file = tmp_path / "entry.py"
    file.write_text(text)
    assert read(file).parts["Checks"] == "blind: e"
    file.write_text(text.replace(lost, "x"))
    with pytest.raises(ValueError, match="not of the form"):
        read(file)


def test_a_false_statement_fails_its_check(monkeypatch, tmp_path):
    """For a fixed run in place of the broken one, a broken one in place of the fixed, and a wrong catcher."""
    failure = entries()["fp16_overflow"]
    run = failure.load()
    broken, fixed = run.broken(0), run.fixed(0)
    assert all(check.ok for check in breaking.evaluate(failure, run, broken, fixed, None))
    assert [c.ok for c in breaking.evaluate(failure, run, fixed, fixed, None)] == [False, True, True]
    assert [c.ok for c in breaking.evaluate(failure, run, broken, broken, None)] == [True, False, True]
    other = breaking.Refusal("fn.layers.linear", "")
    assert [c.ok for c in breaking.evaluate(failure, run, broken, fixed, other)] == [True, True, False]
    assert not breaking.in_one(breaking.evaluate(failure, run, broken, broken, None)).ok


def test_the_table_of_the_readme_is_the_gallery():
    readme = (ROOT / "experiments/gallery/README.md").read_text()
    listed = [line for line in readme.splitlines() if re.match(r"\| [a-z]* ?\| `[a-z0-9_]+` \|", line)]
    assert listed == gallery.markdown()[2:]


def test_the_list_the_help_and_a_program_to_mend_need_no_torch(tmp_path):
    for flags in ([], ["--help"], ["--table"], ["wrong_axis", "--mine"]):
        command = f"import sys; sys.argv[1:] = {flags}\nfrom experiments.gallery import __main__ as gallery, mine\n"
        command += f"import pathlib; mine.FOLDER = pathlib.Path({str(tmp_path)!r})\n"
        command += "from experiments.shared import cli\n"
        command += (
            "try: cli.run(gallery.Config, gallery.main, gallery.parse)\nfinally: assert 'torch' not in sys.modules"
        )
        process = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT)
        assert process.returncode == 0, process.stderr
        if "--mine" in flags:
            assert list(tmp_path.glob("*.py"))
        elif "--help" not in flags:
            assert all(name in process.stdout for name in entries())


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["silent_brodcast"], "there is no failure 'silent_brodcast'; the nearest are silent_broadcast, "),
        (["wrong_axis", "--all"], "one thing at a time"),
        (["--quizz"], "--quiz"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(monkeypatch, capsys, flags, complaint):
    status, out, err = launch(monkeypatch, capsys, *flags)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "columns"), [("silent_broadcast", 80), ("buffer_left_behind", 60), ("gradients_vanish", 60)]
)
def test_one_is_shown_within_the_width_and_drawn(monkeypatch, capsys, tmp_path, name, columns):
    for field, value in {"_width": columns, "_force_terminal": True, "_color_system": None}.items():
        monkeypatch.setattr(show.console, field, value)
    type_answers(monkeypatch)  # nothing may be asked where there is no terminal, and an end of input is no error
    monkeypatch.setattr("sys.stdin", io.StringIO())
    status, out, _ = launch(monkeypatch, capsys, name.replace("_", "-"), "--out", str(tmp_path))
    assert status == 0
    before_table = out.partition("Done when")[0].replace(str(tmp_path), "")
    assert max(map(len, before_table.splitlines())) <= columns
    assert "\x1b" not in out
    assert "guess" not in out
    for part in ("Expect", "It runs", "Symptom", "Cause", "Find", "Fix", "Fixed, it runs", "Checks"):
        assert f"\n{part}" in out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [check["ok"] for check in summary["checks"]] == [True] * 3
    pictures = list(tmp_path.glob("*.png"))
    assert [p.stem for p in pictures] == ([] if name == "buffer_left_behind" else [name])
    for picture in pictures:
        with Image.open(picture) as image:
            assert len(image.convert("L").getcolors(256) or []) > 2


STUB = '''"""The title

Expect: The expectation?

Cause: The cause.

Find: The search.

Fix: The fix.

Checks: caught by fn.layers.linear: the check.
"""

import torch

from fn.layers import linear


def broken(seed, elsewhere="meta"):
    return {"seen": f"before, {seed} on {elsewhere}"}


def fixed(seed, elsewhere="meta"):
    return {"seen": f"after, {seed} on {elsewhere}"}


def shows(seen):
    """The symptom."""
    return seen["seen"].startswith("before")


def solves(seen):
    """The task."""
    return seen["seen"].startswith("after")


def checked(seed):
    linear(torch.zeros(2, 3), torch.zeros(4, 5), torch.zeros(4))
'''


@pytest.fixture
def stub(monkeypatch, tmp_path) -> Failure:
    """Return a failure whose texts and runs are those of STUB."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "stub_of_the_gallery.py"
    file.write_text(STUB)
    monkeypatch.delitem(sys.modules, file.stem, raising=False)
    module = importlib.import_module(file.stem)
    run = breaking.Runnable(module.broken, module.fixed, module.shows, module.solves, module.checked)
    monkeypatch.setattr(Failure, "load", lambda self: run)
    return read(file)


def assert_in_order(text: str, *parts: str) -> None:
    """Assert that the text holds the parts in this order."""
    for part in parts:
        before, found, text = text.partition(part)
        assert found, f"{part!r} is missing, or too early; what is left:\n{before}"


@pytest.mark.parametrize(("device", "elsewhere"), [("cpu", "meta"), ("cuda", "cuda")])
def test_everything_is_told_once_and_in_the_order_of_finding_out(
    monkeypatch, capsys, tmp_path, stub, device, elsewhere
):
    monkeypatch.setattr("builtins.input", lambda prompt: print(prompt.strip()))
    config = gallery.Config(seed=5, out=tmp_path)
    checks = breaking.present(stub, config, torch.device(device), ask=True)
    assert all(check.ok for check in checks)
    out = capsys.readouterr().out
    told = (
        "def broken(",
        'return {"seen": f"before',
        "Expect   The expectation?",
        "Your guess, then Enter:",
        f"It runs, seed 5:\n  seen  before, 5 on {elsewhere}\n",
        "Symptom  The symptom.",
        "The cause? Then Enter:",
        "Cause    The title. The cause.",
        "Find     The search.",
        "Fix      The fix.",
        '-     return {"seen": f"before',
        '+     return {"seen": f"after',
        f"Fixed, it runs, seed 5:\n  seen  after, 5 on {elsewhere}\n",
        "Checks   caught by fn.layers.linear: the check.",
        "Type-check error whilst checking the parameters of fn.layers.linear",
    )
    assert_in_order(out, *told)
    assert all(out.count(text) == 1 for text in told[2:])


def test_only_a_check_of_fn_is_a_refusal():
    def not_ours(seed: int) -> None:
        torch.matmul(torch.zeros(2, 3), torch.zeros(4, 5))

    def no_check(seed: int) -> None:
        raise ValueError("no check of shapes")

    @jaxtyped(typechecker=beartype)
    def strict(x: Float[Tensor, "n n"]) -> None: ...

    run = entries()["fp16_overflow"].load()
    for checked in (not_ours, no_check, lambda seed: strict(torch.zeros(2, 3))):
        assert breaking.refusal(run._replace(checked=checked), 0) is None
    with pytest.raises(ZeroDivisionError):
        breaking.refusal(run._replace(checked=lambda seed: 1 / 0), 0)
    with pytest.raises(TypeCheckError):
        message(lambda: mse_loss(torch.zeros(2, 1), torch.zeros(2)))


def test_all_exits_1_if_one_statement_is_false(monkeypatch, capsys, tmp_path):
    two = {name: entries()[name] for name in ("fp16_overflow", "wrong_axis")}
    monkeypatch.setattr(gallery, "gallery", lambda: two)
    status, out, _ = launch(monkeypatch, capsys, "--all", "--out", str(tmp_path))
    assert status == 0
    false_parts = two["wrong_axis"].parts | {"Checks": "caught by fn.layers.linear: not so"}
    two["wrong_axis"] = two["wrong_axis"]._replace(parts=false_parts)
    status, out, _ = launch(monkeypatch, capsys, "--all", "--out", str(tmp_path))
    assert status == 1
    assert out.count("FAILED") == 1


def test_four_causes_are_offered_of_its_kind_where_there_are_enough():
    rng = random.Random(0)
    for failure in entries().values():
        four = quizzing.choices(failure, rng)
        assert len({other.name for other in four}) == 4
        assert failure in four
        assert not failure.akin & {other.name for other in four}
        assert all(failure.name in entries()[name].akin for name in failure.akin), "each of the other"
        alike = sum(other.kind == failure.kind for other in entries().values())
        assert sum(other.kind == failure.kind for other in four) == min(4, alike)
    places = {quizzing.choices(entries()["zero_init"], rng).index(entries()["zero_init"]) for _ in range(50)}
    assert places == {0, 1, 2, 3}


def test_the_quiz_grades_and_keeps_the_score(monkeypatch, capsys):
    few = [entries()[name] for name in ("fp16_overflow", "wrong_axis", "channels_last")]
    monkeypatch.setattr(quizzing, "order", lambda *_: few)
    monkeypatch.setattr(quizzing, "choices", lambda failure, _: [*few[1:], few[0], entries()["zero_init"]])
    type_answers(monkeypatch, "7", "3", "2")
    quizzing.quiz(0, CPU)
    out = capsys.readouterr().out
    assert "1, 2, 3 or 4, or q" in out
    assert "right: just break fp16_overflow" in out
    assert "no, 1: just break wrong_axis\n" in out
    told = " ".join(out.partition("just break wrong_axis\n")[2].split())
    wrong = entries()["wrong_axis"]
    assert told.startswith(f"{wrong.title}. {wrong.parts['Cause']}"), "the right title, and why"
    assert entries()["fp16_overflow"].parts["Cause"][:30] not in out, "no lecture where it was right"
    assert out.endswith("\nMissed   wrong_axis\n\n1 of 2 right; 1 of 2 in all\n")

    type_answers(monkeypatch, "3", "1", "2")
    quizzing.quiz(0, CPU)
    assert capsys.readouterr().out.endswith("\n3 of 3 right; 4 of 5 in all\n")
    assert quizzing.load_score()["wrong_axis"] == {"asked": 2, "right": 1}


def test_the_quiz_ends_with_the_score_on_ctrl_c(monkeypatch, capsys, tmp_path):
    def interrupt(_: str = "") -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    status, out, err = launch(monkeypatch, capsys, "--quiz", "--out", str(tmp_path))
    assert (status, err) == (0, "")
    assert out.endswith("0 of 0 right; 0 of 0 in all\n")


def test_a_damaged_score_is_one_line(monkeypatch, capsys, tmp_path):
    quizzing.score_file().parent.mkdir(parents=True)
    quizzing.score_file().write_text("{")
    status, _, err = launch(monkeypatch, capsys, "--quiz", "--out", str(tmp_path))
    assert status == 2
    assert "move that file away" in err
    assert quizzing.score_file().read_text() == "{"


def test_the_order_of_the_quiz_is_the_seeds(monkeypatch, capsys):
    firsts = []
    for seed in (1, 1, 2):
        type_answers(monkeypatch)
        quizzing.quiz(seed, CPU)
        firsts.append(capsys.readouterr().out)
    assert firsts[0] == firsts[1] != firsts[2]


def test_the_quiz_shows_the_mistake_live_with_its_seed(monkeypatch, capsys, stub):
    monkeypatch.setattr(quizzing, "order", lambda *_: [stub])
    for device, elsewhere in (("cpu", "meta"), ("cuda", "cuda")):
        type_answers(monkeypatch)
        quizzing.quiz(7, torch.device(device))
        out = capsys.readouterr().out
        assert_in_order(out, "Seed 7.", "The symptom.", f"seen  before, 7 on {elsewhere}\n", "  1  ", "  4  ")
        assert "after" not in out


def test_the_quiz_draws_a_new_seed_unless_one_is_given():
    drawn = {gallery.parse(gallery.Config, ["--quiz"]).seed for _ in range(20)}
    assert len(drawn) > 10
    for flags in (["--quiz", "--seed", "3"], ["--quiz", "--seed=3"], ["wrong_axis", "--seed", "3"]):
        assert gallery.parse(gallery.Config, flags).seed == 3
    assert gallery.parse(gallery.Config, ["wrong_axis"]).seed == 0


def test_the_quiz_asks_what_was_never_asked_then_what_was_missed():
    known = {name: {"asked": 2, "right": 2} for name in entries()}
    known |= {"zero_init": {"asked": 4, "right": 1}, "test_leak": {"asked": 2, "right": 1}}
    del known["unshuffled"]
    names = [failure.name for failure in quizzing.order(known, random.Random(0))]
    assert names[:3] == ["unshuffled", "zero_init", "test_leak"]
    assert sorted(names) == sorted(entries())
    orders = {tuple(f.name for f in quizzing.order(known, random.Random(seed)))[3:] for seed in range(5)}
    assert len(orders) == 5


def test_a_curve_is_told_by_its_ends_and_its_summit():
    assert landmarks([2.64, 36473.0, 3.2]) == ["2.64", "3.65e+04", "3.2"]
    assert landmarks([3.0, 2.0, 1.0]) == ["3", "1"]
    assert landmarks([1.0, 2.0, 3.0]) == ["1", "3"]
    assert landmarks([1.0, math.inf, 2.0]) == ["1", "inf", "2"]


def test_sparks():
    assert show.spark([0, 1, 2, 7]) == "▁▂▃█"
    assert show.spark([7.0] * 3) == "███", "a flat curve is flat where it is, not at the bottom"
    assert show.spark([1, 10, 100, 1e4, 1e7]) == "▁▂▃▅█ (log)"
    assert show.spark([1, math.inf, math.nan, -1]) == "█××▁"
    assert show.spark([0.0, 0.0]) == "▁▁"
    assert show.spark([1.0] * 50 + [9.0] + [1.0] * 49, 10).count("█") == 1


TEXT = "A loss fell, and was wrong. It ended at 9.78, where 0 was possible."


def test_a_note_is_the_newest_entry(tmp_path):
    journal = tmp_path / "LEARNING.md"
    note.insert(journal, note.entry("Begun", "", date(2026, 1, 1)))
    assert journal.read_text() == "# LEARNING\n\n## 2026-01-01 · Begun\n"
    note.insert(journal, note.entry(TEXT, "", date(2026, 1, 2)))
    heading, body = "## 2026-01-02 · A loss fell, and was wrong", "It ended at 9.78, where 0 was possible."
    assert journal.read_text() == f"# LEARNING\n\n{heading}\n\n{body}\n\n## 2026-01-01 · Begun\n"


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_note_leaves_the_journal_as_it_was(tmp_path, ends):
    before = (ROOT / "LEARNING.md").read_text().replace("\n", ends)
    journal = tmp_path / "LEARNING.md"
    journal.write_bytes(before.encode())
    added = note.entry(TEXT, "", date(2026, 1, 2))
    note.insert(journal, added)
    after = journal.read_bytes().decode()
    assert after.replace((added + "\n").replace("\n", ends), "") == before
    assert re.findall(r"(?m)^## .*?(?=\r?$)", after)[0] == added.splitlines()[0]


@pytest.mark.parametrize(
    ("text", "heading", "rest"),
    [
        ("Adam, e.g. AdamW, is fast. It is.", "Adam, e.g. AdamW, is fast", "It is."),
        ("0.3 vs. The rest (cf. Lab 2) won. So", "0.3 vs. The rest (cf. Lab 2) won", "So"),
        ("A heading. 300 digits were read.", "A heading", "300 digits were read."),
        ("A line. Two sentences\nand a paragraph.", "A line. Two sentences", "and a paragraph."),
        ("Is it so? yes.", "Is it so?", "yes."),
        ("No end", "No end", ""),
    ],
)
def test_the_heading_is_the_first_line_or_the_first_sentence(text, heading, rest):
    body = f"\n\n{rest}" if rest else ""
    assert note.entry(text, "", date(2026, 1, 1)) == f"## 2026-01-01 · {heading}{body}\n"


def test_nothing_in_a_note_begins_an_entry_or_ends_a_cell(monkeypatch, capsys, tmp_path):
    journal = tmp_path / "LEARNING.md"
    journal.write_text("## 2026-01-01 · Without a title\n")
    note.insert(journal, note.entry("Newer\nText\n## 2026-01-09 · False\n# Too", "", date(2026, 1, 2)))
    text = journal.read_text()
    assert re.findall(r"(?m)^#.*", text) == ["## 2026-01-02 · Newer", "## 2026-01-01 · Without a title"]
    assert "\n\\## 2026-01-09 · False\n\\# Too\n" in text
    (tmp_path / "link.md").symlink_to(journal)
    note.insert(tmp_path / "link.md", note.entry("Third", "", date(2026, 1, 3)))
    assert (tmp_path / "link.md").is_symlink()
    assert journal.read_text() == f"## 2026-01-03 · Third\n\n{text}"

    checks = [
        {"name": "|x| of y", "value": 0.5, "spread": "± 0.1, 5 seeds", "target": "> 0.9", "ok": False},
        {"name": "loss", "value": None, "target": "< 1", "ok": False},
        {"name": "kept", "value": 1, "target": "== 1", "ok": True},
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"checks": checks, "command": "just"}))
    assert note.run_figures(tmp_path).splitlines()[2:5] == [
        r"| \|x\| of y | 0.5 ± 0.1, 5 seeds, which fails | > 0.9 |",
        "| loss | not finite, which fails | < 1 |",
        "| kept | 1 | == 1 |",
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"checks": [], "command": "just break --quiz"}))
    assert note.run_figures(tmp_path) == "    just break --quiz"


def write_note(monkeypatch, capsys, *flags: str) -> tuple[int, str, str]:
    """Run the command `note`: (exit status, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["note", *flags])
    try:
        note.main()
        status = 0
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()  # pyright: ignore[reportReturnType]


def test_a_note_has_the_figures_of_a_run_and_its_command(monkeypatch, capsys, tmp_path):
    launch(monkeypatch, capsys, "wrong_axis", "--seed", "3", "--out", str(tmp_path / "a run"))
    journal = tmp_path / "journal.md"
    run = ("--run", str(tmp_path / "a run"))
    status, _, err = write_note(monkeypatch, capsys, TEXT, *run, "--file", str(journal))
    assert (status, err) == (0, "")
    assert "| wrong_axis: broken shows the symptom | 1 | == 1 |\n" in journal.read_text()
    command = f"    uv run python -m experiments.gallery wrong_axis --seed 3 --out '{tmp_path}/a run'\n"
    assert journal.read_text().endswith(command)


@pytest.mark.parametrize(
    ("summary", "complaint"),
    [
        (None, "there is no summary.json"),
        ("{", "is damaged"),
        ('{"checks": []}', "has no 'command'; run it again"),
        ("[]", "is damaged"),
    ],
)
def test_a_note_of_a_bad_run_is_one_line_and_exit_2(monkeypatch, capsys, tmp_path, summary, complaint):
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    journal = tmp_path / "journal.md"
    status, out, err = write_note(monkeypatch, capsys, TEXT, "--run", str(tmp_path), "--file", str(journal))
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1
    assert not journal.exists()


@pytest.mark.parametrize("flags", [[], [""], ["  \n "], [TEXT, "--file", "/dev/null/journal.md"], [TEXT, "--fle", "x"]])
def test_a_bad_note_is_one_line_and_exit_2(monkeypatch, capsys, flags):
    status, out, err = write_note(monkeypatch, capsys, *flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
