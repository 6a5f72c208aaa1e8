"""A broken program to mend: its file tells nothing, what was made of it is graded, and then the cause is asked."""

import ast
import contextlib
import importlib
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.gallery import __main__ as command
from experiments.gallery import grading, mending, mine, quiz
from experiments.gallery.failures import Failure, gallery
from experiments.shared import attempts
from tests.launch import run_in_process

ALL = pytest.mark.parametrize("failure", gallery().values(), ids=lambda failure: failure.name)
GIVEAWAYS = {
    "channels_last": "reshape|axis|order|permut",
    "flattened_batch": "flat|view|cut",
    "noncontiguous_view": "contiguous|view|stride|transpos",
    "silent_broadcast": "broadcast|table|shape",
    "wrong_axis": "axis|batch_first|position",
    "buffer_left_behind": "buffer|attribute|behind",
    "half_elsewhere": "half|both|layer",
    "bf16_vanishes": "vanish|lost|round|1/",
    "float64_creeps_in": "float64|double|float32",
    "float_labels": "float|int|dtype",
    "fp16_overflow": "overflow|65|infin|square",
    "integer_input": "wrap|integer|negative|uint",
    "mask_added_twice": "twice|add|infin",
    "backward_twice": "graph|twice|detach|retain",
    "data_hides_change": "hide|hidden|data|record|in place",
    "leaf_in_place": "leaf|in.place|no_grad",
    "unsummed_gradient": "sum|broadcast",
    "dead_relus": "dead|clos|clip|rate",
    "decayed_norms": "norm's|norms|group|gains? from",
    "detached_loss": "detach|cut|graph",
    "double_softmax": "softmax|twice|double|probab|logits",
    "gradients_pile_up": "pile|zero_grad|sum|accumul",
    "gradients_vanish": "vanish|shrink|residual|small",
    "no_warmup": "warm|rate|fresh",
    "rate_too_high": "high|overshoot|large|beyond",
    "rate_too_low": "low rate|rate|too",
    "softmax_wrong_axis": "axis|over|batch|dim",
    "zero_init": "init|start|zeros? weights|at 0",
    "labels_misaligned": "align|different|same order|orders",
    "normalised_twice": "twice|again|normalis|standardis",
    "test_leak": "leak|sight|seen|peek",
    "unshuffled": "shuffl|order|class by class",
    "workers_alike": "worker|copy|copies|alike",
    "batch_norm_trains": "eval|train|mode|statistic",
    "dropout_on": "dropout|eval|mode",
    "frozen_statistics": "statistic|running|buffer|eval",
    "per_batch_mean": "mean|average|last batch|short",
    "wrong_checkpoint": "copy|copies|state_dict|always",
    "more_than_tensors": "tensors|weights_only|plain|Namespace",
    "recompiled_steps": "constant|recompil|Python number|dynamic",
}
"""words of the cause, which neither the texts nor the comments of the file may say"""


@pytest.fixture(autouse=True)
def _a_folder_for_files_and_score(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(mine, "FOLDER", tmp_path / "bugs")
    monkeypatch.setattr(grading, "SECONDS", 600.0)  # so that no verdict hangs on how fast the machine is
    monkeypatch.setattr(grading, "WALL_SECONDS", 3600.0)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "case_of_the_tests.py"
    file.write_text(text)
    return file


def edited(tmp_path: Path, name: str, *edits: str) -> Path:
    """Write the broken program with each first text replaced by the second."""
    text = mine.begin(name)
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    return written(tmp_path, text)


def prose(text: str) -> Iterator[str]:
    """Yield the docstrings and the comments of a file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            yield ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@ALL
def test_the_file_does_not_say_what_is_wrong(failure: Failure):
    assert GIVEAWAYS.keys() == gallery().keys()
    text = mine.begin(mine.case(failure.name))
    told = " ".join(" ".join(prose(text)).split())
    assert failure.task in told
    assert not re.search(rf"(?i)\b({GIVEAWAYS[failure.name]})", told.replace(failure.task, "")), told
    assert not re.search(rf"(?i)\b({GIVEAWAYS[failure.name]})", failure.task)
    for part in (failure.title, failure.symptom, *failure.parts.values()):
        assert not any(sentence in told for sentence in re.split(r"[.:;?] ?", part) if len(sentence) > 12)
    names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert not names & {"broken", "fixed", "shows", "solves", "checked"}
    assert failure.name not in text
    assert max(map(len, text.splitlines())) <= 80


@ALL
def test_a_file_that_is_as_it_was_is_refused(failure: Failure, tmp_path):
    text = mine.begin(failure.name)
    file = written(tmp_path, text)
    assert mine.grade(failure.name, file) == [mine.UNCHANGED]
    file.write_text(text.replace("\n\n\ndef program", "\n# is it here?\n\n\n\ndef program"))
    assert mine.grade(mine.case(failure.name), file) == [mine.UNCHANGED]


QUICK = ("fp16_overflow", "wrong_axis", "more_than_tensors")


@pytest.fixture(scope="module")
def warm() -> None:
    mine.warm()


@pytest.mark.parametrize("name", QUICK)
def test_the_fix_of_the_gallery_is_mended(name, tmp_path):
    assert mine.grade(name, written(tmp_path, mine.write(gallery()[name], name, "fixed"))) == []


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("name", [name for name in gallery() if name not in QUICK])
def test_every_fix_of_the_gallery_is_mended(name, tmp_path):
    assert mine.grade(name, written(tmp_path, mine.write(gallery()[name], name, "fixed"))) == []


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")  # then no fork
    bad = edited(tmp_path, "fp16_overflow", "h.half()", "h.half() * 2")
    assert mine.grade("fp16_overflow", bad)[0].startswith("it shows the symptom still: After the norm")


def test_the_file_runs_by_the_command_that_it_names(tmp_path, monkeypatch, capsys):
    mending.begin("fp16_overflow", reset=False)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("bugs.fp16_overflow")
    module.show_seen(module.program(seed=0))
    assert "spread out   0" in capsys.readouterr().out


STILL, NOT_DONE = "it shows the symptom still", "the symptom is gone, but it does not do its task"
ATTEMPTS = [
    ("fp16_overflow", "h.half()", "2 * h.half()", STILL),
    ("fp16_overflow", "h.half()", "h.half() / 300", ""),
    ("backward_twice", "message(loss.backward)", "message(lambda: loss.backward(retain_graph=True))", NOT_DONE),
    ("backward_twice", "optimizer.step()", "optimizer.step(); h = h.detach()", ""),
    ("leaf_in_place", "weight -= 0.1 * weight.grad", "weight = weight - 0.1 * weight.grad", NOT_DONE),
    ("leaf_in_place", "weight -= 0.1 * weight.grad", "weight.data -= 0.1 * weight.grad", ""),
    ("noncontiguous_view", ".transpose(1, 2)", "", NOT_DONE),
    ("noncontiguous_view", ".view", ".reshape", ""),
    ("data_hides_change", "h.data.clamp_(max=0.8)", "pass", NOT_DONE),
    ("data_hides_change", "h.data.clamp_(max=0.8)", "h = torch.where(h > 0.8, 0.8, h)", ""),
    ("unsummed_gradient", "dw, db = dy.T @ x, dy", "dw, db = dy.T @ x, dy.mean(dim=0) * 0", NOT_DONE),
    ("unsummed_gradient", "dw, db = dy.T @ x, dy", "dw, db = dy.T @ x, dy.sum()", ""),
    ("more_than_tensors", '"options": options}', '"options": str(options)}', ""),
    ("more_than_tensors", '"options": options}', '"model too": 1}', NOT_DONE),
    ("half_elsewhere", 'tree.to(params["fc2"], elsewhere)', 'params["fc2"]', NOT_DONE),
    ("buffer_left_behind", "(x - self.mean)", "(x - self.mean.to(x.device))", NOT_DONE),
    ("wrong_axis", "attention(x, x, x)[0]", "attention(*3 * [x.transpose(0, 1)])[0].transpose(0, 1)", ""),
]


@pytest.mark.parametrize(("name", "old", "new", "phrase"), ATTEMPTS)
def test_what_is_tried_is_judged_by_what_it_returns(tmp_path, name, old, new, phrase):
    told = mine.grade(name, edited(tmp_path, name, old, new))
    assert told[0].startswith(phrase) if phrase else told == [], told
    assert not phrase or "it returns" in told


AT = "    h = 300"
"""how the first line of the program begins"""
VERDICTS = [
    ("    h =", "    h = = 300", "case_of_the_tests.py, line "),
    (AT, "    raise LookupError('gone')\n" + AT, "it stops with LookupError: gone"),
    (AT, "    import sys; sys.exit(0)\n" + AT, "it leaves Python in the middle"),
    (AT, "    import os; os._exit(0)\n" + AT, "the process ended with status 0 before it had graded"),
    (AT, "    import os; os.kill(os.getpid(), 9)\n" + AT, "the process was killed: out of memory?"),
    (
        AT,
        "    import signal; signal.setitimer(signal.ITIMER_PROF, 0.5)\n    while True: pass\n" + AT,
        "not done after 600 s: is there a loop that does not end?",
    ),
    (
        AT,
        "    import signal, time; signal.setitimer(signal.ITIMER_REAL, 0.5)\n    time.sleep(60)\n" + AT,
        "not done after 3600 s: does it wait for something, or never end?",
    ),
    ("def program(", "def programme(", "there is no function `program` any more"),
    ("h.max()", "h.min()", "`program` is to return what it did"),
    (AT, "    if seed == 0:\n        return {}\n" + AT, "`program` is to return what it did"),
    ("    y = norm", "    print('here')\n    y = norm", STILL),
    ("h: Tensor) -> Tensor:\n", "h: Tensor) -> Tensor:\n    return linear(h, h)\n", "it stops with NameError"),
    (
        "    y = norm_by_hand(h.half())",
        "    from fn.layers import relu\n    y = relu(3)",
        "it stops with fn.layers.relu: x is",
    ),
    ("{", "{**(lambda: 1)(), ", "`program` is to return what it did"),
]


@pytest.mark.parametrize(("old", "new", "verdict"), VERDICTS)
def test_whatever_the_program_does_is_a_verdict_in_words(tmp_path, old, new, verdict):
    # a program that does not end says itself that half a second is left to it
    told = mine.grade("fp16_overflow", edited(tmp_path, "fp16_overflow", old, new))
    assert told[0].startswith(verdict), told
    if "loop" in verdict or "wait" in verdict:
        assert told[1].endswith(("while True: pass", "time.sleep(60)"))
    if "here" in new:
        assert told[-2:] == ["it prints", "  here"]


def test_the_clock_begins_with_the_program(tmp_path, monkeypatch):
    """What is imported before it is no part of its seconds: the first grade of a process has as many as the next."""
    began = []
    monkeypatch.setattr(grading, "warm", lambda: began.append("warm"))
    monkeypatch.setattr(grading, "limit_memory", lambda: None)
    for name in ("timed", "awaited"):
        monkeypatch.setattr(grading, name, lambda _, name=name: contextlib.nullcontext(began.append(name)))
    monkeypatch.setattr(grading, "_load", lambda _: SimpleNamespace(program=lambda _: began.append("program")))
    grading.main("fp16_overflow", tmp_path / "none.py", tmp_path / "verdict.json")
    assert began == ["warm", "timed", "awaited", "program"]


def test_a_file_that_cannot_be_read_is_a_verdict(tmp_path):
    assert "cannot be read" in mine.grade("fp16_overflow", tmp_path / "none.py")[0]
    file = tmp_path / "bytes.py"
    file.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in mine.grade("fp16_overflow", file)[0]


def launch(monkeypatch, capsys, *flags: str) -> tuple[int, str, str]:
    """Run the command: (exit status, stdout, stderr)."""
    return run_in_process(monkeypatch, capsys, command.Config, command.main, *flags, parse=command.parse)


def test_a_file_is_begun_once_and_started_over_on_demand(monkeypatch, capsys):
    status, out, err = launch(monkeypatch, capsys, "wrong-axis", "--mine")
    file = mine.place("wrong_axis")
    assert (status, err) == (0, "")
    assert out.startswith(f"{file} is yours to mend\n")
    assert file.read_text() == mine.begin("wrong_axis")
    file.write_text("mine\n")
    status, out, _ = launch(monkeypatch, capsys, "wrong_axis", "--mine")
    assert (status, file.read_text()) == (0, "mine\n")
    assert "is there already" in out
    launch(monkeypatch, capsys, "wrong_axis", "--mine", "--reset")
    assert file.read_text() == mine.begin("wrong_axis")
    assert file.with_suffix(".py.old").read_text() == "mine\n"
    [begun, again] = attempts.events()
    assert begun["drill"] == again["drill"] == f"bug:{mine.case('wrong_axis')}"


def test_without_a_name_a_case_is_picked_that_is_not_there_and_says_nothing(monkeypatch, capsys):
    quiz.keep({}, "zero_init", True)
    status, out, _ = launch(monkeypatch, capsys, "--mine")
    [file] = mine.FOLDER.glob("*.py")
    failure = mine.named(file.stem)
    assert status == 0
    assert failure.name != "zero_init", "it was answered"
    assert failure.name not in out + file.read_text()
    assert mine.find(file.stem.replace("_", "-")) is None
    for other in gallery():
        mine.place(mine.case(other)).write_text("")
    status, out, err = launch(monkeypatch, capsys, "--mine")
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_every_case_is_one_failure():
    assert len({mine.case(name) for name in gallery()}) == len(gallery())
    assert mine.case("silent_broadcast") == "case_5714", "the same for ever"


def test_a_mended_program_is_asked_for_its_cause(monkeypatch, capsys):
    name = mine.case("fp16_overflow")
    others = [gallery()[other] for other in ("wrong_axis", "zero_init", "test_leak")]
    monkeypatch.setattr(quiz, "choices", lambda failure, _: [*others, failure])
    monkeypatch.setattr("builtins.input", lambda _: "4")
    launch(monkeypatch, capsys, name, "--mine")
    status, out, _ = launch(monkeypatch, capsys, name, "--mine", "--check")
    assert (status, out) == (1, f"{mine.UNCHANGED}\n\nnot yet\n")
    assert quiz.load_score() == {}, "the cause is asked of nobody who has not found it"
    mine.place(name).write_text(mine.write(gallery()["fp16_overflow"], name, "fixed"))
    status, out, err = launch(monkeypatch, capsys, name, "--mine", "--check")
    assert (status, err) == (0, "")
    assert out.startswith("mended: ")
    assert gallery()["test_leak"].title in out
    assert out.endswith("right: just break fp16_overflow\n")
    monkeypatch.setattr("builtins.input", lambda _: "1")
    launch(monkeypatch, capsys, name, "--mine", "--check")
    assert quiz.load_score() == {"fp16_overflow": {"asked": 2, "right": 1}}


def test_an_end_of_input_leaves_the_cause_open(monkeypatch, capsys):
    def end(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    launch(monkeypatch, capsys, "fp16_overflow", "--mine")
    mine.place("fp16_overflow").write_text(mine.write(gallery()["fp16_overflow"], "x", "fixed"))
    assert launch(monkeypatch, capsys, "fp16_overflow", "--mine", "--check")[0] == 0
    assert quiz.load_score() == {}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["wrong_axs", "--mine"], "the nearest are wrong_axis, "),
        (["wrong_axis", "--mine", "--check"], "wrong_axis.py is not there: just break wrong_axis --mine begins it"),
        (["wrong_axis", "--check"], "just break NAME --mine --check"),
        (["--mine", "--check"], "which one? say its name"),
        (["wrong_axis", "--mine", "--check", "--reset"], "one at a time"),
        (["--mine", "--quiz"], "one thing at a time"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(monkeypatch, capsys, flags, complaint):
    status, out, err = launch(monkeypatch, capsys, *flags)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
