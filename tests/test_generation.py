"""Samples have the distribution of the logits, and each token is predicted from the right context."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.func import vmap

from fn.generation import generate, sample
from fn.rng import fold_in, key

LOGITS = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.2])
BY_RANK = [2, 4, 0, 3, 1]


def shares(draws: int, **options) -> torch.Tensor:
    """Return how often each class is drawn, under as many keys."""
    keys = fold_in(key(3).expand(draws), torch.arange(draws))
    return vmap(partial(sample, LOGITS, **options))(keys).bincount(minlength=len(LOGITS)) / draws


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_classes_are_drawn_as_often_as_they_are_likely(temperature, top_k):
    draws, kept = 20_000, BY_RANK[:top_k]
    expected = torch.zeros(len(LOGITS))
    expected[kept] = torch.softmax(LOGITS[kept] / temperature, dim=0)
    spread = (expected * (1 - expected) / draws).sqrt()
    assert ((shares(draws, temperature=temperature, top_k=top_k) - expected).abs() <= 5 * spread).all()


@pytest.mark.parametrize("k", range(1, 6))
def test_the_k_most_likely_are_drawn_and_no_others(k):
    assert shares(5000, top_k=k, temperature=3.0).nonzero().flatten().tolist() == sorted(BY_RANK[:k])


@pytest.mark.parametrize("top_k", [None, 1, 5])
def test_at_temperature_0_the_most_likely_is_drawn(top_k):
    assert shares(100, temperature=0.0, top_k=top_k).tolist() == [0, 0, 1, 0, 0]
    assert shares(100, temperature=1e-3, top_k=top_k).tolist() == [0, 0, 1, 0, 0]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="top_k 6 is more than 5 classes"):
        sample(LOGITS, key(0), top_k=6)


@pytest.mark.parametrize("logits", [[1.0, math.nan, 2.0], [1.0, math.inf], [-math.inf, -math.inf], [math.nan] * 3])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"temperature": math.inf}, {"top_k": 1}], ids=str)
def test_logits_that_are_no_distribution_are_refused(logits, options):
    """Each row too of those that are drawn from at once, where it holds a NaN or an infinity."""
    rows = torch.tensor(logits)
    with pytest.raises(ValueError, match="logits must not be NaN"):
        sample(rows, key(0), **options)
    if not rows.isneginf().all():
        rows = torch.stack([torch.zeros_like(rows), rows], dim=1)
        with pytest.raises(ValueError, match="logits must not be NaN"):
            vmap(partial(sample, **options), in_dims=(1, 0))(rows, key(0).expand(2))


@pytest.mark.parametrize("k", range(1, 6))
@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1.0, math.inf])
def test_of_equal_logits_the_first_are_kept(k, temperature):
    """As many as asked for: of [1, 3, 1, 3, 1] first the classes 1 and 3, then 0, 2 and 4."""
    logits, kept = torch.tensor([1.0, 3, 1, 3, 1]), [1, 3, 0, 2, 4][:k]
    keys = fold_in(key(3).expand(2000), torch.arange(2000))
    drawn = vmap(partial(sample, logits, top_k=k, temperature=temperature))(keys).unique().tolist()
    expected = {0.0: [1], 1e-3: sorted(kept[:2])}.get(temperature, sorted(kept))
    assert drawn == expected


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1.0, 1e30, math.inf])
def test_a_class_of_probability_0_is_never_drawn(temperature):
    logits = torch.tensor([-math.inf, 0.0, -math.inf])
    assert sample(logits, torch.tensor(34633691), temperature=temperature) == 1  # u is 0 there
    keys = fold_in(key(0).expand(2000), torch.arange(2000))
    assert (vmap(partial(sample, logits, temperature=temperature))(keys) == 1).all()


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-30])
def test_near_temperature_0_the_most_likely_is_drawn(temperature):
    assert shares(200, temperature=temperature).tolist() == [0, 0, 1, 0, 0]


def test_at_an_infinite_temperature_all_are_as_likely():
    assert (shares(20_000, temperature=math.inf) - 0.2).abs().max() < 5 * (0.2 * 0.8 / 20_000) ** 0.5


CLASSES = 20


class Counter:
    """A model to which the next number is likelier than the others, by `certainty`; it remembers what it saw."""

    def __init__(self, certainty: float) -> None:
        self.certainty = certainty
        self.seen: list[list[int]] = []

    def __call__(self, params, state, x, *, train):
        assert (params, state, train, torch.is_grad_enabled()) == ({"w": {}}, {"s": {}}, False, False)
        self.seen.extend(x.tolist())
        logits = self.certainty * torch.nn.functional.one_hot((x + 1) % CLASSES, CLASSES).float()
        return logits.mT, state


def write(model: Callable, prompt: list[int], **options) -> list[int]:
    options = {"key": key(1), "context": 3, **options}
    return generate({"w": {}}, {"s": {}}, torch.tensor(prompt, dtype=torch.int64), apply=model, **options).tolist()


@pytest.mark.parametrize("prompt", [[4], [7, 4], [0, 9, 4], [8, 2, 0, 9, 4]])
@pytest.mark.parametrize("context", [1, 3])
def test_each_token_follows_the_context_and_the_prompt_is_not_repeated(prompt, context):
    model = Counter(certainty=1.0)
    assert write(model, prompt, tokens=5, context=context, temperature=0.0) == [5, 6, 7, 8, 9]
    whole = [*prompt, 5, 6, 7, 8, 9]
    assert model.seen == [whole[:end][-context:] for end in range(len(prompt), len(whole))]
    assert write(model, prompt, tokens=0) == []


def test_each_token_is_drawn_under_a_key_of_its_own():
    """Where all are as likely, the noise alone decides."""
    written = write(Counter(certainty=0.0), [0, 1], tokens=30, temperature=0.7)
    assert written == [int(sample(torch.zeros(CLASSES), fold_in(key(1), t))) for t in range(30)]
    assert len(set(written)) > 10
    assert written != write(Counter(certainty=0.0), [0, 1], tokens=30, key=key(2))


def test_temperature_and_top_k_reach_the_draw():
    model = Counter(certainty=1.0)
    assert write(model, [4], tokens=5, top_k=1) == [5, 6, 7, 8, 9]
    assert write(model, [4], tokens=5, temperature=1e-3) == [5, 6, 7, 8, 9]
    assert write(model, [4], tokens=5) != [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("logits", "prompt", "options", "complaint"),
    [
        ([0.0, math.nan], [1], {}, "must not be NaN"),
        ([0.0, math.inf], [1], {}, r"must not be NaN, \+infinity"),
        ([-math.inf, -math.inf], [1], {}, "all -infinity"),
        ([0.0, 1.0], [], {}, "prompt is empty"),
    ],
)
def test_nothing_is_written_from_nonsense(logits, prompt, options, complaint):
    def apply(params, state, x, *, train):
        return torch.tensor(logits).repeat(1, x.shape[1], 1).mT, state

    with pytest.raises(ValueError, match=complaint):
        write(apply, prompt, tokens=1, **options)
