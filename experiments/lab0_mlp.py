"""Lab 0: a multi-layer perceptron from our own linear and relu.

Overfit 32 digits, look at the gradients in three ways, put the functional loop beside the classic one, and see what the
check says of a model that cannot learn.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from experiments.shared import cli, show
from fn import draw, optim, tree
from fn.data.datasets import Dataset, Split, take
from fn.gradcheck import numerical_grad, relative_error
from fn.losses import cross_entropy
from fn.models import Model
from fn.models.mlp import mlp, mlp_apply, mlp_init, two_layer_grads
from fn.rng import generator
from fn.train import (
    count_steps,
    eval_one_epoch,
    fit,
    known_by_heart,
    one_cycle_adamw,
    overfit,
    steps_to_know,
)
from fn.tree import Params

STEPS = 300
EPOCHS = 30
BATCH = 64


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/lab0")
    """the folder for pictures and summary.json"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    dataset = cli.load("digits", device)
    model = mlp(dataset.shape, len(dataset.classes))
    images = take(dataset.train, 32)
    return [
        *learn_by_heart(config, model, images),
        *check_gradients(config, images),
        *compare_loops(config, images),
        *generalise(config, model, dataset),
    ]


def learn_by_heart(config: Config, model: Model, images: Split) -> list[cli.Check]:
    """Overfit 32 digits; then the same with a learning rate of 0, which must fail, or the check proves nothing."""
    learn = partial(overfit, model, images, seed=config.seed, steps=STEPS)
    step, idle = (
        cli.classifier_step(config, model, partial(optim.adam, lr=lr), len(images.labels)) for lr in (1e-2, 0.0)
    )
    states_too = lambda ts, metrics: (ts, metrics)  # noqa: E731
    _, run = show.follow(partial(learn, step=step), STEPS, "overfit 32 digits", keep=states_too)
    _, frozen = show.follow(partial(learn, step=idle), STEPS, "frozen control", keep=states_too)
    lines = {"learning": run, "frozen": frozen[: len(run)]}
    panels = {q: {name: [m[q] for _, m in steps] for name, steps in lines.items()} for q in ("loss", "accuracy")}
    draw.save(draw.curves(panels, log=["loss"]), config.out / "overfit.png")

    shown = [step for step in (1, 2, 5, 10, 20, 50, 100, 200, STEPS) if step < len(run)] + [len(run)]
    objective = partial(loss_of, x=images.images, y=images.labels)
    norms = {
        step: tree.flatten(tree.map(torch.linalg.norm, grad(objective)(run[step - 1][0].params))) for step in shown
    }
    show.table(
        "32 digits learned by heart, and the gradient norm of each parameter on the way",
        ("step", "accuracy", "loss", *norms[1]),
        [
            (
                f"{s}",
                f"{run[s - 1][1]['accuracy']:.0%}",
                *(f"{x:.1e}" for x in (run[s - 1][1]["loss"], *norms[s].values())),
            )
            for s in shown
        ],
    )
    last = run[-1][1]
    return [
        cli.check("32 digits: accuracy", last["accuracy"], "==", 1),
        cli.check("32 digits: loss", last["loss"], "<", 1e-3),
        cli.check("32 digits: steps to both", steps_to_know([m for _, m in run]), "<=", STEPS),
        cli.check(
            "32 digits: least gradient norm on the way",
            min(float(n) for s in norms.values() for n in s.values()),
            ">",
            0,
        ),
        cli.check("frozen control: steps that pass the same", sum(known_by_heart(m) for _, m in frozen), "==", 0),
    ]


def loss_of(params: Params, x: Tensor, y: Tensor) -> Tensor:
    logits, _ = mlp_apply(params, {}, x, train=True)
    return cross_entropy(logits, y)


def check_gradients(config: Config, images: Split) -> list[cli.Check]:
    """torch.func.grad against central differences, and against the backward pass derived by hand, in float64."""
    x, y = images.images[:8].flatten(1).double().cpu(), images.labels[:8].cpu()
    params, _ = mlp_init(generator(config.seed), 64, (32,), 10)
    params = tree.to(params, torch.float64)
    objective = partial(loss_of, x=x, y=y)
    grads = grad(objective)(params)
    numerical = relative_error(numerical_grad(objective, params, eps=1e-7), grads)
    by_hand = relative_error(two_layer_grads(params, x, y), grads)
    return [
        cli.check("gradient: central differences, relative error", numerical, "<=", 1e-7),
        cli.check("gradient: derived by hand, relative error", by_hand, "<=", 1e-12),
    ]


def classic_loop(module: torch.nn.Module, x: Tensor, y: Tensor, steps: int) -> list[float]:
    """The loss before each step of SGD on all of x; rate 0.1, momentum 0.9. The module is changed in place."""
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
    """The loss before each step of SGD on all of x, an MLP's; rate 0.1, momentum 0.9. New parameters every step."""

    def objective(params: Params) -> Tensor:
        logits, _ = mlp_apply(params, {}, x, train=True)  # forward
        return cross_entropy(logits, y)  # loss

    velocity = optim.sgd_init(params)
    losses = []
    for _ in range(steps):
        grads, loss = grad_and_value(objective)(params)  # backward
        params, velocity = optim.sgd(params, grads, velocity, lr=0.1, momentum=0.9)  # step
        losses.append(loss.item())
    return losses


def tagged_lines(function: Callable) -> dict[str, str]:
    """The lines of a function that end in a one-word comment, by that word."""
    found = re.findall(r"^ *(.+?)  # (\w+)$", inspect.getsource(function), re.MULTILINE)
    return {tag: line for line, tag in found}


def compare_loops(config: Config, images: Split) -> list[cli.Check]:
    """The same weights and digits through both loops."""
    x, y = images.images.flatten(1), images.labels
    params, _ = mlp_init(generator(config.seed), 64, (128,), 10)
    params = tree.to(params, x.device)
    module = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).to(x.device)
    module.load_state_dict(dict(zip(module.state_dict(), tree.leaves(params), strict=True)))

    classic, functional = classic_loop(module, x, y, 100), functional_loop(params, x, y, 100)
    before, after = tagged_lines(classic_loop), tagged_lines(functional_loop)
    show.table(
        "Which line became which",
        ("", "classic", "functional"),
        [(tag, line, after.get(tag, "nothing to clear: grads is a new value")) for tag, line in before.items()],
    )
    draw.save(
        draw.curves({"loss": {"classic": classic, "functional": functional}}, log=["loss"]), config.out / "loops.png"
    )
    gap = max(abs(a - b) for a, b in zip(classic, functional, strict=True))
    return [cli.check("functional and classic loop: largest gap in 100 losses", gap, "<=", 1e-5)]


def generalise(config: Config, model: Model, dataset: Dataset) -> list[cli.Check]:
    """All the training digits, five seeds, judged on the held-out ones."""
    accuracies = []
    total = count_steps(len(dataset.train.labels), epochs=EPOCHS, batch_size=BATCH)
    step = cli.classifier_step(config, model, one_cycle_adamw(lr=1e-2, total_steps=total), BATCH)
    for seed in cli.seeds(config, 5):
        run = partial(fit, model, dataset.train, step=step, epochs=EPOCHS, batch_size=BATCH, seed=seed)
        ts, _ = show.follow(run, total, f"all digits, seed {seed}")
        accuracies.append(eval_one_epoch(ts.params, ts.state, [dataset.test], apply=model.apply)["accuracy"])
    return [cli.check_mean("held-out digits: accuracy", accuracies, ">=", 0.97)]


if __name__ == "__main__":
    cli.run(Config, main)
