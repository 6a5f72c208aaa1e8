"""Lab 1: convolution written three ways, the shapes it makes, and a network of it that reads digits.

`--quiz` hides the shapes and asks for them; `--dataset mnist` trains on 60,000 digits of 28×28 pixels.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from experiments.lab_helpers.lab1.tables import show_convolutions
from experiments.shared import cli, show
from experiments.shared.overfit_report import check_fit
from experiments.shared.shapes import quiz_shapes, show_shapes
from experiments.shared.training_pictures import draw_metrics, draw_network
from fn import tree
from fn.conv import conv2d, conv2d_init, conv2d_naive, conv2d_unfold
from fn.data.datasets import Dataset, Split, take
from fn.data.loader import batches
from fn.data.transforms import random_crop
from fn.gradcheck import largest, relative_error
from fn.models import Model
from fn.models.cnn import cnn
from fn.optim import adam, adamw, one_cycle_schedule
from fn.rng import generator
from fn.trace import trace
from fn.train import (
    Metrics,
    TrainState,
    check_finite,
    classifier_step,
    count_steps,
    eval_one_epoch,
    init_train_state,
    is_overfit,
    run_key,
)
from fn.tree import Params

STEPS = 300


class Recipe(NamedTuple):
    seeds: int
    epochs: int
    batch_size: int
    accuracy: float
    lr: float = 5e-3
    augment: Callable | None = None


RECIPES = {
    "digits": Recipe(seeds=5, epochs=15, batch_size=64, accuracy=0.985),
    "mnist": Recipe(seeds=3, epochs=5, batch_size=128, accuracy=0.993, augment=partial(random_crop, padding=2)),
}


@dataclass(frozen=True)
class Config(cli.CompiledLab):
    out: Path = Path("runs/lab1")
    """the folder for pictures and summary.json"""
    dataset: Literal["digits", "mnist"] = "digits"
    """what the network learns to read"""
    quiz: bool = False
    """hide the shapes and ask for them, instead of training"""

    def compile_pays(self) -> bool:
        return self.dataset == "mnist"


def main(config: Config, device: torch.device) -> list[cli.Check]:
    dataset = cli.load(config.dataset, device)
    model = cnn(dataset.shape, len(dataset.classes))
    params, state = (tree.to(part, device) for part in model.init(generator(config.seed)))
    _, calls = trace(params, model.apply, params, state, dataset.train.images[:1], train=False)
    if config.quiz:
        quiz_shapes(calls)
        return []
    checks = compare_convolutions(config, device)
    checks.append(show_shapes(calls, params, "Shapes of the running network, for one image"))
    history = overfit_few(config, model, take(dataset.train, 32))
    checks += check_fit("32 images", {"": history}, STEPS, config.out / "overfit.png")
    return checks + check_accuracy(config, model, dataset, train_and_test(config, model, dataset))


def compare_convolutions(config: Config, device: torch.device) -> list[cli.Check]:
    """Run the same images and kernels through all three; compare outputs, gradients, and times, measured in turns."""
    rng = generator(config.seed)
    inputs = tree.to({"x": torch.randn(32, 32, 14, 14, generator=rng), **conv2d_init(rng, 32, 64, 3)}, device)
    weights = torch.randn(32, 64, 14, 14, generator=rng).to(device)
    convolutions = {f.__name__: f for f in (conv2d, conv2d_unfold, conv2d_naive)}

    seconds: dict[str, list[float]] = {name: [] for name in convolutions}
    outputs, grads = dict[str, Params](), dict[str, Params]()
    for _ in range(7):
        for name, convolve in convolutions.items():
            start = time.perf_counter()
            objective = partial(weighted_sum, convolve=convolve, weights=weights)
            grads[name], outputs[name] = grad(objective, has_aux=True)(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)

    output_gaps = [relative_error(output, outputs["conv2d"]) for output in outputs.values()]
    grad_gaps = [relative_error(g, grads["conv2d"]) for g in grads.values()]
    show_convolutions(output_gaps, grad_gaps, seconds)
    return [
        cli.check("convolutions: largest relative gap of outputs", largest(output_gaps), "<=", 1e-5),
        cli.check("convolutions: largest relative gap of gradients", largest(grad_gaps), "<=", 1e-5),
    ]


def weighted_sum(inputs: Params, *, convolve: Callable, weights: Tensor) -> tuple[Tensor, Params]:
    """Return (a scalar to differentiate, the output): each entry has its own weight, and so its own gradient."""
    output = convolve(**inputs, padding="same")
    return (output * weights).sum(), {"y": output}


def overfit_few(config: Config, model: Model, few: Split) -> list[Metrics]:
    """Train on the same 32 images until all are right with a small loss: the first test of a new network.

    Returns the metrics after each step.
    """
    optimizer = adam(lr=1e-2)
    step = check_finite(cli.compiled(config, classifier_step(model, optimizer), len(few.labels)))
    ts, key = init_train_state(model, optimizer, seed=config.seed, device=few.images.device), run_key(config.seed)
    history = []
    with show.progress(STEPS, "overfit 32 images") as advance:
        for _ in range(STEPS):
            ts, _ = step(ts, few.images, few.labels, key=key)
            history.append(eval_one_epoch(ts.params, ts.state, [few], apply=model.apply))
            advance(history[-1]["loss"])
            if is_overfit(history[-1]):
                break
    return history


class Trained(NamedTuple):
    ts: TrainState
    history: list[Metrics]
    accuracy: float


def train_and_test(config: Config, model: Model, dataset: Dataset) -> list[Trained]:
    """Train on all images of the training split with several seeds; evaluate each on those held out."""
    recipe, device = RECIPES[config.dataset], dataset.train.images.device
    total = count_steps(len(dataset.train.labels), epochs=recipe.epochs, batch_size=recipe.batch_size)
    optimizer = adamw(lr=partial(one_cycle_schedule, lr=recipe.lr, total_steps=total))
    step = check_finite(cli.compiled(config, classifier_step(model, optimizer), recipe.batch_size))
    trained = []
    for seed in cli.seeds(config, recipe.seeds):
        ts, key, history = init_train_state(model, optimizer, seed=seed, device=device), run_key(seed), []
        with show.progress(total, f"all of {config.dataset}, seed {seed}") as advance:
            for epoch in range(recipe.epochs):
                for x, y in batches(dataset.train, recipe.batch_size, seed=seed, epoch=epoch, augment=recipe.augment):
                    ts, metrics = step(ts, x, y, key=key)
                    history.append(metrics)
                    advance(metrics["loss"])
        test = eval_one_epoch(ts.params, ts.state, batches(dataset.test, 1000), apply=model.apply)
        trained.append(Trained(ts, history, test["accuracy"]))
    return trained


def check_accuracy(config: Config, model: Model, dataset: Dataset, trained: list[Trained]) -> list[cli.Check]:
    draw_metrics({"": [run.history for run in trained]}, config.out / "training.png")
    draw_network(model, trained[0].ts, dataset, config.out)
    name, accuracies = f"held-out {config.dataset}: accuracy", [run.accuracy for run in trained]
    return [cli.check_mean(name, accuracies, ">=", RECIPES[config.dataset].accuracy)]


if __name__ == "__main__":
    cli.run(Config, main)
