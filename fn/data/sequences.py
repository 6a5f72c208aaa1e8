"""Sequences of tokens: the problems of four toy tasks, and text, character by character.

An example is (inputs, targets): the target at a position is the token that follows it.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from fn.domains import Count, Integer
from fn.files import decode_text, read_bytes

IGNORED = -100
"""the target where nothing is asked: cross-entropy's ignore_index"""
TOY_VOCABULARY = "0123456789+="


class Sequences(NamedTuple):
    inputs: Int[Tensor, "examples seq"]
    targets: Int[Tensor, "examples seq"]

    def part(self, which: slice) -> "Sequences":
        return Sequences(self.inputs[which], self.targets[which])


class Toy(NamedTuple):
    """A problem is a string of digits; `question` writes it down, `answer` solves it."""

    digits: Count
    question: Callable[[str], str]
    answer: Callable[[str], str]


def _sum(digits: str) -> str:
    """Return the sum of two numbers of two digits, the ones first, as one adds on paper: "4758" -> "501"."""
    return f"{int(digits[:2]) + int(digits[2:]):03d}"[::-1]


TOYS = {
    "reverse": Toy(10, lambda d: d + "=", lambda d: d[::-1]),
    "copy": Toy(10, lambda d: d + "=", lambda d: d),
    "sort": Toy(6, lambda d: d + "=", lambda d: "".join(sorted(d))),
    "add": Toy(4, lambda d: f"{d[:2]}+{d[2:]}=", _sum),
}


def toy_examples(toy: Toy, examples: Count, *, seed: Integer) -> Sequences:
    """Return `examples` different problems in random order: question and answer as inputs, the answer alone as targets.

    ValueError if the task has fewer.

    >>> inputs, targets = toy_examples(TOYS["add"], 2, seed=0)
    >>> decode(inputs[0], TOY_VOCABULARY)
    '63+11=47'
    >>> targets[0].tolist()
    [-100, -100, -100, -100, -100, 4, 7, 0]
    """
    possible = 10**toy.digits
    if examples > possible:
        raise ValueError(f"toy_examples: there are {possible} problems of {toy.digits} digits, not {examples}")
    problems = [f"{n:0{toy.digits}d}" for n in random.Random(seed).sample(range(possible), examples)]
    asked = len(toy.question(problems[0]))
    written = "".join(toy.question(d) + toy.answer(d) for d in problems)
    tokens = encode(written, TOY_VOCABULARY).reshape(examples, -1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[:, : asked - 1] = IGNORED
    return Sequences(inputs, targets)


def encode(text: str, vocabulary: str) -> Int64[Tensor, " seq"]:
    """Return a token per character, its place in the vocabulary; ValueError names the characters that are not in it.

    >>> encode("12+3=", TOY_VOCABULARY)
    tensor([ 1,  2, 10,  3, 11])
    """
    place = {character: i for i, character in enumerate(vocabulary)}
    if strangers := sorted(set(text) - set(vocabulary)):
        raise ValueError(f"not in the vocabulary: {' '.join(map(repr, strangers))}")
    return torch.tensor([place[character] for character in text], dtype=torch.int64)


def decode(tokens: Int[Tensor, " seq"], vocabulary: str) -> str:
    """Return the text of tokens: the inverse of `encode`."""
    return "".join(vocabulary[token] for token in tokens.tolist())


def read_text(path: Path | None = None) -> str:
    """Return the text of a file, see `fn.files.decode_text`; without a path, one of CPython's: the topics of `help()`.

    ValueError, in one line, for a file that is missing, empty, or no text.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n".join(topics[name] for name in sorted(topics))
    try:
        text = decode_text(read_bytes(path, "text"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from None
    if not text:
        raise ValueError(f"{path} is empty")
    return text


def next_characters(tokens: Int64[Tensor, " length"], seq: Count) -> Sequences:
    """Return every stretch of `seq` tokens, and as targets the token after each; both are views of the text.

    ValueError for a text of fewer than `seq` + 1 tokens.

    >>> next_characters(torch.arange(4), 2)
    Sequences(inputs=tensor([[0, 1],
            [1, 2]]), targets=tensor([[1, 2],
            [2, 3]]))
    """
    if len(tokens) <= seq:
        raise ValueError(f"a text of {len(tokens)} characters has no stretch of {seq} and one that follows")
    return Sequences(tokens[:-1].unfold(0, seq, 1), tokens[1:].unfold(0, seq, 1))
