"""--predict: what is asked, what is shown when, what is kept, and what is said of it."""

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.shared import attempts, checks, cli, predictions, show
from experiments.shared.predictions import Prediction, Ranking


@dataclass(frozen=True)
class Config(cli.Lab):
    out: Path = Path("runs/lab9")


def main(config: Config, device: Any) -> list[cli.Check]:
    show.table("Errors", ("of", "value"), [("first", "0.1234")])
    first = cli.check("first error", 0.1234, "<=", 0.2)
    with show.progress(1, "training") as advance:
        advance(0.7777)
    show.log.print("the log says 5678")
    show.console.print("steps: 5678")
    return [first, cli.check("steps", 5678, ">=", 6000), cli.check("never wrong", 0, "==", 0)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Reader:
    """Types the answers; keeps what stood on the terminal at each question."""

    def __init__(self, monkeypatch, *answers: str) -> None:
        self.answers, self.seen, self.asked = list(answers), [], []
        self.screen = Terminal()
        monkeypatch.setattr("builtins.input", self.type)
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr(sys, "stdout", self.screen)

    def type(self, prompt: str) -> str:
        self.asked.append(prompt)
        self.seen.append(self.screen.getvalue())
        if not self.answers:
            raise EOFError
        return self.answers.pop(0)


@pytest.fixture(autouse=True)
def _own_files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(show.console, "width", 100)


def orders(config: Config, device: Any) -> list[cli.Check]:
    cli.order("seconds of each", {"slow": 0.5, "fast": 0.1, "medium": 0.25})
    show.table("Seconds", ("of", "value"), [("slow", "0.5")])
    return [cli.check("slow", 0.5, "<=", 1)]


def run(monkeypatch, out: Path, *flags: str, main: Any = main) -> int:
    monkeypatch.setattr(sys, "argv", ["lab9", "--out", str(out), *flags])
    monkeypatch.setattr(cli, "pick_device", lambda _: None)
    with pytest.raises(SystemExit) as stop:
        cli.run(Config, main)
    return int(stop.value.code or 0)


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def test_a_value_is_told_after_the_question_and_by_nothing_before(monkeypatch, tmp_path, capsys):
    reader = Reader(monkeypatch, "0.25", "7000", "0")
    assert run(monkeypatch, tmp_path, "--predict") == 1
    first, second, third = reader.seen
    assert [prompt.strip("? ") for prompt in reader.asked] == ["first error", "steps", "never wrong"]
    assert "1234" not in first
    assert "Type a number such as" in first
    assert "measured 0.1234 (target <= 0.2): off by a factor 2.03, on the wrong side of the target" in second
    assert "Errors" in second  # the table about the first goes out before the second is asked
    assert "5678" not in second
    assert "measured 5678 (target >= 6000): off by a factor 1.23, on the wrong side" in third
    whole = reader.screen.getvalue()
    assert "measured 0 (target == 0): exactly yours, on the right side" in whole
    assert whole.index("steps: 5678") > whole.index("measured 5678")
    assert "0.7777" not in whole
    assert capsys.readouterr().err == "training: step 1 of 1, loss 0.7777\nthe log says 5678\n"


def test_yours_stands_beside_the_measured_value_and_is_kept(monkeypatch, tmp_path):
    reader = Reader(monkeypatch, "10%", "", "0")
    run(monkeypatch, tmp_path, "--predict")
    rows = [line.split() for line in reader.screen.getvalue().splitlines()]
    assert ["check", "yours", "measured", "target"] in rows
    assert ["first", "error", "0.1", "0.1234", "<=", "0.2", "ok"] in rows
    assert ["steps", "-", "5678", ">=", "6000", "FAILED"] in rows
    answers = [Prediction("first error", 0.1, 0.1234, "<= 0.2"), Prediction("never wrong", 0.0, 0, "== 0")]
    assert summary(tmp_path)["predictions"] == [answer._asdict() for answer in answers]
    assert predictions.past() == answers
    [event, _] = attempts.events()
    assert event.items() >= {"event": "predict", "lab": "lab9", "claim": "first error", "predicted": 0.1}.items()
    said = " ".join(reader.screen.getvalue().split())
    assert "Your predictions so far, 2: off by a factor 1.23, the median of 1; off by 0, the median of 1" in said
    assert "100% on the right side of the target" in said


def test_what_is_no_number_is_asked_again_and_q_stops(monkeypatch, tmp_path):
    reader = Reader(monkeypatch, "many", "nan", "1e999", "0.1", "q")
    run(monkeypatch, tmp_path, "--predict")
    assert [prompt.strip("? ") for prompt in reader.asked] == ["first error"] * 4 + ["steps"]
    assert reader.screen.getvalue().count("97% or 1e-5; Enter skips") == 4
    assert len(summary(tmp_path)["predictions"]) == 1


def test_an_order_is_asked_for_by_letters(monkeypatch, tmp_path):
    reader = Reader(monkeypatch, "a b", "a b b", "b a c", "0.5")
    assert run(monkeypatch, tmp_path, "--predict", main=orders) == 0
    assert [prompt.strip("? ") for prompt in reader.asked] == ["order"] * 3 + ["slow"]
    before, whole = reader.seen[0], reader.screen.getvalue()
    assert "seconds of each, from the least to the greatest?\n  a  fast\n  b  medium\n  c  slow\n" in before
    assert "Seconds\n" not in before
    assert whole.count("each letter once, such as c b a; Enter skips") == 2
    assert "measured fast < medium < slow: 2 of 3 pairs in the right order" in whole
    answer = Ranking("seconds of each", ["medium", "fast", "slow"], ["fast", "medium", "slow"])
    assert summary(tmp_path)["predictions"][0] == answer._asdict()
    assert predictions.past()[0] == answer
    assert "; 2 of 3 pairs in the right order." in " ".join(whole.split())


def test_the_end_of_input_stops_too(monkeypatch, tmp_path):
    reader = Reader(monkeypatch)
    assert run(monkeypatch, tmp_path, "--predict") == 1
    assert len(reader.asked) == 1
    assert "0.1234" in reader.screen.getvalue()
    assert summary(tmp_path)["predictions"] == []
    assert not attempts.file().exists()


def test_what_waits_is_shown_when_a_run_is_interrupted_and_nobody_is_asked_afterwards(monkeypatch, tmp_path, capsys):
    reader = Reader(monkeypatch)
    monkeypatch.setattr("builtins.input", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(monkeypatch, tmp_path, "--predict") == 130
    assert "Errors" in reader.screen.getvalue()
    assert (checks.before_shown, show.bars_on) == ([], None)
    assert capsys.readouterr().err == "error: interrupted\n"


def test_thinking_takes_no_time_of_the_lab(monkeypatch, tmp_path):
    Reader(monkeypatch, "1", "1", "1")
    now = iter(range(0, 10**6, 10))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    run(monkeypatch, tmp_path, "--predict")
    asked = summary(tmp_path)["seconds"]
    now = iter(range(0, 10**6, 10))
    run(monkeypatch, tmp_path)
    assert asked == summary(tmp_path)["seconds"] + 30  # six readings of the clock, of which each pair is taken off


def test_without_the_flag_nothing_asks(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    assert run(monkeypatch, tmp_path) == 1
    assert ["check", "value", "target"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert summary(tmp_path).keys().isdisjoint({"predictions", "mine"})
    assert not attempts.file().exists()


def test_in_a_pipe_it_is_refused_in_a_line(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, tmp_path, "--predict") == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: --predict asks on a terminal, which a pipe or a file is not\n")


# What is said of all of them.


@pytest.mark.parametrize(
    ("predicted", "measured", "target", "factor", "right"),
    [
        (0.5, 0.25, ">= 0.3", 2.0, False),
        (2.0, 1.0, "<= 3", 2.0, True),
        (0.0, 1.0, "== 0", None, False),
        (-1.0, 1.0, "> 0", None, False),
        (1e-3, 1e-6, "< 1e-05", pytest.approx(1000), False),
        (1.0, float("inf"), "<= 300", None, False),
    ],
)
def test_how_far_off_one_is(predicted, measured, target, factor, right):
    answer = Prediction("", predicted, measured, target)
    assert predictions.factor_of(answer) == factor
    assert predictions.right_side(answer) == right


def test_how_far_off_they_tend_to_be():
    answers = [Prediction("", p, 1.0, ">= 2") for p in (2.0, 4.0, 0.125)] + [Prediction("", 0.5, 0.0, "== 0")]
    said = predictions.record_of(answers)
    assert said == (
        "Your predictions so far, 4: off by a factor 4, the median of 3; off by 0.5, the median of 1 with a value of 0 "
        "or below; 25% on the right side of the target."
    )


def test_a_garbled_file_keeps_the_other_predictions(monkeypatch, tmp_path):
    Reader(monkeypatch, "0.1", "0.1", "0.1")
    run(monkeypatch, tmp_path, "--predict")
    whole = attempts.file().read_bytes()
    bad = [b'{"event": "predict", "at": 1}', b'{"event": "predict", "at": 1, "claim": 3, "predicted": "x"}', b"\xff{"]
    bad.append(b'{"event":"predict","at":1,"claim":"a","predicted":1,"measured":null,"target":"<= 1"}')
    bad.append(b'{"event":"predict","at":1,"claim":"a","predicted":1,"measured":2,"target":"about 1"}')
    bad.append(b'{"event":"predict","at":1,"claim":"a","predicted":["a"],"measured":["a","b"]}')
    attempts.file().write_bytes(b"\n".join([*bad, whole, *bad]) + b"\n" + whole[:50])
    assert [answer.claim for answer in predictions.past()] == ["first error", "steps", "never wrong"]
    attempts.record("relu", "start")
    assert attempts.standings().keys() == {"relu"}
