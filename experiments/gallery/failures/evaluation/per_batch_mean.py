"""A short last batch counts as much as a full one

Expect: 359 held-out digits in batches of 100. The accuracies of the four
batches are averaged. How much does an image of the last one count?

Cause: The last batch holds 59 images, and its accuracy has the same weight
as the others: one of its images counts as much as 1.7
of theirs.

Find: accuracy × examples must be a whole number.

Fix: Sum what is right, count the examples, divide once
(fn.metrics.mean_per_example).

Checks: blind: a mean of means is a number.
"""

from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import (
    descend,
    digits,
    mlp,
    perceptron,
)
from fn.data.loader import batches
from fn.losses import cross_entropy
from fn.metrics import accuracy, add_examples, mean_per_example


def broken(seed: int) -> Seen:
    (x, y), test = digits()
    params, _ = descend(
        lambda p: cross_entropy(mlp(p, x), y), perceptron(seed), lr=0.3
    )
    scores = [
        accuracy(mlp(params, x), y).item() for x, y in batches(test, 100)
    ]
    score = sum(scores) / len(scores)
    return {"accuracy, held out": score, "right, of 359": 359 * score}


def fixed(seed: int) -> Seen:
    (x, y), test = digits()
    params, _ = descend(
        lambda p: cross_entropy(mlp(p, x), y), perceptron(seed), lr=0.3
    )
    totals = {}
    for x, y in batches(test, 100):
        right = {"accuracy": accuracy(mlp(params, x), y).item()}
        totals = add_examples(totals, right, len(y))
    score = mean_per_example(totals)["accuracy"]
    return {"accuracy, held out": score, "right, of 359": 359 * score}


def shows(seen: Seen) -> bool:
    """The accuracy is one that no count of right answers can give: times
    the number of examples it is no whole number."""
    right = seen["right, of 359"]
    return abs(right - round(right)) > 1e-3


def solves(seen: Seen) -> bool:
    """Tell which share of 359 held-out digits is read, batch by batch."""
    right, score = seen["right, of 359"], seen["accuracy, held out"]
    return abs(right - round(right)) < 1e-3 and score > 0.7
