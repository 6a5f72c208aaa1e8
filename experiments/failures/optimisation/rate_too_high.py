"""The rate is beyond 2 / curvature: every step overshoots

Expect: Gradient descent with a rate of 30. Where does the loss go?

Cause: A step of η along the gradient multiplies the distance to the
bottom of a valley of curvature λ by |1 - ηλ|. Above η = 2/λ that is more
than 1.

Find: The loss of the first steps: it rises, or jumps up and down, from
the very beginning. Try a tenth of the rate.

Fix: A lower rate, found by a sweep (just sweep); clipping, or a warm-up,
where only the first steps are steep.

Checks: blind: a rate is a number. That the loss is finite is checked by
fn.train.checked_step, which names the step where it is not.
"""

from experiments.failures import Seen
from experiments.failures.toys import descend, digits, mlp, perceptron
from fn.losses import cross_entropy


def broken(seed: int) -> Seen:
    x, y = digits()[0]
    _, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y), perceptron(seed), lr=30
    )
    return {"loss": losses}


def fixed(seed: int) -> Seen:
    x, y = digits()[0]
    _, losses = descend(
        lambda p: cross_entropy(mlp(p, x), y), perceptron(seed), lr=0.3
    )
    return {"loss": losses}


def shows(seen: Seen) -> bool:
    """The loss rises far above where it began within the first ten steps,
    and after a hundred it is still no lower."""
    first, *others = seen["loss"]
    return max(others[:10]) > 3 * first and others[-1] > 0.9 * first
