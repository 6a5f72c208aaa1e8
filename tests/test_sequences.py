"""Toy tasks beside an independent solution; text read and refused, batches of sequences."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fn.data.loader import batches, epoch_order
from fn.data.sequences import (
    IGNORED,
    TOY_VOCABULARY,
    TOYS,
    Sequences,
    decode,
    encode,
    next_characters,
    read_text,
    toy_examples,
)

each_toy = pytest.mark.parametrize("name", TOYS)


def solve(name: str, question: str) -> str:
    """Return the answer that a reader of the task finds, one digit at a time."""
    if name == "add":
        (a1, a0), (b1, b0) = (map(int, term) for term in question.split("+"))
        carry, ones = divmod(a0 + b0, 10)
        hundreds, tens = divmod(a1 + b1 + carry, 10)
        return f"{ones}{tens}{hundreds}"
    digits = list(question)
    if name == "sort":
        return "".join(str(d) * digits.count(str(d)) for d in range(10))
    return "".join(digits[-1 - i] if name == "reverse" else digits[i] for i in range(len(digits)))


@each_toy
def test_answers_are_right_and_they_alone_are_asked_for(name):
    lengths = {"reverse": (10, 10), "copy": (10, 10), "sort": (6, 6), "add": (5, 3)}
    inputs, targets = toy_examples(TOYS[name], 300, seed=0)
    assert inputs.shape == targets.shape
    for x, y in zip(inputs, targets, strict=True):
        written = decode(torch.cat([x, y[-1:]]), TOY_VOCABULARY)
        question, answer = written.split("=")
        assert (len(question), len(answer)) == lengths[name]
        assert answer == solve(name, question)
        asked = y != IGNORED
        assert asked.tolist() == [i >= len(question) for i in range(len(x))]  # the sign asks for the first
        assert decode(y[asked], TOY_VOCABULARY) == answer


@each_toy
def test_problems_are_distinct_and_a_function_of_the_seed(name):
    toy = TOYS[name]
    first, again, other = (toy_examples(toy, 500, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, other.inputs)
    assert len(first.inputs[:, : toy.digits + (name == "add")].unique(dim=0)) == 500


def test_all_sums_of_two_digits_and_no_more():
    inputs, _ = toy_examples(TOYS["add"], 10_000, seed=0)
    questions = {decode(x[:5], TOY_VOCABULARY) for x in inputs}
    assert questions == {f"{a:02d}+{b:02d}" for a in range(100) for b in range(100)}
    with pytest.raises(ValueError, match="there are 10000 problems of 4 digits, not 10001"):
        toy_examples(TOYS["add"], 10_001, seed=0)


def test_every_digit_is_as_likely_in_every_place():
    inputs, _ = toy_examples(TOYS["reverse"], 5000, seed=0)
    for place in range(10):
        counts = torch.bincount(inputs[:, place], minlength=10)
        assert len(counts) == 10
        assert ((counts - 500).abs() < 5 * 500**0.5).all()


@given(st.text(min_size=1), st.data())
@settings(max_examples=100)
def test_encode_and_decode_are_inverse(letters, data):
    vocabulary = "".join(dict.fromkeys(letters))
    text = data.draw(st.text(st.sampled_from(vocabulary)))
    tokens = encode(text, vocabulary)
    assert tokens.dtype == torch.int64
    assert decode(tokens, vocabulary) == text
    assert [vocabulary.index(c) for c in text] == tokens.tolist()


def test_strangers_are_named():
    with pytest.raises(ValueError, match=re.escape(r"not in the vocabulary: '\n' 'd' 'é'")):
        encode("dead é\n", "ae ")


def test_next_characters_are_views_of_one_text():
    tokens = torch.arange(100, 110)
    inputs, targets = next_characters(tokens, 4)
    assert inputs.tolist() == [[100 + i + j for j in range(4)] for i in range(6)]
    assert torch.equal(targets, inputs + 1)
    for part in (inputs, targets):
        assert part.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()


def test_a_text_too_short_is_refused():
    assert [part.tolist() for part in next_characters(torch.arange(5), 4)] == [[[0, 1, 2, 3]], [[1, 2, 3, 4]]]
    for length in (0, 3, 4):
        with pytest.raises(ValueError, match=f"a text of {length} characters has no stretch of 4 and one that follows"):
            next_characters(torch.arange(length), 4)


def test_text_is_read_as_it_stands(tmp_path):
    path = tmp_path / "text"
    path.write_text("déjà vu\n", encoding="utf-8")
    assert read_text(path) == "déjà vu\n"


def test_a_text_comes_with_python():
    text = read_text()
    assert text == read_text()
    assert len(text) > 300_000
    assert "lambda" in text


def test_what_is_no_text_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"PNG\xff\x00")
    for name, message in {
        "missing": "missing cannot be read: No such file or directory",
        "empty": "empty is empty",
        "binary": "binary is no text in UTF-8: byte 3 cannot be read",
        ".": "cannot be read: Is a directory",
    }.items():
        with pytest.raises(ValueError, match=message) as refusal:
            read_text(Path(tmp_path / name))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batches_of_sequences_keep_each_with_its_targets(workers):
    """Of overlapping views of a text, in the order of the epoch."""
    split = next_characters(torch.arange(20), 3)
    seen = list(batches(split, 5, seed=4, epoch=2, workers=workers))
    assert [len(x) for x, _ in seen] == [5, 5, 5, 2]
    assert all(torch.equal(y, x + 1) for x, y in seen)
    assert torch.equal(torch.cat([x for x, _ in seen])[:, 0], epoch_order(17, seed=4, epoch=2))
    for (x, y), (x_, y_) in zip(batches(Sequences(*split), 17), [split], strict=True):
        assert torch.equal(x, x_)
        assert torch.equal(y, y_)
