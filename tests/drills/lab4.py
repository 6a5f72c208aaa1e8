"""The whole of Lab 4: a head of its own layers, and one way trained in another order of its lines."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.lab4_pretrained import Config, Task, Trained, Way
from experiments.lab_helpers.lab4.transfer_task import Recipe, load_images
from experiments.shared.backbones import load
from fn import tree
from fn.backbones import BACKBONES, extract_features, head_model, transfer_model
from fn.conv import adaptive_avg_pool2d
from fn.data.datasets import Split
from fn.data.loader import batches
from fn.layers import batch_norm, dropout, flatten, linear, norm_modes
from fn.models import Model
from fn.optim import adamw, lr_by_prefix, one_cycle_schedule
from fn.train import classifier_step, count_steps, eval_one_epoch, init_train_state, run_key


def head_apply(
    params: dict[str, Any],
    state: dict[str, Any],
    x: Tensor,
    *,
    train: bool,
    key: Tensor | None = None,
    modes: dict[str, Any] | None = None,
    cells: int = 1,
    dropout_p: float = 0.0,
) -> tuple[Tensor, dict[str, Any]]:
    in_training = (modes or norm_modes(state, train))["norm"]
    x, moved = batch_norm(
        flatten(adaptive_avg_pool2d(x, cells)), **state["norm"], **params["norm"], training=in_training
    )
    return linear(dropout(x, dropout_p, train, key=key), params["fc"]["weight"], params["fc"]["bias"]), {"norm": moved}


def attach_head(
    backbone: tuple[dict[str, Any], dict[str, Any]], head: tuple[dict[str, Any], dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"backbone": backbone[0], "head": head[0]}, {"backbone": backbone[1], "head": head[1]}


def transfer_apply(
    params: dict[str, Any],
    state: dict[str, Any],
    x: Tensor,
    *,
    train: bool,
    key: Tensor | None = None,
    modes: dict[str, Any] | None = None,
    features: Callable,
    cells: int = 1,
    dropout_p: float = 0.0,
) -> tuple[Tensor, dict[str, Any]]:
    modes = modes or norm_modes(state, train)
    maps, below = features(params["backbone"], state["backbone"], x, train=train, modes=modes["backbone"])
    above = {"train": train, "key": key, "modes": modes["head"], "cells": cells, "dropout_p": dropout_p}
    logits, on_top = head_apply(params["head"], state["head"], maps, **above)
    return logits, {"backbone": below, "head": on_top}


def load_task(config: Config, recipe: Recipe, device: torch.device) -> Task:
    spec = BACKBONES[config.backbone]
    params, state = load(config.backbone, config.weights, cut_off=spec.dropped)
    weights = tree.to(params, device), tree.to(state, device)
    dataset, images, labels = load_images(spec, config, device)
    features = torch.cat([extract_features(spec, *weights, split.images) for split in (dataset.train, dataset.test)])
    whole = partial(transfer_model, spec, len(dataset.classes), dropout_p=recipe.dropout_p)
    head = head_model(spec, len(dataset.classes), dropout_p=recipe.dropout_p)
    return Task(dataset, images, labels, features, weights, spec, whole(weights=None), whole(weights=weights), head)


def train_way(
    model: Model, inputs: Tensor, labels: Tensor, chosen: Tensor, way: Way, batch_size: int, seed: int
) -> Trained:
    others = torch.tensor(sorted(set(range(len(labels))) - set(chosen.tolist())))
    schedule = partial(
        one_cycle_schedule, lr=way.lr, total_steps=count_steps(len(chosen), epochs=way.epochs, batch_size=batch_size)
    )
    optimizer = lr_by_prefix(adamw, lr=schedule, scales=way.lr_scales)
    step = classifier_step(model, optimizer)
    ts = init_train_state(model, optimizer, seed=seed)
    for epoch in range(way.epochs):
        for x, y in batches(
            Split(inputs[chosen], labels[chosen]), batch_size, seed=seed, epoch=epoch, augment=way.augment
        ):
            ts, _ = step(ts, x, y, key=run_key(seed))
    held_out = batches(Split(inputs[others], labels[others]), 100)
    found = eval_one_epoch(ts.params, ts.state, held_out, apply=model.apply)
    return Trained(ts.params, ts.state, found["accuracy"])


WRONG = {
    "the head learns from nothing": (
        "features = torch.cat(",
        "features = 0 * torch.cat(",
        "main",
        "head − scratch: accuracy: ",
    ),
}
