"""Small parts that many failures share: data, a network, a descent."""

from collections.abc import Callable
from functools import cache

from fn import tree
from fn.data import datasets
from fn.data.datasets import Split, take
from fn.models.mlp import mlp_apply, mlp_init
from fn.rng import generator
from fn.tree import Params
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.func import grad_and_value

Loss = Callable[[Params], Tensor]


@cache
def _digits() -> datasets.Dataset:
    return datasets.digits()


def digits(n: int = 300) -> tuple[Split, Split]:
    """(`n` digits to train on, 359 held out), standardised"""
    return take(_digits().train, n), _digits().test


def perceptron(seed: int, *hidden: int) -> Params:
    """Return a network for digits; one hidden layer of 32 unless given"""
    return mlp_init(generator(seed), 64, hidden or (32,), 10)[0]


def mlp(params: Params, x: Tensor) -> Tensor:
    return mlp_apply(params, {}, x, train=False, layers=len(params))[0]


def descend(
    loss: Loss, params: Params, *, lr: float, steps: int = 100
) -> tuple[Params, list[float]]:
    """θ ← θ - η ∇loss(θ): the last θ, and the loss before every step"""
    losses = []
    for _ in range(steps):
        grads, value = grad_and_value(loss)(params)
        params = tree.map(lambda p, g: p - lr * g, params, grads)
        losses.append(float(value))
    return params, losses


def message(f: Callable[[], object]) -> str:
    """Return the error that `f` raises, as text, or "no error". It does not
    catch a TypeCheckError of the shape checks."""
    try:
        f()
    except TypeCheckError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
