"""A model, a schedule and an augmentation are tried before the training: a broken contract is said in a sentence.

Below the sentence stands the line of the reader's that it came from, or that the function at fault begins with.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.shared import cli
from experiments.shared.errors import definition, runs_inside
from fn import rng, tree
from fn.models import Model
from fn.tensors import kind, summarize


def try_model(
    factory: Callable, shape: Sequence[int], classes: int, *, name: str, dataset: str, batch_size: int, seed: int
) -> Model:
    """Return `factory(shape, classes)`, after one call of its init, and of its apply in training and in evaluation.

    UsageError if one of the three fails or returns what `fn.models` does not say.
    """
    suits = f"--model {name} does not suit --dataset {dataset}"
    model = _call(suits, factory, tuple(shape), classes)
    if not isinstance(model, Model):
        raise _broken(f"the function of --model {name} must return Model(init, apply)", model, factory)
    drawn = _call(suits, model.init, rng.generator(seed))
    _require_pair(drawn, "params", f"the init of --model {name}", model.init)
    params, state = drawn
    if not isinstance(params, dict):
        raise _broken(f"the init of --model {name} must return (params, state), params a dict", params, model.init)
    for at, x in tree.flatten(params).items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise _broken(f"the init of --model {name} must return params of floats, {at} too", x, model.init)
    images = torch.zeros(batch_size, *shape)
    for mode, options in (("", {"train": True, "key": rng.key(0)}), (" with train=False", {"train": False})):
        result, said = _call(suits, model.apply, params, state, images, **options), f"the apply of --model {name}{mode}"
        _require_pair(result, "logits", said, model.apply)
        logits, _ = result
        fits = isinstance(logits, Tensor) and logits.shape == (batch_size, classes) and logits.is_floating_point()
        if not fits:
            said += f" must return (logits, state), logits of floats of shape {(batch_size, classes)}"
            raise _broken(f"{said}, a score for each class", logits, model.apply)
    return model


def try_schedule(schedule: Callable, *, name: str) -> None:
    """Raise UsageError unless the schedule gives a learning rate for the first step."""
    rate = _call(f"--schedule {name}", schedule, 0)
    if not isinstance(rate, float | int | Tensor) or not 0 <= float(rate) < math.inf:
        raise _broken(f"--schedule {name} must return a learning rate, from 0 and finite", rate, schedule)


def try_augment(augment: Callable, shape: Sequence[int], *, name: str) -> None:
    """Raise UsageError unless the augmentation returns images of the shape and dtype that it got."""
    images = torch.zeros(2, *shape)
    found = _call(f"--augment {name}", augment, images, rng.key(0).expand(2))
    if not isinstance(found, Tensor) or (found.shape, found.dtype) != (images.shape, images.dtype):
        raise _broken(f"--augment {name} must return images as it got them, {kind(images)}", found, augment)


def _call(suits: str, f: Callable, *args: Any, **options: Any) -> Any:
    """Return f(*args, **options); UsageError for any error, as the reader wrote the function."""
    try:
        return f(*args, **options)
    except Exception as error:
        reason = cli.explain(error)
        if not runs_inside(error, __file__):  # the call itself does not fit the function
            reason = f"{reason.splitlines()[0]}\n{definition(f)}"
        raise cli.UsageError(f"{suits}: {reason}") from error


def _require_pair(result: Any, first: str, what: str, f: Callable) -> None:
    """Raise UsageError unless a result is (something, state), the state a dict."""
    contract = f"{what} must return ({first}, state)"
    if not isinstance(result, tuple) or len(result) != 2:
        raise _broken(contract, result, f)
    if not isinstance(result[1], dict):
        raise _broken(f"{contract}, state a dict", result[1], f)


def _broken(contract: str, found: Any, f: Callable) -> cli.UsageError:
    if isinstance(found, Tensor):
        found = kind(found) if found.ndim else summarize(found)
    elif isinstance(found, tuple):
        found = f"a tuple of {len(found)}"
    elif isinstance(found, float | int | str):
        found = repr(found)
    else:
        found = type(found).__name__
    return cli.UsageError(f"{contract}, not {found}\n{definition(f)}")
