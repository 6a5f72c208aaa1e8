"""Every old idiom does today what its file says, today's is right; the command, and the grader of rewrites."""

import ast
import io
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch

from experiments.shared import attempts, show
from experiments.since import __main__ as since
from experiments.since import grade, rewrite
from experiments.since.pairs import THEMES, Pair, pairs, read, read_today
from experiments.since.running import Outcome, does_as_stated, evaluate, run, wanted
from tests.launch import run_in_process

ROOT = Path(__file__).parents[1]
EACH = pytest.mark.parametrize("pair", pairs().values(), ids=lambda pair: pair.name)


def launch(monkeypatch, capsys, *flags: str) -> tuple[int, str, str]:
    """Run the command: (exit status, stdout, stderr)."""
    return run_in_process(monkeypatch, capsys, since.Config, since.main, *flags, parse=since.parse)


@EACH
def test_old_does_as_it_says_and_new_is_right(pair: Pair):
    runnable = pair.load()
    for seed in (0, 2):
        old, new = run(pair, runnable.old, seed), run(pair, runnable.new, seed)
        assert [c.ok for c in evaluate(pair, old, new, wanted(pair, seed))] == [True] * 3, (old, new)


@EACH
def test_todays_way_passes_the_grade_and_the_file_to_begin_with_does_not(pair: Pair, tmp_path):
    file = tmp_path / f"{pair.name}.py"
    file.write_text(rewrite.begin(pair.name))
    assert grade.grade(pair.name, file), "the old way"
    old = ast.parse(rewrite.begin(pair.name))
    file.write_text(rewrite.solution(pair.name))
    assert grade.grade(pair.name, file) == []
    if pair.gone:
        assert any(grade.find(piece, old) for piece in pair.gone), "the old way has none of what is to go"


@EACH
def test_every_file_says_all_and_what_is_to_be_read_is_there(pair: Pair):
    assert len(pair.title) <= 76
    assert not pair.title.endswith(".")
    assert len(pair.parts["Why"]) > 60
    assert max(len(pair.parts[which]) for which in ("Old", "New")) <= 60
    assert pair.year <= 2025
    for name in pair.parts["Read"].split(", "):
        assert resolve_name(name) is not None
    assert read_today(pair.parts["Today"])
    assert (pair.load().cost is not None) == (pair.today.does == "costs")


def test_there_are_enough_of_each_theme_and_no_name_stands_twice():
    assert len(pairs()) >= 24
    assert {pair.theme for pair in pairs().values()} == set(THEMES)
    files = [file.stem for file in (ROOT / "experiments/since/pairs").glob("*/*.py")]
    assert sorted(files) == sorted(pairs())
    years = [pair.year for pair in pairs().values()]
    assert years == sorted(years)


def test_a_file_that_is_not_of_the_form_is_refused(tmp_path):
    text = pairs()["byte_mask"].file.read_text()
    file = tmp_path / "entry.py"
    file.write_text(text)
    assert read(file).today.words == "indexing with dtype torch.uint8 is now deprecated"
    for lost in ("Why: ", "def wanted("):
        file.write_text(text.replace(lost, lost.replace("W", "X").replace("wanted", "unwanted")))
        with pytest.raises(ValueError, match="not of the form"):
            read(file)
    with pytest.raises(ValueError, match="not warns, raises"):
        read_today("is slow")


def test_a_false_statement_fails_its_check():
    warns, wrong = pairs()["byte_mask"], pairs()["tensor_of_size"]
    right = wanted(wrong)
    old, new = run(wrong, wrong.load().old), run(wrong, wrong.load().new)
    assert [c.ok for c in evaluate(wrong, old, new, right)] == [True] * 3
    assert [c.ok for c in evaluate(wrong, new, new, right)] == [False, True, True]
    assert [c.ok for c in evaluate(wrong, old, old, right)] == [True, False, True]
    assert [c.ok for c in evaluate(wrong, old, new._replace(warned=("a",)), right)] == [True, True, False]
    assert not does_as_stated(warns, Outcome(1.0), Outcome(1.0), 1.0), "it does not warn"
    assert not does_as_stated(wrong, old._replace(warned=("a",)), new, right), "no longer silent"
    costs = pairs()["channels_last"]
    dear, cheap = Outcome(1.0, cost=4), Outcome(1.0, cost=1)
    assert does_as_stated(costs, dear, cheap, 1.0)
    assert not does_as_stated(costs, dear._replace(cost=3), cheap, 1.0)
    assert not does_as_stated(costs, dear._replace(result=2.0), cheap, 1.0)


def test_the_settings_of_torch_are_put_back():
    before = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.is_warn_always_enabled()
    for name in ("default_tensor_type", "deterministic"):
        run(pairs()[name], pairs()[name].load().new)
    after = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), torch.is_warn_always_enabled()
    assert before == after
    assert not torch.backends.cudnn.deterministic
    assert not torch.distributed.is_initialized()


def test_the_table_of_the_readme_is_the_list():
    readme = (ROOT / "experiments/since/README.md").read_text()
    assert "\n".join(since.markdown()) in readme
    assert f"[{len(pairs())} changes" in (ROOT / "README.md").read_text()


def test_the_version_of_each_pair_has_its_source():
    text = (ROOT / "experiments/since/sources.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| \S.* \|$", text, re.MULTILINE)
    assert dict(found) == {pair.name: pair.parts["Since"] for pair in pairs().values()}


def test_the_list_fits_into_60_columns_and_needs_no_torch():
    command = "import sys; sys.argv[1:] = []\nfrom experiments.since import __main__ as since\n"
    command += "from experiments.shared import cli\n"
    command += "try: cli.run(since.Config, since.main, since.parse)\nfinally: assert 'torch' not in sys.modules"
    process = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, cwd=ROOT, env={"COLUMNS": "60", "PATH": ""}
    )
    assert process.returncode == 0, process.stderr
    assert max(map(len, process.stdout.splitlines())) <= 60
    for pair in pairs().values():
        assert re.search(rf" {pair.name} +{re.escape(pair.today.short)}\n", process.stdout)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["byte_msk"], "there is no pair 'byte_msk'; the nearest are byte_mask, "),
        (["byte_mask", "--all"], "one thing at a time"),
        (["byte_mask", "--mine", "--check"], "one thing at a time"),
        (["--mine"], "which pair?"),
        (["byte_mask", "--reset"], "--reset goes with --mine"),
        (["--alll"], "--all"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(monkeypatch, capsys, flags, complaint):
    status, out, err = launch(monkeypatch, capsys, *flags)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["volatile", "data-parallel", "attention_by_hand"])
def test_one_is_shown_within_the_width(monkeypatch, capsys, tmp_path, name):
    monkeypatch.setattr(show.console, "_width", 60)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    status, out, _ = launch(monkeypatch, capsys, name, "--out", str(tmp_path))
    assert status == 0, out
    before_table = out.partition("Done when")[0]
    assert max(map(len, before_table.splitlines())) <= 60
    assert "\x1b" not in out
    assert "guess" not in out
    assert "def old(" in out
    assert "def new(" in out
    for part in ("Old  ", "It runs on torch ", "New  ", "It runs:", "Why    ", "Read   ", "Yours  "):
        assert f"\n{part}" in out


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    """Where a test's rewrites lie; its log of attempts lies beside them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(rewrite, "FOLDER", tmp_path / "since")
    return tmp_path / "since"


def test_mine_writes_the_old_way_once(monkeypatch, capsys, folder):
    status, out, _ = launch(monkeypatch, capsys, "volatile", "--mine")
    assert (status, "is yours to rewrite" in out) == (0, True)
    file = folder / "volatile.py"
    assert "from torch.autograd import Variable\n\n\ndef new(weight: Tensor, x: Tensor)" in file.read_text()
    assert "given" not in file.read_text()
    file.write_text("mine")
    status, out, _ = launch(monkeypatch, capsys, "volatile", "--mine")
    assert (status, file.read_text()) == (0, "mine")
    launch(monkeypatch, capsys, "volatile", "--mine", "--reset")
    assert "Variable" in file.read_text()
    assert file.with_suffix(".py.old").read_text() == "mine"
    status, _, err = launch(monkeypatch, capsys, "byte_mask", "--check")
    assert (status, "just since byte_mask --mine writes it" in err) == (2, True)
    assert [(event["drill"], event["event"]) for event in attempts.events()] == [("rewrite:volatile", "start")] * 2
    launch(monkeypatch, capsys, "volatile", "--check")
    assert [event.get("passed") for event in attempts.events()] == [None, None, False]


WRONG = [
    ("byte_mask", "def new(x, mask):", "def new(x, mask:", "line"),
    ("byte_mask", "x[mask]", "x[mask.byte()]", "this is the old way: .byte("),
    ("byte_mask", "x[mask]", "x[~mask]", "not the result that is wanted"),
    ("byte_mask", "x[mask]", "x[mask.to(torch.long) > 5 or 1 / 0]", "it raises RuntimeError"),
    ("byte_mask", "x[mask]", "x[mask.view(getattr(torch, 'uin' + 't8'))]", "it warns"),
    ("byte_mask", "import torch", "import warnings, torch", "this hides warnings"),
    ("byte_mask", "def new", "def now", "has no function `new`"),
    ("byte_mask", "return", "while True: pass\n    return", "a loop that does not end"),
]


@pytest.mark.parametrize(("name", "part", "by", "said"), WRONG, ids=lambda text: None)
def test_a_wrong_rewrite_is_told_why(tmp_path, name, part, by, said):
    text = "import torch\n\n\ndef new(x, mask):\n    return x[mask].sum()\n"
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert grade.grade(name, file) == []
    file.write_text(text.replace(part, by))
    lines = grade.grade(name, file, seconds=0.5)
    assert said in "\n".join(lines)


OTHERS = [
    ("volatile", "with torch.no_grad():", "with torch.inference_mode():"),
    ("data_attribute", "y.detach() * 100", "y.detach().clone().mul_(100)"),
    ("integer_division", "index // width", 'torch.div(index, width, rounding_mode="floor")'),
    ("transpose", "batch.mT", "batch.transpose(1, 2)"),
    ("zero_grad", "optimizer.zero_grad()", "used.grad = head.grad = None"),
    ("rfft", "torch.fft.rfft(x).abs().square()", "torch.view_as_real(torch.fft.rfft(x)).square().sum(-1)"),
    ("pretrained", "weights=None, ", ""),
    ("whole_model", "torch.load(file)", "torch.load(file, weights_only=True)"),
    ("upsample", 'mode="bilinear"', 'mode="bilinear", align_corners=False'),
]


@pytest.mark.parametrize(("name", "ours", "other"), OTHERS, ids=[name for name, *_ in OTHERS])
def test_another_right_rewrite_passes(tmp_path, name, ours, other):
    text = rewrite.solution(name)
    assert ours in text
    file = tmp_path / "mine.py"
    file.write_text(text.replace(ours, other).replace("from torch", "import torch\nfrom torch", 1))
    assert grade.grade(name, file) == []


def test_a_rewrite_that_still_costs_as_much_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch.nn.functional as F\n\n\ndef new(q, k, v):\n"
        "    e = (q @ k.mT / 4).exp()\n    return e / e.sum(-1, keepdim=True) @ v\n"
    )
    [said] = grade.grade("attention_by_hand", file)
    assert "the result is right, but it costs" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"), [("return x[mask].sum()", ""), ("import os; os._exit(3)", "ended with status 3")]
)
def test_the_grade_is_a_process_of_its_own(tmp_path, line, said):
    file = tmp_path / "mine.py"
    file.write_text(f"def new(x, mask):\n    {line}\n")
    lines = rewrite.grade("byte_mask", file)
    assert said in "".join(lines) if said else lines == []


@pytest.mark.slow
def test_all_of_them_hold(monkeypatch, capsys, tmp_path):
    status, out, _ = launch(monkeypatch, capsys, "--all", "--out", str(tmp_path))
    assert status == 0
    assert f"{len(pairs())} of {len(pairs())} hold" in out
