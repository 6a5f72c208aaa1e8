"""The tasks of Lab 3: toy problems, and a text. A text or a model that cannot be is a UsageError of one line."""

import hashlib
from typing import NamedTuple

import torch

from experiments.lab_helpers.lab3.flags import Flags, text_prompt
from experiments.shared import cli
from fn.data.sequences import (
    TOY_VOCABULARY,
    TOYS,
    Sequences,
    encode,
    next_characters,
    read_text,
    toy_examples,
)
from fn.models import Model
from fn.rng import generator

TOY_TRAIN, TOY_TEST = 50_000, 5000
PUBLISHED = {"86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed": 1.88}
"""validation loss of nanoGPT on tinyshakespeare after 2,000 steps on a CPU, by the text's SHA-256"""


class Task(NamedTuple):
    """Token sequences to train on, and others to evaluate on."""

    vocabulary: str
    train: Sequences
    test: Sequences
    published_loss: float | None = None
    """the validation loss that another project reports for this text"""


def toy_task(name: str, *, seed: int, device: torch.device) -> Task:
    """Return problems of the toy task of that name; no problem of `test` is in `train`."""
    toy = TOYS[name]
    examples = toy_examples(toy, min(TOY_TRAIN + TOY_TEST, 10**toy.digits), seed=seed)
    examples = Sequences(*(part.to(device) for part in examples))
    return Task(TOY_VOCABULARY, examples.part(slice(TOY_TEST, None)), examples.part(slice(TOY_TEST)))


def text_task(flags: Flags, device: torch.device) -> Task:
    """Return a text as token sequences: `train` from its first nine tenths, `test` the rest, block after block."""
    try:
        text = read_text(flags.file)
    except ValueError as error:
        raise cli.UsageError(f"--file {error}") from None
    vocabulary = "".join(sorted(set(text)))
    if len(vocabulary) < 2:
        raise cli.UsageError(f"--file: all of the text is {vocabulary!r}, and there is nothing to tell it from")
    _require_sampling(flags, vocabulary)
    tokens = encode(text, vocabulary).to(device)
    first, rest = tokens.tensor_split([len(tokens) * 9 // 10])
    if len(rest) <= flags.block:
        raise cli.UsageError(f"--block {flags.block} does not fit into a tenth of a text of {len(text)} characters")
    test = next_characters(rest, flags.block).part(slice(None, None, flags.block))
    published_loss = PUBLISHED.get(hashlib.sha256(text.encode()).hexdigest())
    return Task(vocabulary, next_characters(first, flags.block), test, published_loss)


def _require_sampling(flags: Flags, vocabulary: str) -> None:
    """Raise UsageError unless the model can go on from the prompt and draw from `top_k` characters."""
    try:
        prompt = encode(text_prompt(flags, vocabulary), vocabulary)
    except ValueError as error:
        raise cli.UsageError(f"--prompt: {error}, the characters of the text") from None
    if not 1 <= len(prompt) <= flags.block:
        raise cli.UsageError(f"--prompt has {len(prompt)} characters; the model has positions for 1 to {flags.block}")
    if flags.top_k and flags.top_k > len(vocabulary):
        raise cli.UsageError(f"--top-k {flags.top_k}: the text has only {len(vocabulary)} different characters")


def require_sizes(model: Model, task: Task) -> None:
    """Raise UsageError for a model whose sizes do not go together, such as heads that do not divide its width."""
    try:
        params, state = model.init(generator(0))
        model.apply(params, state, task.test.inputs[:1].cpu(), train=False)
    except ValueError as error:
        raise cli.UsageError(str(error)) from None


def bigram_loss(task: Task) -> float:
    """Return the loss of a model that knows how often each character follows each, and looks no further back."""
    classes, block = len(task.vocabulary), task.train.inputs.shape[1]
    pairs = [part.inputs * classes + part.targets for part in (task.train.part(slice(None, None, block)), task.test)]
    train, test = (pair.flatten().bincount(minlength=classes**2).reshape(classes, classes) for pair in pairs)
    p = (train + 1) / (train + 1).sum(dim=1, keepdim=True)
    return float(-(test * p.log()).sum() / test.sum())
