"""Lab 0: a multi-layer perceptron from our own linear and relu.

Overfit 32 digits, with a control that cannot learn; compute the gradient in three ways; put the functional loop beside
the classic one; train on all digits.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from experiments.lab_helpers.lab0.tables import show_gradient_norms, show_lines
from experiments.shared import cli, show
from experiments.shared.overfit_report import check_fit
from experiments.shared.training_pictures import draw_losses
from fn import tree
from fn.data.datasets import Dataset, Split, take
from fn.data.loader import batches
from fn.gradcheck import largest, numerical_grad, relative_error, smallest
from fn.losses import cross_entropy
from fn.models import Model
from fn.models.mlp import mlp, mlp_apply, mlp_init, two_layer_grads
from fn.optim import adam, adamw, one_cycle_schedule, sgd_init, sgd_update
from fn.rng import generator
from fn.train import check_finite, classifier_step, count_steps, eval_one_epoch, init_train_state, is_overfit, run_key
from fn.tree import Params

STEPS, LR = 300, 1e-2
EPOCHS, BATCH = 30, 64


@dataclass(frozen=True)
class Config(cli.CompiledLab):
    out: Path = Path("runs/lab0")
    """the folder for pictures and summary.json"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    dataset = cli.load("digits", device)
    model = mlp(dataset.shape, len(dataset.classes))
    few = take(dataset.train, 32)
    learning = overfit_few(config, model, few, lr=LR, title="overfit 32 digits")
    frozen = overfit_few(config, model, few, lr=0.0, title="frozen control")
    checks = check_overfit(config, few, learning, frozen) + check_gradients(config, few) + compare_loops(config, few)
    accuracies = train_and_test(config, model, dataset)
    return [*checks, cli.check_mean("held-out digits: accuracy", accuracies, ">=", 0.97)]


class Snapshot(NamedTuple):
    """The model after a step."""

    params: Params
    metrics: dict[str, float]


def overfit_few(config: Config, model: Model, few: Split, *, lr: float, title: str) -> list[Snapshot]:
    """Train on the same few digits until all are right with a small loss; a snapshot after each step."""
    optimizer = adam(lr=lr)
    step = check_finite(cli.compiled(config, classifier_step(model, optimizer), len(few.labels)))
    ts, key = init_train_state(model, optimizer, seed=config.seed, device=few.images.device), run_key(config.seed)
    run = []
    with show.progress(STEPS, title) as advance:
        for _ in range(STEPS):
            ts, _ = step(ts, few.images, few.labels, key=key)
            metrics = eval_one_epoch(ts.params, ts.state, [few], apply=model.apply)
            run.append(Snapshot(ts.params, metrics))
            advance(metrics["loss"])
            if is_overfit(metrics):
                break
    return run


def check_overfit(config: Config, few: Split, learning: list[Snapshot], frozen: list[Snapshot]) -> list[cli.Check]:
    """Check that the model learns, and that a control with learning rate 0 does not."""
    history, frozen_history = ([snapshot.metrics for snapshot in run] for run in (learning, frozen))
    runs = {"learning": history, "frozen": frozen_history[: len(history)]}
    checks = check_fit("32 digits", runs, STEPS, config.out / "overfit.png")

    gradient = grad(partial(mlp_loss, x=few.images, y=few.labels))
    steps = [step for step in (1, 2, 5, 10, 20, 50, 100, 200, STEPS) if step < len(history)] + [len(history)]
    norms = {step: tree.map(torch.linalg.norm, gradient(learning[step - 1].params)) for step in steps}
    show_gradient_norms(history, norms)
    least_norm = smallest(norm for of_step in norms.values() for norm in tree.leaves(of_step))
    return [
        *checks,
        cli.check("32 digits: least gradient norm on the way", least_norm, ">", 0),
        cli.check("frozen control: steps that pass the same", sum(map(is_overfit, frozen_history)), "==", 0),
    ]


def mlp_loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of a two-layer MLP in training, images x, classes y: an objective for `grad`."""
    logits, _ = mlp_apply(params, {}, x, train=True, layers=2)
    return cross_entropy(logits, y)


def check_gradients(config: Config, few: Split) -> list[cli.Check]:
    """Compare torch.func.grad with central differences and with the backward pass derived by hand, in float64."""
    x, y = few.images[:8].flatten(1).double().cpu(), few.labels[:8].cpu()
    params, _ = mlp_init(generator(config.seed), 64, (32,), 10)
    params = tree.to(params, torch.float64)
    objective = partial(mlp_loss, x=x, y=y)
    grads = grad(objective)(params)
    numerical = relative_error(numerical_grad(objective, params, eps=1e-7), grads)
    by_hand = relative_error(two_layer_grads(params, x, y), grads)
    return [
        cli.check("gradient: central differences, relative error", numerical, "<=", 1e-7),
        cli.check("gradient: derived by hand, relative error", by_hand, "<=", 1e-12),
    ]


def classic_loop(module: torch.nn.Module, x: Tensor, y: Tensor, steps: int) -> list[float]:
    """Return the loss before each step of SGD on all of x; rate 0.1, momentum 0.9. Changes the module in place."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        logits = module(x)  # forward
        loss = torch.nn.functional.cross_entropy(logits, y)  # loss
        loss.backward()  # backward
        optimizer.step()  # step
        optimizer.zero_grad()  # zero_grad
        losses.append(loss.item())
    return losses


def functional_loop(params: Params, x: Tensor, y: Tensor, steps: int) -> list[float]:
    """Return the loss before each step of SGD on all of x; rate 0.1, momentum 0.9. Changes none of its arguments."""

    def objective(params: Params) -> Tensor:
        logits, _ = mlp_apply(params, {}, x, train=True, layers=2)  # forward
        return cross_entropy(logits, y)  # loss

    state = sgd_init(params)
    losses = []
    for _ in range(steps):
        grads, loss = grad_and_value(objective)(params)  # backward
        params, state = sgd_update(params, grads, state, lr=0.1, momentum=0.9)  # step
        losses.append(loss.item())
    return losses


def compare_loops(config: Config, few: Split) -> list[cli.Check]:
    """Train the same weights on the same digits with both loops; the losses must agree."""
    x, y = few.images.flatten(1), few.labels
    params, _ = mlp_init(generator(config.seed), 64, (128,), 10)
    params = tree.to(params, x.device)
    module = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).to(x.device)
    module.load_state_dict(dict(zip(module.state_dict(), tree.leaves(params), strict=True)))

    classic, functional = classic_loop(module, x, y, 100), functional_loop(params, x, y, 100)
    show_lines(classic_loop, functional_loop)
    draw_losses({"classic": classic, "functional": functional}, config.out / "loops.png")
    gap = largest(abs(a - b) for a, b in zip(classic, functional, strict=True))
    return [cli.check("functional and classic loop: largest gap in 100 losses", gap, "<=", 1e-5)]


def train_and_test(config: Config, model: Model, dataset: Dataset) -> list[float]:
    """Train on all digits of the training split with five seeds; return the accuracies on those held out."""
    total = count_steps(len(dataset.train.labels), epochs=EPOCHS, batch_size=BATCH)
    optimizer = adamw(lr=partial(one_cycle_schedule, lr=LR, total_steps=total))
    step = check_finite(cli.compiled(config, classifier_step(model, optimizer), BATCH))
    accuracies = []
    for seed in cli.seeds(config, 5):
        ts, key = init_train_state(model, optimizer, seed=seed, device=dataset.train.images.device), run_key(seed)
        with show.progress(total, f"all digits, seed {seed}") as advance:
            for epoch in range(EPOCHS):
                for x, y in batches(dataset.train, BATCH, seed=seed, epoch=epoch):
                    ts, metrics = step(ts, x, y, key=key)
                    advance(metrics["loss"])
        accuracies.append(eval_one_epoch(ts.params, ts.state, [dataset.test], apply=model.apply)["accuracy"])
        show.parameters(ts.params, f"the MLP of seed {seed}, trained")
    return accuracies


if __name__ == "__main__":
    cli.run(Config, main)
