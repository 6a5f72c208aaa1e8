"""The command `drill`; what a grader refuses; a log of attempts that is damaged; the proof of every grader."""

import contextlib
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rich.console import Console

from experiments.drill import __main__ as drill
from experiments.drill import answer, cut, grade, launch, prove, spacing
from experiments.drill.catalogue import DRILLS
from experiments.drill.compare import compare
from experiments.drill.explain import explain
from experiments.drill.launch import Verdict
from experiments.drill.recorder import Call, Recorder
from experiments.shared import answers, attempts, cli

RIGHT = "def relu(x):\n    return x.masked_fill(x <= 0, 0.0)\n"


@pytest.fixture(autouse=True)
def _own_files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(drill, "FOLDER", tmp_path / "drills")


def run(*flags: str) -> int:
    return drill.main(cli.parse_flags(drill.Config, flags))


# The catalogue and what is cut from it.


@pytest.mark.parametrize("name", DRILLS)
def test_a_drill_is_the_head_of_ours_and_nothing_of_its_body(name):
    text, ours = cut.cut(name), cut.source(name)
    defined = cut.definition_of(cut.ast.parse(text), DRILLS[name].of.partition(":")[2])
    assert cut.is_empty(defined)
    assert not cut.is_empty(ours.node)
    assert cut.ast.get_docstring(defined) == cut.ast.get_docstring(ours.node)
    if isinstance(defined, cut.ast.FunctionDef) and isinstance(ours.node, cut.ast.FunctionDef):
        assert cut.ast.unparse(defined.args) == cut.ast.unparse(ours.node.args)
    assert len(DRILLS[name].hints) == 3
    assert 1 <= DRILLS[name].difficulty <= 3


@pytest.mark.parametrize("name", DRILLS)
def test_what_is_cut_runs_as_it_is(name):
    """Every name that a signature needs is imported."""
    exec(compile(cut.cut(name), name, "exec"), {})


# The doors.


def test_the_list_and_the_help_need_no_torch():
    for flags in ([], ["--help"]):
        code = f"import sys; sys.argv = ['drill', *{flags}]; from experiments.drill import __main__ as drill\n"
        code += "try: drill.run()\nfinally: print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cut.ROOT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith("False")


@pytest.mark.parametrize(
    ("asked", "nearest"), [("softmx", "softmax"), ("attention", "scaled_dot_product_attention"), ("iou", "box_iou")]
)
def test_an_unknown_drill_lists_the_nearest(asked, nearest):
    with pytest.raises(cli.UsageError, match=rf"^there is no drill '{asked}'; the nearest are .*{nearest}"):
        run(asked)


def test_a_flag_without_a_name_is_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.drill", "--check"], capture_output=True, text=True, cwd=cut.ROOT
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: which drill?")
    assert done.stderr.count("\n") == 1


def test_from_an_untouched_file_to_a_pass(monkeypatch, capsys):
    """Begun, hinted at, checked in vain, passed, shown, and due again."""
    file = drill.place("relu")
    said = lambda: capsys.readouterr().out  # noqa: E731
    assert run("relu") == 0
    assert file.read_text() == cut.cut("relu")
    monkeypatch.setattr(launch, "graded", lambda name, path: Verdict("masked_fill" in path.read_text(), ["said"]))
    assert run("relu", "--check") == 1
    assert "not yet" in said()
    assert run("relu", "--show") == 1
    for count in (1, 2, 3, 3):
        said()
        assert run("relu", "--hint") == 0
        assert said().count(" of 3: ") == count
    file.write_text(RIGHT)
    assert run("relu") == 0
    assert "is there already" in said()
    assert file.read_text() == RIGHT
    assert run("relu", "--check") == 0
    assert "passed in 0:0" in said()
    for width, alike in ((200, True), (60, False)):
        monkeypatch.setattr(drill.console, "width", width)
        assert run("relu", "--show") == 0
        lines = said().splitlines()
        assert any("ours, fn.layers.relu" in line and "yours" in line for line in lines) == alike
    monkeypatch.setattr(drill.console, "width", 120)
    run()
    assert re.search(r"relu .* 0:0\d★? +1 +tomorrow", said())
    assert run("relu", "--reset") == 0
    assert file.read_text() == cut.cut("relu")
    assert file.with_suffix(".py.old").read_text() == RIGHT
    assert run("softmax", "--blank") == 0
    assert drill.place("softmax").read_text() == ""


def test_another_dtype_is_not_called_another_axis():
    x = torch.rand(4, 5, dtype=torch.float64)
    ours = x.softmax(1)
    said = dict(compare(ours.half(), ours, "result", {"x": x, "dim": 1}, None, inspect.signature(lambda x, dim: 0)))
    assert said == {"rounding": "the values are right, up to the rounding of torch.float16"}
    wrong = dict(compare(x.softmax(0).half(), ours, "result", {}, None, inspect.signature(lambda: 0)))
    assert "sums to one along axis 1 are expected; yours does along axis 0" not in wrong.get("rounding", "")
    assert "rounding" not in wrong


def test_ours_is_shown_with_the_functions_that_only_it_may_call():
    shown = drill.ours("freeze")
    assert "def freeze(" in shown
    assert "def _frozen_init(" in shown
    assert "def _frozen_apply(" in shown
    assert "def trained_modes(" not in shown  # given to both


def test_lines_that_both_have_are_dim_and_the_difference_stands_out(monkeypatch, tmp_path):
    printed = io.StringIO()
    console = Console(force_terminal=True, color_system="standard", width=60, file=printed)
    monkeypatch.setattr(answers, "console", console)
    file = tmp_path / "f.py"
    file.write_text("def f(x):\n    return x.abs()\n")
    answers.compare("f", "def f(x):\n    return x\n", file)
    dim = [line for line in printed.getvalue().splitlines() if re.search(r"\x1b\[(\d+;)*2[;m]", line)]
    assert [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in dim] == ["def f(x):"] * 2


def test_a_pass_of_what_was_never_begun_is_told_not_to_count(monkeypatch, capsys):
    drill.place("relu").parent.mkdir(parents=True)
    drill.place("relu").write_text(RIGHT)
    monkeypatch.setattr(launch, "graded", lambda name, path: Verdict(True, ["said"]))
    assert run("relu", "--check") == 0
    assert "passed, but not counted: just drill relu --reset begins it" in capsys.readouterr().out
    assert attempts.standings()["relu"].passes == 0


@pytest.mark.parametrize("flags", [("--hint", "--check"), ("--check", "--reset"), ("--show", "--blank")])
def test_two_things_at_once_are_refused(flags):
    with pytest.raises(cli.UsageError, match=r"^--\w+ --\w+: one at a time$"):
        run("relu", *flags)


# What a grader notices.

REFUSED = {
    "untouched": (cut.cut("relu"), "nothing is written yet"),
    "empty": ("", "is empty: write `relu` from memory"),
    "no function": ("x = 3\n", "has no `relu`: it defines no function"),
    "another name": ("def rleu(x):\n    return x\n", "has no `relu`: it defines `rleu`"),
    "no Python": ("def relu(x:\n    return x\n", "line 1: '(' was never closed"),
    "fails on import": ("import nonsense\n\n" + RIGHT, "fails when it is imported: ModuleNotFoundError"),
    "another parameter": ("def relu(input):\n    return input\n", "takes (input), expected (x)"),
    "another default": ("def relu(x=None):\n    return x\n", "the default of `x` is None, expected missing"),
    "raises": ("def relu(x):\n    return x.clmp(min=0)\n", "line 2: return x.clmp(min=0)"),
    "exits": ("import sys\ndef relu(x):\n    sys.exit(3)\n", "your function raised SystemExit: 3"),
    "prints": ("def relu(x):\n    print('of', tuple(x.shape))\n    return x\n", "yours printed\n  of ("),
    "returns nothing": ("def relu(x):\n    x.clamp(min=0)\n", "nothing is returned: is a `return` missing?"),
    "a lambda": ("relu = lambda x: x\n", "wrong just where `x` is negative"),
    "no function of Python's": (
        "import operator\nrelu = operator.pos\n",
        "`relu` is a builtin_function_or_method, no function of Python's: write `def relu",
    ),
    "ours": ("from fn import layers\ndef relu(x):\n    return layers.relu(x)\n", "this calls our own `fn.layers.relu`"),
    "ours, under another name": (
        "from fn.layers import relu as r\ndef relu(x):\n    return r(x)\n",
        "this calls our own `fn.layers.relu`",
    ),
    "torch's function": ("import torch\nrelu = torch.relu\n", "this calls torch's own `relu`"),
    "torch's, under another name": (
        "from torch.nn.functional import relu as r\ndef relu(x):\n    return r(x)\n",
        "this calls torch's own `relu`",
    ),
    "torch's method": ("def relu(x):\n    return x.relu()\n", "this calls torch's own `relu`"),
    "torch's module": ("import torch\ndef relu(x):\n    return torch.nn.ReLU()(x)\n", "this calls torch's own `ReLU`"),
    "torch's, in a check beside it": (
        f"import torch\n{RIGHT}\ndef check(x):\n    return relu(x) - torch.relu(x)\n",
        "  line 6: return relu(x) - torch.relu(x)\nyour `relu` does not use this line: take it out of ",
    ),
    "torch's, imported for a check": (
        f"from torch.nn.functional import relu as r\n{RIGHT}\ndef check(x):\n    return relu(x) - r(x)\n",
        "relu as r\nyour `relu` does not use this line: take it out of ",
    ),
    "a loop without end": (
        "def relu(x):\n    while True:\n        pass\n",
        "not done after 2 s: is there a loop that does not end?\n  it was at line",
    ),
    "an import without end": (RIGHT + "while True:\n    pass\n", "does not end when it is imported"),
    "all the memory": ("import torch\ndef relu(x):\n    return torch.ones(1 << 33)\n", "out of memory"),
    "memory bit by bit": (
        "def relu(x):\n    all = []\n    while True:\n        all.append(bytes(1 << 26))\n",
        "out of memory",
    ),
    "leaves": ("import os\ndef relu(x):\n    os._exit(0)\n", "before it had graded"),
    "is killed": ("import os\ndef relu(x):\n    os.kill(os.getpid(), 9)\n", "the process was killed: out of memory?"),
    "crashes": ("import ctypes\ndef relu(x):\n    ctypes.string_at(0)\n", "status -11 before it had graded"),
    "its own annotation": (
        'from jaxtyping import Float\nfrom torch import Tensor\ndef relu(x: Float[Tensor, "a b c d e"]): return x\n',
        "does not fit the annotation",
    ),
}

if not Path("/proc/self/statm").exists():  # where memory is not limited, as on a Mac
    del REFUSED["all the memory"], REFUSED["memory bit by bit"]

ENDLESS = ("a loop without end", "an import without end")
# One test passes without the answer, the other does not exist.
NEVER_CALLED = {"relu": ["tests/test_layers.py::test_layer_norm_refuses_another_shape"]}
NEVER_CALLED |= {"causal_mask": ["tests/test_attention.py::no"]}


STAGED = {
    "softmax": (
        "def softmax(x, dim, *, dtype=None):\n    return x.exp() / x.exp().sum(dim, keepdim=True)\n",
        "right on ordinary input",
        "to pass, it has to do more:\nNaN where a number is expected",
    ),
    "linear": (
        "def linear(x, weight, bias=None):\n    return x @ weight.T + bias\n",
        "right on ordinary input",
        "to pass, it has to do more:\nyour function raised TypeError",
    ),
    "cross_entropy": (
        'def cross_entropy(input, target, weight=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0):\n'
        "    log_p = input - input.logsumexp(1, keepdim=True)\n"
        "    counted = target != ignore_index\n"
        "    loss = -log_p.gather(1, target.where(counted, 0).unsqueeze(1)).squeeze(1)\n"
        "    loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(1)\n"
        "    loss = loss.where(counted, 0.0)\n"
        '    if reduction == "none":\n        return loss\n'
        '    return loss.sum() if reduction == "sum" else loss.sum() / counted.sum().clamp(min=1)\n',
        "with its options",
        "for the star, an edge wants more:\na number where NaN is expected",
    ),
    "adam": (
        "from fn import tree\n"
        "def adam_update(params, grads, state, *, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):\n"
        "    grads = tree.map(lambda g, p: g + weight_decay * p, grads, params)\n"
        "    a, b, t = *betas, state['step'] + 1\n"
        "    mean = tree.map(lambda m, g: a * m + (1 - a) * g, state['mean'], grads)\n"
        "    square = tree.map(lambda s, g: b * s + (1 - b) * g * g, state['square'], grads)\n"
        "    move = tree.map(lambda m, s: m / (1 - a**t) / ((s / (1 - b**t)).sqrt() + eps), mean, square)\n"
        "    params = tree.map(lambda p, d: p - lr * d, params, move)\n"
        "    return params, {'step': t, 'mean': mean, 'square': square}\n",
        "with its options",
        "for the star, an edge wants more:\nresult[0].fc1.weight: right to about seven digits, no more: "
        "was something on the way computed in float32? "
        "0.9 ** state.step is: a number and a tensor of integers make float32",
    ),
    "accuracy": (
        "def accuracy(input, target):\n    return (input.argmax(1) == target).float().mean()\n",
        "with its options",
        "for the star, an edge wants more",
    ),
    "top_k_accuracy": (
        "def top_k_accuracy(input, target, k, *, ignore_index=-100):\n"
        "    counted = target != ignore_index\n"
        "    score = input.gather(1, target.where(counted, 0).unsqueeze(1))\n"
        "    return (((input > score).sum(1) < k) & counted).sum() / counted.sum()\n",
        "with its options",
        "for the star, an edge wants more",
    ),
}
"""answers as a textbook has them: what is right of them, and what is said of the rest"""


class Batch(NamedTuple):
    answers: list[prove.Answer]
    tests: dict[str, list[str]]
    """in place of the catalogue's"""
    seconds: float


def refused(*labels: str) -> list[prove.Answer]:
    return [prove.Answer("relu", label, REFUSED[label][0], right=True) for label in labels]


BATCHES = {
    "endless": Batch(refused(*ENDLESS), {}, 2.0),
    "refused": Batch(refused(*(label for label in REFUSED if label not in ENDLESS)), {}, 120.0),
    "all of a drill": Batch(list(prove.answers("relu")), {}, 120.0),
    "staged": Batch([prove.Answer(name, "textbook", text, False) for name, (text, *_) in STAGED.items()], {}, 120.0),
    "never called": Batch([next(prove.answers(name)) for name in NEVER_CALLED], NEVER_CALLED, 120.0),
}
LONG = ("endless", "all of a drill")
GRADE = """
import json, sys
from experiments.drill import prove
from experiments.drill.catalogue import DRILLS

for answers, tests, seconds in json.load(sys.stdin):
    for name in tests:
        DRILLS[name] = DRILLS[name]._replace(tests=tests[name], options=(), edges=())
    outcomes = prove.grade_all([prove.Answer(*answer) for answer in answers], seconds)
    print(json.dumps([outcome.verdict for outcome in outcomes]))
"""


@cache
def graded(*names: str) -> dict[str, list[Verdict]]:
    """Of each batch; each answer in a fork of one process that has torch in memory."""
    done = subprocess.run(
        [sys.executable, "-c", GRADE],
        input=json.dumps([BATCHES[name] for name in names]),
        capture_output=True,
        text=True,
        cwd=cut.ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    return {name: [Verdict(*verdict) for verdict in json.loads(line)] for name, line in zip(names, lines, strict=True)}


def verdicts(name: str) -> list[Verdict]:
    """Return those of a batch; the ones that take long are graded apart."""
    group = LONG if name in LONG else [quick for quick in BATCHES if quick not in LONG]
    return graded(*group)[name]


@pytest.mark.parametrize(
    "label", [pytest.param(label, marks=[pytest.mark.slow] if label in ENDLESS else []) for label in REFUSED]
)
def test_a_file_that_is_no_answer_is_refused_in_words(label):
    batch = "endless" if label in ENDLESS else "refused"
    verdict = verdicts(batch)[[answer.label for answer in BATCHES[batch].answers].index(label)]
    assert not verdict.passed
    assert REFUSED[label][1] in "\n".join(verdict.lines)


def test_a_rounding_error_is_no_mistake_and_the_right_part_of_a_result_is_named():
    def f(x):
        return {"loss": x}

    def said(loss: float) -> list[str]:
        call = Call({"x": 1.0}, {"loss": loss, "accuracy": 0.5}, {"loss": 0.3, "accuracy": 0.5}, {"x": 1.0})
        return explain([call], inspect.signature(f), f)

    assert said(0.1 + 0.2) == []
    assert "result.accuracy is right; result.loss is not" in said(0.4)


def test_of_a_function_in_a_result_it_is_not_said_that_it_is_right():
    def f(x):
        return {"apply": f, "step": x}

    call = Call({"x": 1.0}, {"apply": lambda x: x, "step": 2.0}, {"apply": f, "step": 1.0}, {"x": 1.0})
    assert "result.apply" not in " ".join(explain([call], inspect.signature(f), f))


@pytest.mark.parametrize("name", STAGED)
def test_a_textbook_answer_is_right_on_ordinary_input_and_told_what_an_edge_wants(name):
    verdict, (_, right, rest) = verdicts("staged")[[*STAGED].index(name)], STAGED[name]
    assert re.match(r"right on ordinary input \(\d+ cases\)", verdict.lines[0])
    said = "\n".join(verdict.lines)
    assert right in said
    assert rest in said
    assert "constant factor" not in said
    assert verdict.passed == rest.startswith("for the star")
    assert not verdict.star


def test_a_cause_is_named_only_where_it_explains_every_call_that_went_wrong():
    def f(x):
        return x

    x = torch.tensor([1.0, 2.0, 5.0])

    def said(*yours: torch.Tensor) -> str:
        calls = [Call({"x": x}, y, x, {"x": x}) for y in yours]
        return "\n".join(explain(calls, inspect.signature(f), f))

    assert "off by a constant factor of 0.5" in said(x / 2, x / 2)
    assert "constant factor" not in said(x / 2, x / 2, x**2)


def test_the_list_has_every_name_whole_at_60_columns(monkeypatch, capsys):
    monkeypatch.setattr(drill.console, "_width", 60)
    assert drill.list_drills() == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 60
    assert {line.split()[0] for line in lines if line.startswith(" ") and line.strip()} >= DRILLS.keys()


class Loop:
    """In place of the tests of a drill: one that calls the answer three times."""

    def __init__(self, recorder: Recorder, stages: dict[str, tuple[str, ...]]) -> None:
        self.recorder, self.stages, self.stage, self.failed = recorder, stages, "main", "a loop"
        self.said, self.raised, self.error = ["a loop"], None, None

    def tests(self, ids: list[str]) -> None:
        self.recorder.calls = 0
        with contextlib.suppress(pytest.skip.Exception):
            for x in (1.0, 2.0, 3.0):
                self.recorder(x)


@pytest.mark.parametrize(("wrong_from", "compared"), [(2.0, 2), (3.0, 3)])
def test_the_first_calls_of_a_test_are_compared_and_the_rest_if_these_are_right(monkeypatch, wrong_from, compared):
    monkeypatch.setattr(grade, "Run", Loop)
    monkeypatch.setattr(grade, "CALLS", 2)

    def ours(x):
        return x

    def yours(x):
        return x if x < wrong_from else -x

    recorder = Recorder(yours, ours)
    lines = grade._explain(Loop(recorder, {"main": ("a loop",)}), Path())  # pyright: ignore
    assert lines[0].startswith("the sign is reversed")
    assert f"yours    -{wrong_from}" in lines
    assert len(recorder.seen) == compared


def test_a_grader_whose_tests_never_call_the_answer_refuses():
    for name, verdict in zip(NEVER_CALLED, verdicts("never called"), strict=True):
        assert not verdict.passed
        assert f"no test went through your `{name}`" in "\n".join(verdict.lines)


def test_an_answer_saved_twice_in_one_second_is_read_anew(tmp_path, monkeypatch):
    """Of one size too: Python's cache of bytecode tells neither apart."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "relu.py"
    found = []
    for bound in (0.0, 1.0):
        file.write_text(f"def relu(x):\n    return x.clamp(min={bound})\n")
        os.utime(file, (1e9, 1e9))
        found.append(answer.load("relu", file, 30.0)(torch.tensor(-1.0)).item())
    assert found == [0.0, 1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["relu.py"]


@pytest.mark.slow
def test_a_grader_of_its_own_process_passes_and_ends(monkeypatch, tmp_path):
    """As --check starts it; an answer that only waits is ended from outside.

    For the limit no time passes until the answer has been called, and then all of it at once.
    """
    file = tmp_path / "relu.py"
    file.write_text(RIGHT)
    verdict = launch.graded("relu", file)
    assert verdict.passed, verdict.lines
    assert verdict.tests == 5
    waits = tmp_path / "waits"
    file.write_text(f"import time\ndef relu(x):\n    open({str(waits)!r}, 'w').close()\n    time.sleep(1e6)\n")
    deadline = time.monotonic() + 600
    monkeypatch.setattr(subprocess, "_time", lambda: 1e6 if waits.exists() or time.monotonic() > deadline else 0.0)
    said = launch.graded("relu", file, wall_seconds=30).lines[0]
    assert waits.exists(), "the answer was not called within ten minutes"
    assert said.startswith("not done after 30 s")


# The proof.


@pytest.mark.slow
def test_every_answer_of_a_drill_is_graded_right():
    for outcome in map(prove.Outcome, BATCHES["all of a drill"].answers, verdicts("all of a drill")):
        assert outcome.ok, outcome


THE_REST = [name for name in DRILLS if name != "relu"]


@pytest.mark.longest
@pytest.mark.slow
@pytest.mark.parametrize("names", [THE_REST[i::4] for i in range(4)], ids=lambda names: f"{names[0]} …")
def test_every_wrong_answer_is_refused_in_fitting_words_and_every_right_one_passes(names):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.drill.prove", *names], capture_output=True, text=True, cwd=cut.ROOT
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


PROMISING = [name for name in DRILLS if "ValueError" in (cut.ast.get_docstring(cut.source(name).node) or "")]


@pytest.mark.parametrize("name", PROMISING)
def test_a_refusal_that_a_docstring_promises_is_graded(name):
    """There is a wrong answer without it, and it is told so."""
    assert any("refused" in answer.phrase for answer in prove.answers(name))


@pytest.mark.parametrize("name", DRILLS)
def test_each_drill_has_four_wrong_answers_and_a_right_one(name):
    answers = list(prove.answers(name))
    own = [answer for answer in answers if answer.label not in ("calls ours", "torch's own, where it is not allowed")]
    assert sum(not answer.right for answer in own) >= 4
    assert sum(answer.right for answer in own) >= 1
    assert all(answer.right or answer.phrase for answer in answers)
    assert len({answer.text for answer in answers}) == len(answers) - any(answer.allow_torch for answer in answers)


# Progress.


def events(*entries: tuple[str, dict]) -> None:
    for event, details in entries:
        attempts.record("relu", event, **details)


def test_a_log_that_was_cut_off_anywhere_still_counts_what_is_whole():
    events(("start", {}), ("check", {"passed": False}), ("check", {"passed": True}))
    path = attempts.file()
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = sum(end - 1 <= length for end in ends)
        standing = attempts.standings().get("relu", attempts.Standing())
        assert (standing.attempts, standing.passes) == (max(complete - 1, 0), int(complete == 3))
        attempts.record("relu", "check", passed=False)
        assert attempts.standings()["relu"].attempts == standing.attempts + 1


NO_EVENTS = [b"", b"{", b"3", b"[]", b"null", b"\xff\x00", b'{"v": 1}', b"[" * 100_000]
NO_EVENTS += [b'{"drill": "relu", "event": 3, "at": 0}', b'{"drill": "relu", "event": "check", "at": "soon"}']


@pytest.mark.parametrize("line", NO_EVENTS, ids=range(len(NO_EVENTS)))
def test_a_line_that_is_no_event_is_passed_over(line):
    events(("start", {}))
    with attempts.file().open("ab") as log:
        log.write(line + b"\n")
    events(("check", {"passed": True}))
    assert attempts.standings()["relu"].passes == 1


def test_what_a_later_version_wrote_is_kept_and_does_no_harm():
    events(("start", {"mood": "good"}), ("sung", {"v": 9}), ("check", {"passed": True, "score": [1, 2]}))
    with attempts.file().open("a") as log:
        log.write(json.dumps({"v": 7, "drill": "a drill of tomorrow", "event": "start", "at": 5, "new": {}}) + "\n")
    before = attempts.file().read_bytes()
    events(("hint", {}))
    assert attempts.file().read_bytes().startswith(before)
    assert attempts.standings()["relu"].passes == 1
    assert run() == 0


def test_killed_at_any_moment_the_log_is_sound():
    """A process that records without end, killed five times."""
    code = "from experiments.shared import attempts\nwhile True: attempts.record('relu', 'check', passed=False)"
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=cut.ROOT, env={**os.environ})
        before = len(attempts.file().read_bytes()) if attempts.file().exists() else 0
        while process.poll() is None:
            if attempts.file().exists() and len(attempts.file().read_bytes()) > before + 1000:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    lines = attempts.file().read_bytes().splitlines()
    assert attempts.standings()["relu"].attempts >= len(lines) - 5


def test_passes_are_further_and_further_apart(monkeypatch):
    """A hint brings the drill back sooner; a second pass of one answer adds nothing."""
    now = [1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    waits = []
    for hint in (False, False, False, True, False):
        events(("start", {}), *[("hint", {})] * hint, ("check", {"passed": True}), ("check", {"passed": True}))
        due = spacing.due(spacing.tries(attempts.task_events()))["relu"]
        waits.append((due - now[0]) / attempts.DAY)
        now[0] = due
    assert 1 <= waits[0] < waits[1] < waits[2]
    assert waits[3] < 3 * waits[2]  # after a hint it grows less than after none
    assert waits[2] / waits[1] > waits[3] / waits[2]
    assert attempts.standings()["relu"].passes == 5


def test_next_is_what_is_under_way_then_what_is_due_then_the_easiest_new_one():

    def pick(at: float) -> str:
        return spacing.next_drill(["nms", "linear", "relu"], attempts.task_events(), at)

    assert pick(time.time()) == "linear"
    events(("start", {}))
    assert pick(time.time()) == "relu"
    events(("check", {"passed": True}))
    assert pick(time.time()) == "linear"
    assert pick(time.time() + 100 * attempts.DAY) == "relu"
    attempts.record("nms", "start")
    attempts.record("linear", "start")
    assert pick(time.time()) == "linear"  # begun last
    attempts.record("linear", "skip")
    attempts.record("nms", "skip")
    assert pick(time.time()) == "linear"  # skipped, never passed: it is new still, and due at no time
    for name in ("linear", "nms"):
        attempts.record(name, "start")
        attempts.record(name, "check", passed=True)
    assert pick(time.time()) in ("linear", "nms")  # Again after a skip: due before relu


def test_a_drill_that_was_only_skipped_is_never_due():
    events(("start", {}), ("skip", {}))
    assert spacing.due(spacing.tries(attempts.task_events())) == {}
