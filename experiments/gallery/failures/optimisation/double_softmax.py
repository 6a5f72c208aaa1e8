"""Cross-entropy wants logits, and is given probabilities

Expect: The model ends in softmax; the loss is cross_entropy. How low can
the loss go with ten classes?

Cause: Probabilities lie between 0 and 1, and softmax of them is nearly
flat: the best that a right answer can get is e/(e + 9) = 0.23, a loss of
1.46. Gradients shrink with it.

Find: A loss that flattens out near -log(e / (e + classes - 1)), though
the answers are right.

Fix: End the model in logits. Softmax belongs to the reader of the result.

Checks: blind: probabilities and logits are both "batch classes".
"""

from experiments.gallery.failures import Seen
from experiments.gallery.failures.toys import (
    descend,
    digits,
    mlp,
    perceptron,
)
from fn.layers import softmax
from fn.losses import cross_entropy
from fn.metrics import accuracy


def broken(seed: int) -> Seen:
    x, y = digits()[0]
    params, losses = descend(
        lambda p: cross_entropy(softmax(mlp(p, x), dim=1), y),
        perceptron(seed),
        lr=1,
        steps=150,
    )
    return {
        "loss": losses,
        "accuracy": accuracy(mlp(params, x), y).item(),
    }


def fixed(seed: int) -> Seen:
    x, y = digits()[0]
    params, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y),
        perceptron(seed),
        lr=1,
        steps=150,
    )
    return {
        "loss": losses,
        "accuracy": accuracy(mlp(params, x), y).item(),
    }


def shows(seen: Seen) -> bool:
    """Most answers are right, but with ten classes the loss never
    comes below 1.46."""
    return seen["accuracy"] > 0.7 and seen["loss"][-1] > 1.46


def solves(seen: Seen) -> bool:
    """Learn to read the digits trained on, to a loss below 0.5."""
    return seen["accuracy"] > 0.8 and seen["loss"][-1] < 0.5
