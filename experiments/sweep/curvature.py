"""Two looks at the geometry of training: the noise of the gradient, and the sharpness along gradient descent."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch.func import vmap

from experiments.shared import show
from experiments.shared.titles import course
from experiments.sweep.config import Config
from fn import draw, tree
from fn.curvature import gradient_noise_scale, per_sample_grads, sharpness
from fn.data.datasets import Split, take
from fn.ensemble import ensemble_batches, ensemble_init, ensemble_key, ensemble_step
from fn.gradcheck import largest
from fn.models import Model
from fn.optim import sgd
from fn.rng import key as rng_key
from fn.train import TrainState, classification_loss

PROBE, MAX_NUMBERS = 1200, 10**8
"""the most examples to measure the noise on, and the most numbers that their gradients may hold"""
DESCENT_EXAMPLES = 500
DESCENT_LRS = (0.1, 0.3, 0.6, 1.2)
DESCENT_STEPS = (*range(10), *range(10, 30, 4), *range(30, 151, 15))
"""the steps of gradient descent after which the curvature is measured"""


@show.picture
def draw_noise(config: Config, model: Model, split: Split, history: Sequence[TrainState]) -> None:
    """Draw the gradient noise scale along the run of one model, beside its batch size."""
    probe = take(split, max(2, min(PROBE, MAX_NUMBERS // tree.size(history[0].params))))
    grads = partial(per_sample_grads, partial(classification_loss, apply=model.apply))
    whole = len(probe.labels) == len(split.labels)
    scales = [float(gradient_noise_scale(grads(ts.params, ts.state, *probe), whole=whole)) for ts in history]
    lines = {
        "noise scale tr Σ / |G|²": dict(enumerate(scales)),
        "batch size": {0: config.batch_size, config.epochs: config.batch_size},
    }
    panel, title = (
        "examples",
        f"The noise scale {course(dict(enumerate(scales)), 'epoch')}, at a batch size of {config.batch_size}",
    )
    figure = draw.curves({panel: lines}, xlabel="epoch of the best model", log=[panel], title=title)
    show.save(figure, config.out / "noise.png")
    shown = sorted({0, 1, config.epochs // 4, config.epochs // 2, config.epochs})
    title = f"Gradient noise scale of the best model over {len(probe.labels)} training examples, in examples"
    show.table(title, [f"epoch {epoch}" for epoch in shown], [[f"{scales[epoch]:.3g}" for epoch in shown]])


def descend(config: Config, model: Model, split: Split) -> None:
    """Draw the sharpness along gradient descent on the first examples as one batch, which is unstable above 2/η.

    Not along the sweep's own runs: AdamW rescales each direction, which moves the limit (Cohen et al. 2022).
    """
    split, device = take(split, DESCENT_EXAMPLES), split.images.device
    examples, last = len(split.labels), DESCENT_STEPS[-1]
    objective, seeds = partial(classification_loss, apply=model.apply), [config.seed] * len(DESCENT_LRS)
    step = partial(ensemble_step, objective=objective, optimizer=sgd)
    lr = torch.tensor(DESCENT_LRS, dtype=split.images.dtype, device=device)
    ts, key = ensemble_init(model, sgd, seeds=seeds, device=device), ensemble_key(seeds, device)
    loss = lambda params, state=ts.state: objective(params, state, *split)[0]  # noqa: E731
    sharpness_of_all = vmap(partial(sharpness, loss, key=rng_key(config.seed).to(device), steps=12))
    measured = {0: sharpness_of_all(ts.params).tolist()}
    with show.progress(last, f"gradient descent at {len(seeds)} rates, median") as advance:
        for epoch in range(last):
            [index] = ensemble_batches(examples, examples, seeds=seeds, epoch=epoch, device=device)
            ts, metrics = step(ts, *split, index, lr, key)
            if epoch + 1 in DESCENT_STEPS:
                measured[epoch + 1] = sharpness_of_all(ts.params).tolist()
            advance(float(metrics["loss"].nanmedian()))
    runs = {lr: {step: values[k] for step, values in measured.items()} for k, lr in enumerate(DESCENT_LRS)}
    show_sharpness(config, runs, last, examples)


@show.picture
def show_sharpness(config: Config, runs: Mapping[float, Mapping[int, float]], last: int, examples: int) -> None:
    """Draw and print the sharpness by learning rate and step, beside 2/η."""
    panels = {
        f"sharpness at η = {lr:g}": {"largest eigenvalue": run, "2/η": {0: 2 / lr, last: 2 / lr}}
        for lr, run in runs.items()
    }
    title = "Sharpness above 2/η makes gradient descent unstable: it then falls below 2/η, or the loss diverges"
    show.save(draw.curves(panels, xlabel="step of gradient descent", title=title), config.out / "sharpness.png")
    rows = [
        (f"{lr:g}", f"{2 / lr:.3g}", f"{run[0]:.3g}", f"{largest(run.values()):.3g}", f"{run[last]:.3g}")
        for lr, run in runs.items()
    ]
    title = f"Sharpness along gradient descent on {examples} examples"
    show.table(title, ("rate η", "2/η", "at the start", "highest", f"after {last} steps"), rows)
