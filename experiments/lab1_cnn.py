"""Lab 1: convolution written three ways, the shapes it makes, and a network of it that reads digits.

`--quiz` hides the shapes and asks for them; `--dataset mnist` does the real thing.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from experiments.shared import cli, show
from experiments.shared.shapes import show_axes, show_shapes
from fn import draw, tree
from fn.conv import conv2d, conv2d_init, conv2d_naive, conv2d_unfold
from fn.data.datasets import Dataset, Split, take
from fn.data.loader import batches
from fn.data.transforms import random_crop
from fn.gradcheck import relative_error
from fn.layers import softmax
from fn.metrics import confusion_matrix
from fn.models import Model
from fn.models.cnn import cnn
from fn.optim import adam
from fn.rng import generator
from fn.trace import Call, trace
from fn.train import (
    Metrics,
    TrainState,
    count_steps,
    eval_one_epoch,
    fit,
    one_cycle_adamw,
    overfit,
    steps_to_know,
)
from fn.tree import Params

STEPS = 300


class Recipe(NamedTuple):
    seeds: int
    epochs: int
    batch_size: int
    accuracy: float
    augment: Callable | None = None


RECIPES = {
    "digits": Recipe(seeds=5, epochs=15, batch_size=64, accuracy=0.985),
    "mnist": Recipe(seeds=3, epochs=5, batch_size=128, accuracy=0.993, augment=partial(random_crop, padding=2)),
}


@dataclass(frozen=True)
class Config(cli.Compiled):
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
        quiz(calls)
        return []
    return [
        *compare_convolutions(config, device),
        show_shapes(calls, params, "Shapes of the running network, for one image"),
        *learn_by_heart(config, model, take(dataset.train, 32)),
        *generalise(config, model, dataset),
    ]


def compare_convolutions(config: Config, device: torch.device) -> list[cli.Check]:
    """The same images and kernels through all three: outputs and gradients, and the time of both, taken in turns."""
    rng = generator(config.seed)
    inputs = {"x": torch.randn(32, 32, 14, 14, generator=rng), **conv2d_init(rng, 32, 64, 3)}
    inputs = tree.to(inputs, device)
    weights = torch.randn(32, 64, 14, 14, generator=rng).to(device)
    ways = {f.__name__: f for f in (conv2d, conv2d_unfold, conv2d_naive)}

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, tuple[Params, Params]] = {}
    for _ in range(7):
        for name, way in ways.items():
            start = time.perf_counter()
            grads, output = grad(lambda inputs, way=way: _weighted_sum(way, inputs, weights), has_aux=True)(inputs)
            results[name] = {"y": output}, grads
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)

    outputs, grads = zip(*results.values(), strict=True)
    output_gaps, grad_gaps = ([relative_error(r, rs[0]) for r in rs] for rs in (outputs, grads))
    times = [median(s / base for s, base in zip(seconds[name], seconds["conv2d"], strict=True)) for name in ways]
    show.table(
        "Convolution three ways: 32 images of 32×14×14, 64 kernels of 3×3, forward and backward",
        ("", "output gap", "gradient gap", "time / native"),
        [
            (name, f"{o:.1e}", f"{g:.1e}", f"{t:.3g}×")
            for name, o, g, t in zip(ways, output_gaps, grad_gaps, times, strict=True)
        ],
    )
    return [
        cli.check("convolutions: largest relative gap of outputs", max(output_gaps), "<=", 1e-5),
        cli.check("convolutions: largest relative gap of gradients", max(grad_gaps), "<=", 1e-5),
    ]


def _weighted_sum(way: Callable, inputs: Params, weights: Tensor) -> tuple[Tensor, Tensor]:
    output = way(**inputs, padding="same")
    return (output * weights).sum(), output


def quiz(calls: Sequence[Call]) -> None:
    """Ask for the sizes that each layer gives, and grade the answers."""
    show.console.print(
        f"The images are {show_axes(calls[0].input)}. What leaves each layer? Sizes in this order, batch left out."
    )
    right = 0
    for asked, call in enumerate(calls):
        names, sizes = zip(*call.output[1:], strict=True)
        settings = {k: v for k, v in call.arguments.items() if k in ("kernel_size", "stride", "padding", "dilation")}
        weight = call.arguments.get("weight")
        shape = f" weight {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
        shown = "".join(f" {k} {v}" for k, v in settings.items() if v is not None)
        try:
            answer = input(f"{call.layer} ({call.op}{shape}{shown}): {' '.join(names)}? ")
        except EOFError:
            raise cli.UsageError(f"--quiz: the answers ended after {asked} of {len(calls)} questions") from None
        if tuple(map(int, re.findall(r"\d+", answer))) == sizes:
            right += 1
        else:
            show.console.print(f"  no, {' '.join(map(str, sizes))}: {call.by_hand}")
    show.console.print(f"{right} of {len(calls)} right")


def learn_by_heart(config: Config, model: Model, images: Split) -> list[cli.Check]:
    step = cli.classifier_step(config, model, partial(adam, lr=1e-2), len(images.labels))
    learn = partial(overfit, model, images, step=step, seed=config.seed, steps=STEPS)
    _, run = show.follow(learn, STEPS, "overfit 32 images")
    draw_curves(run, config.out / "overfit.png")
    last = run[-1]
    return [
        cli.check("32 images: accuracy", last["accuracy"], "==", 1),
        cli.check("32 images: loss", last["loss"], "<", 1e-3),
        cli.check("32 images: steps to both", steps_to_know(run), "<=", STEPS),
    ]


def generalise(config: Config, model: Model, dataset: Dataset) -> list[cli.Check]:
    """All the training images, several seeds, judged on the held-out ones; pictures of the first seed's network."""
    recipe = RECIPES[config.dataset]
    total = count_steps(len(dataset.train.labels), epochs=recipe.epochs, batch_size=recipe.batch_size)
    step = cli.classifier_step(config, model, one_cycle_adamw(lr=5e-3, total_steps=total), recipe.batch_size)
    trained = []
    for seed in cli.seeds(config, recipe.seeds):
        run = partial(
            fit,
            model,
            dataset.train,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            step=step,
            seed=seed,
            augment=recipe.augment,
        )
        trained.append(show.follow(run, total, f"all of {config.dataset}, seed {seed}"))
    accuracies = [
        eval_one_epoch(ts.params, ts.state, batches(dataset.test, 1000), apply=model.apply)["accuracy"]
        for ts, _ in trained
    ]
    first, metrics = trained[0]
    draw_curves(metrics, config.out / "training.png")
    draw_network(config, first, model, dataset)
    draw_mistakes(config, first, model, dataset)
    return [cli.check_mean(f"held-out {config.dataset}: accuracy", accuracies, ">=", recipe.accuracy)]


def draw_curves(history: Sequence[Metrics], path: Path) -> None:
    panels = {quantity: {"": [metrics[quantity] for metrics in history]} for quantity in ("loss", "accuracy")}
    draw.save(draw.curves(panels, log=["loss"]), path)


def draw_network(config: Config, ts: TrainState, model: Model, dataset: Dataset) -> None:
    """The first layer's kernels, and what each block makes of one held-out image."""
    kernels = ts.params["conv1"]["weight"][:, 0]
    draw.save(
        draw.image_grid(kernels, signed=True, title="kernels of conv1: red adds, blue subtracts"),
        config.out / "filters.png",
    )
    image = dataset.test.images[:1]
    _, calls = trace(ts.params, model.apply, ts.params, ts.state, image, train=False)
    maps = [call.result[0, :7] for call in calls if call.op == "relu"]
    rows = [torch.nn.functional.interpolate(m[None], size=image.shape[2:])[0] for m in maps]
    blank = torch.zeros_like(image[0]).expand(6, -1, -1)
    draw.save(
        draw.image_grid(
            torch.cat([image[0], blank, *rows]), columns=7, title="one image, then 7 channels of each block"
        ),
        config.out / "feature_maps.png",
    )


def draw_mistakes(config: Config, ts: TrainState, model: Model, dataset: Dataset) -> None:
    """The held-out images whose target was given the least probability, and the confusion matrix."""
    images, labels = dataset.test
    with torch.no_grad():
        logits = torch.cat([model.apply(ts.params, ts.state, x, train=False)[0] for x in images.split(1000)])
    p = softmax(logits, dim=1)
    worst = p[torch.arange(len(labels)), labels].argsort()[:16]
    name = dataset.classes
    titles = [f"{name[int(labels[i])]}, read as {name[int(p[i].argmax())]}\np = {p[i].max():.2f}" for i in worst]
    draw.save(
        draw.image_grid(images[worst, 0], titles, title="the worst of the held-out images"),
        config.out / "mistakes.png",
    )
    draw.save(draw.confusion(confusion_matrix(logits, labels).cpu(), name), config.out / "confusion.png")


if __name__ == "__main__":
    cli.run(Config, main)
