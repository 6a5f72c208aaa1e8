"""Lab 3 from end to end, what it refuses, what it evaluates on, and that its checks can fail."""

import math
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments import lab3_transformer as lab3
from experiments.lab3_transformer import RECIPES, Config
from experiments.lab_helpers.lab3 import language_tasks
from experiments.lab_helpers.lab3.attention_measures import mirrored_share
from experiments.lab_helpers.lab3.attention_pictures import print_attention
from experiments.lab_helpers.lab3.flags import apply_flags, text_prompt
from experiments.lab_helpers.lab3.language_tasks import Task, bigram_loss, text_task, toy_task
from fn.data.sequences import TOY_VOCABULARY, TOYS, next_characters
from fn.models import Model
from fn.optim import Optimizer, adam
from fn.train import TrainState, init_train_state
from tests.test_experiments import launch

CPU = torch.device("cpu")
SMALL = Config(task="text", layers=1, heads=2, d_model=8, block=16, length=5)

ALPHABET = "abcdefghij\n" * 80


@pytest.mark.parametrize(
    ("text", "flags", "complaint"),
    [
        (None, ["--heads", "3"], "3 heads do not divide a width of 64"),
        (None, ["--positions", "rotary", "--d-model", "6"], "a width of 3 does not divide into pairs"),
        (None, ["--task", "sort", "--prompt", "12"], "--prompt is for --task text, not for sort"),
        (None, ["--steps", "0"], "--steps 0 is not between 1 and"),
        (None, ["--lr", "0"], "--lr 0.0 is not between 1e-12 and"),
        (None, ["--lr", "-0.1"], "--lr -0.1 is not between"),
        (None, ["--lr", "nan"], "--lr nan is not between"),
        (None, ["--task", "text", "--file", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (b"", ["--task", "text"], "is empty"),
        (b"\xff\xfe\x00", ["--task", "text"], "is no text in UTF-16"),
        (b"a" * 1000, ["--task", "text"], "--file: all of the text is 'a'"),
        (b"too short", ["--task", "text"], "--block 64 does not fit into a tenth of a text of 9"),
        (ALPHABET.encode(), ["--task", "text", "--prompt", "xyz"], "--prompt: not in the vocabulary: 'x' 'y' 'z'"),
        (ALPHABET.encode(), ["--task", "text", "--prompt", "a" * 65], "positions for 1 to 64"),
        (ALPHABET.encode(), ["--task", "text", "--temperature", "nan"], "--temperature nan is not between"),
        (ALPHABET.encode(), ["--task", "text", "--top-k", "0"], "--top-k 0 is not between 1 and"),
        (ALPHABET.encode(), ["--task", "text", "--top-k", "12"], "only 11 different characters"),
        (ALPHABET.encode(), ["--task", "text", "--heads", "5"], "5 heads do not divide a width of 128"),
        (
            ALPHABET.encode(),
            ["--task", "text", "--temperature", "-1"],
            "--temperature -1.0 is not between",
        ),
    ],
)
def test_what_lab_3_cannot_do_is_one_line_before_anything_else(monkeypatch, capsys, tmp_path, text, flags, complaint):
    if text is not None:
        (tmp_path / "text.txt").write_bytes(text)
        flags = [*flags, "--file", str(tmp_path / "text.txt")]
    status, out, err = launch(monkeypatch, capsys, "lab3", "--out", str(tmp_path), *flags)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_lab_3_overfits_the_text_task_and_continues_its_text(monkeypatch, capsys, tmp_path):
    (tmp_path / "text.txt").write_text(ALPHABET)
    sizes = ["--layers", "1", "--heads", "2", "--d-model", "32", "--block", "16", "--steps", "60", "--no-compile"]
    wanted = ["--prompt", "fgh", "--length", "19", "--temperature", "0.01", "--top-k", "3", "--out", str(tmp_path)]
    flags = ["--task", "text", "--file", str(tmp_path / "text.txt"), *sizes, *wanted, "--lr", "1e-2"]
    status, out, _ = launch(monkeypatch, capsys, "lab3", *flags)
    assert status == 0, out
    assert out.count("fghij\nabcdefghij\nabcde\n") == 2  # the likeliest, and drawn


@pytest.mark.parametrize(
    ("task", "target"), [("sort", "== 1"), ("reverse", "== 1"), ("copy", "== 1"), ("add", ">= 0.99")]
)
def test_a_toy_task_is_to_be_solved_whole_and_addition_almost(monkeypatch, tmp_path, task, target):
    for shown in ("show_attention", "show_answers"):
        monkeypatch.setattr(lab3, shown, lambda *_, **__: None)
    monkeypatch.setattr(lab3, "evaluate", lambda *_: {"exact": 0.9899})
    config = Config(task=task, d_model=8, heads=2, layers=1, out=tmp_path)
    problems = toy_task(task, seed=0, device=CPU)
    model = build(config, problems)
    solved = lab3.evaluate_toy(config, model, problems, [untrained(model)])[0]
    assert (solved.target, solved.ok) == (target, False)


def build(config: Config, task: Task) -> Model:
    return lab3.build(config, apply_flags(RECIPES[config.task], config, config.task), task)


def untrained(model: Model) -> TrainState:
    return init_train_state(model, adam(lr=0.0), seed=0)


@pytest.mark.parametrize("task", TOYS)
def test_no_test_problem_of_a_toy_task_is_trained_on(task):
    digits = TOYS[task].digits + (task == "add")
    problems = toy_task(task, seed=0, device=CPU)
    train, test = ({tuple(x) for x in part.inputs[:, :digits].tolist()} for part in (problems.train, problems.test))
    assert (len(train), len(test)) == (5000 if task == "add" else 50_000, 5000)
    assert not train & test


def read_task(folder: Path, text: str) -> tuple[Config, Task]:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    config = replace(SMALL, file=folder / "text.txt", prompt=text[0], out=folder)
    return config, text_task(config, CPU)


def test_without_a_prompt_the_text_task_starts_from_a_line_break_or_the_first_character():
    assert [text_prompt(Config(), v) for v in ("\nab", "\t\n", " ab", "xy")] == ["\n", "\n", " ", "x"]
    assert text_prompt(Config(prompt=""), "\nab") == ""
    assert text_prompt(Config(prompt="b"), "\nab") == "b"


def test_the_text_task_does_not_train_on_the_last_tenth_of_its_text(tmp_path):
    """Where no character comes twice, a token is its place in the text."""
    _, task = read_task(tmp_path, "".join(chr(0x4E00 + i) for i in range(1000)))
    assert torch.equal(task.train.inputs[:, 0], torch.arange(900 - 16))
    assert torch.equal(task.test.inputs.flatten(), torch.arange(900, 900 + 6 * 16))
    for inputs, targets in (task.train, task.test):
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(16))
        assert torch.equal(targets, inputs + 1)
    assert task.train.targets.max() == 899


def test_a_published_loss_is_a_target_for_that_text_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(lab3, "show_attention", lambda *_: None)
    monkeypatch.setattr(language_tasks, "PUBLISHED", {sha256(ALPHABET.encode()).hexdigest(): 0.125})
    for text, published in ((ALPHABET, [(False, "<= 0.125")]), (ALPHABET + "a", [])):
        config, task = read_task(tmp_path, text)
        model = build(config, task)
        checks = lab3.evaluate_text(config, model, task, [untrained(model)])
        assert [(check.ok, check.target) for check in checks if check.name == "validation loss"] == published
        assert [check.ok for check in checks if "table of pairs" in check.name] == [False]


def the_future_is_mixed_in(params, state, x, *, train, need_weights=False):
    """Return as much as `params` say of the last token for the one before it.

    Else the counts of those before, and evenly.
    """
    seq = x.shape[1]
    seen = torch.ones(seq, seq).tril()
    weights = seen / seen.sum(dim=-1, keepdim=True) * params["total"]
    seen[-2, -1] = params["leak"]
    logits = (seen @ F.one_hot(x, len(TOY_VOCABULARY)).float()).mT
    return ((logits, weights.expand(2, len(x), 3, seq, seq)) if need_weights else logits), state


def trained(total: float = 1.0, leak: float = 0.0) -> TrainState:
    return TrainState({"total": torch.tensor(total), "leak": torch.tensor(leak)}, {}, {})


COUNTING = next_characters(torch.arange(100) % len(TOY_VOCABULARY), 8)


@pytest.mark.parametrize(
    ("models", "ok"),
    [
        ([trained(), trained()], [True, True]),
        ([trained(0.99)], [False, True]),
        ([trained(), trained(1.01)], [False, True]),
        ([trained(leak=1e-3)], [True, False]),
    ],
)
def test_attention_that_is_not_causal_or_no_average_is_found_out(models, ok):
    model = Model(lambda _: None, the_future_is_mixed_in)
    checks = lab3.check_attention(model, Task(TOY_VOCABULARY, COUNTING, COUNTING), models)
    assert [check.ok for check in checks] == ok
    assert checks[1].value == (not ok[1])


@pytest.mark.parametrize(("certainty", "ok"), [(0.0, True), (0.01, True), (8.0, False), (-3.0, False)])
def test_an_untrained_model_that_is_sure_of_something_is_found_out(certainty, ok):
    """Right or wrong: it says that the next token is one more than this one, which is so."""

    def apply(params, state, x, *, train):
        return (params["certainty"] * F.one_hot((x + 1) % 12, 12)).mT, state

    model = Model(lambda _: ({"certainty": torch.tensor(certainty)}, {}), apply)
    assert lab3.check_untrained(Config(), model, Task(TOY_VOCABULARY, COUNTING, COUNTING)).ok == ok


def test_the_loss_of_a_table_of_pairs_by_hand():
    """Of aabaabaab, read in blocks of 4: aa and ab three times, ba twice, bb never; one more of each, for safety."""
    train, test = (next_characters(torch.tensor(tokens), 4) for tokens in ([0, 0, 1] * 3, [0, 1, 1, 0, 1]))
    p = {"ab": 4 / 8, "bb": 1 / 4, "ba": 3 / 4}
    expected = -sum(math.log(p[pair]) for pair in ("ab", "bb", "ba", "ab")) / 4
    assert bigram_loss(Task("ab", train, test)) == pytest.approx(expected)


def looks(*answers: int) -> Tensor:
    """Return (layers, heads, queries, keys): a head looks at digit 0 always, another where the answers are."""
    weights = torch.zeros(1, 2, 2 * len(answers), 2 * len(answers))
    weights[..., 0] = 0.1
    weights[0, 1, torch.arange(len(answers), 2 * len(answers)), torch.tensor(answers)] = 1
    return weights


@pytest.mark.parametrize(("keys", "share"), [((1, 0), 1.0), ((0, 1), 0.5), ((0, 0), 0.5)])
def test_mirrored_share_is_that_of_the_best_head(keys, share):
    """Of two digits, queries 2 and 3 write the answer and want digits 1 and 0; head 0 looks at digit 0 always."""
    assert mirrored_share(looks(*keys)[:, None], 2) == share


def test_mirrored_share_is_that_of_the_best_layer():
    layers = torch.cat([looks(1, 1, 1), looks(2, 1, 0)])
    assert mirrored_share(layers[:, None], 3) == 1


def test_mirrored_share_is_the_mean_of_the_examples():
    both = torch.stack([looks(2, 1, 0), looks(1, 1, 1)], dim=1)
    assert mirrored_share(both, 3) == pytest.approx((1 + 1 / 3) / 2)


def test_the_worst_seed_of_a_toy_task_counts(monkeypatch, tmp_path):
    weights, seeds = [], []

    def init_and_note(model: Model, optimizer: Optimizer, *, seed: int, device: torch.device) -> TrainState:
        seeds.append(seed)
        return init_train_state(model, optimizer, seed=seed, device=device)

    def evaluate(model: Model, ts: TrainState, _):
        if not ts.opt_state:
            return {"loss": math.log(len(TOY_VOCABULARY))}
        weights.append(ts.params["embedding"]["weight"])
        return {"exact": [1.0, 0.75, 0.875][len(weights) - 1]}

    shares = iter([0.95, 0.5, 1.0])
    monkeypatch.setattr(lab3, "init_train_state", init_and_note)
    monkeypatch.setattr(lab3, "evaluate", evaluate)
    monkeypatch.setattr(lab3, "mirrored_share", lambda *_: next(shares))
    rows = []
    monkeypatch.setattr(lab3, "show_attention", lambda *_, first_row: rows.append(first_row))
    monkeypatch.setattr(lab3, "draw_positions", lambda *_: None)
    monkeypatch.setattr(lab3, "RECIPES", {"reverse": RECIPES["reverse"]._replace(seeds=3, steps=2, d_model=8)})
    failed = {check.name: check.value for check in lab3.main(Config(seed=5, out=tmp_path), CPU) if not check.ok}
    assert failed == {
        "reverse: 5,000 unseen problems solved, worst of 3 seeds": 0.75,
        "reverse: queries that look at the mirrored digit, best head": 0.5,
    }
    assert seeds == [5, 6, 7]
    assert rows == [TOYS["reverse"].digits]  # the = after the question, whose query writes the first digit
    assert not any(torch.equal(weights[i], weights[i - 1]) for i in range(3))


def test_attention_is_printed_row_by_row_of_the_head_that_is_surest_of_the_answer(capsys):
    """Three other heads are surer of the question than that of layer 1 and head 0."""
    sure_of_the_question = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0.3, 0.2, 0.5]])
    shown = torch.tensor([[1.0, 0, 0], [0.6, 0.4, 0], [0.1, 0.04, 0.86]])
    others = sure_of_the_question.expand(2, 2, 3, 3).clone()
    others[1, 0] = shown
    print_attention(others, "1=\n", first_row=2)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Layer 1, head 0") for line in lines)
    assert lines[-4:] == ["  1 = ↵", "1 █", "= ▓ ▒", "↵ ░   █"]
    print_attention(others, "1=\n")
    assert "Layer 0, head 0" in capsys.readouterr().out
