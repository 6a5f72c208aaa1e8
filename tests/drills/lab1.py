"""The whole of Lab 1: the two convolutions as in their drills, the loops over generators, the steps written out."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from experiments.lab1_cnn import RECIPES, STEPS, Config, Trained
from experiments.shared import cli
from fn.conv import output_size, pair, resolve_padding
from fn.data.datasets import Dataset, Split
from fn.data.loader import batches
from fn.losses import cross_entropy
from fn.metrics import accuracy
from fn.models import Model
from fn.optim import adam, adamw, one_cycle_schedule
from fn.rng import generator
from fn.train import (
    Metrics,
    TrainState,
    check_finite,
    classifier_step,
    count_steps,
    eval_one_epoch,
    init_train_state,
    run_key,
)
from fn.tree import Params


def conv2d_naive(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    out, _, kh, kw = weight.shape
    (sh, sw), (dh, dw) = pair(stride), pair(dilation)
    (top, bottom), (left, right) = resolve_padding(padding, (kh, kw), stride, dilation)
    x = F.pad(x, (left, right, top, bottom)).unflatten(1, (groups, -1))
    kernels = weight.unflatten(0, (groups, -1))
    rows, columns = x.shape[-2] - dh * (kh - 1), x.shape[-1] - dw * (kw - 1)
    y = torch.zeros(())
    for u in range(kh):
        for v in range(kw):
            seen = x[..., dh * u : dh * u + rows : sh, dw * v : dw * v + columns : sw]
            y = y + (kernels[None, ..., u, v, None, None] * seen[:, :, None]).sum(3)
    y = y.flatten(1, 2)
    return y if bias is None else y + bias.view(1, out, 1, 1)


def conv2d_unfold(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    _, _, kh, kw = weight.shape
    (top, bottom), (left, right) = resolve_padding(padding, (kh, kw), stride, dilation)
    x = F.pad(x, (left, right, top, bottom))
    height = output_size(x.shape[2], kh, pair(stride)[0], 0, pair(dilation)[0])
    columns = F.unfold(x, (kh, kw), dilation=dilation, stride=stride).unflatten(1, (groups, -1))
    kernels = weight.flatten(1).unflatten(0, (groups, -1))
    y = torch.einsum("gok,bgkn->bgon", kernels, columns).flatten(1, 2).unflatten(2, (height, -1))
    return y if bias is None else y + bias[:, None, None]


def weighted_sum(inputs: Params, *, convolve: Callable, weights: Tensor) -> tuple[Tensor, Params]:
    y = convolve(inputs["x"], inputs["weight"], inputs["bias"], padding="same")
    return torch.vdot(y.flatten(), weights.flatten()), {"y": y}


def objective(params, state, x, y, apply):
    logits, state = apply(params, state, x, train=True)
    return cross_entropy(logits, y), state


def overfit_few(config: Config, model: Model, few: Split) -> list[Metrics]:
    x, y = few
    optimizer = adam(lr=1e-2)
    params, state = model.init(generator(config.seed))
    opt_state, history = optimizer.init(params), []
    while len(history) < STEPS:
        slope = grad_and_value(partial(objective, state=state, x=x, y=y, apply=model.apply), has_aux=True)
        grads, (_, state) = slope(params)
        params, opt_state = optimizer.update(params, grads, opt_state)
        with torch.no_grad():
            logits, _ = model.apply(params, state, x, train=False)
            history.append({"loss": cross_entropy(logits, y).item(), "accuracy": accuracy(logits, y).item()})
        if history[-1]["accuracy"] == 1 and history[-1]["loss"] < 1e-3:
            break
    return history


def train_and_test(config: Config, model: Model, dataset: Dataset) -> list[Trained]:
    recipe = RECIPES[config.dataset]
    size, trained = recipe.batch_size, []
    total = count_steps(len(dataset.train.labels), epochs=recipe.epochs, batch_size=size)
    optimizer = adamw(lr=partial(one_cycle_schedule, lr=recipe.lr, total_steps=total))
    step = check_finite(classifier_step(model, optimizer))

    def epoch_of(ts: TrainState, seed: int, epoch: int, history: list) -> TrainState:
        for x, y in batches(dataset.train, size, seed=seed, epoch=epoch, augment=recipe.augment):
            ts, metrics = step(ts, x, y, key=run_key(seed))
            history.append(metrics)
        return ts

    for seed in cli.seeds(config, recipe.seeds):
        ts, history = init_train_state(model, optimizer, seed=seed), []
        for epoch in range(recipe.epochs):
            ts = epoch_of(ts, seed, epoch, history)
        test = eval_one_epoch(ts.params, ts.state, [dataset.test], apply=model.apply)
        trained.append(Trained(ts, history, test["accuracy"]))
    return trained


WRONG = {
    "torch's own convolution": (
        "    out, _, kh, kw = weight.shape",
        "    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)\n    out, _, kh, kw = weight.shape",
        "",
        "this calls torch's own `conv2d`, which does what you are to write",
    ),
    "ours": (
        "    out, _, kh, kw = weight.shape",
        "    from fn.conv import conv2d\n\n    return conv2d(x, weight, bias)\n    out, _, kh, kw = weight.shape",
        "",
        "this calls `fn.conv.conv2d`, which does what you are to write",
    ),
    "torch's own, in a function beside it": (
        "def weighted_sum(",
        "def ready(*given):\n    return F.conv2d(*given)\n\n\ndef conv2d_naive(x, weight, bias=None, stride=1, padding=0, "
        "dilation=1, groups=1):\n    return ready(x, weight, bias)\n\n\ndef weighted_sum(",
        "",
        "this calls torch's own `conv2d`",
    ),
    "one convolution by the other": (
        "    _, _, kh, kw = weight.shape",
        "    return conv2d_naive(x, weight, bias, stride, padding, dilation, groups)\n    _, _, kh, kw = weight.shape",
        "",
        "this calls your own `conv2d_naive`",
    ),
    "kernel axes swapped": (
        "out, _, kh, kw = weight.shape",
        "weight = weight.mT\n    out, _, kh, kw = weight.shape",
        "compare_convolutions",
        "convolutions: largest relative gap of outputs: ",
    ),
}
