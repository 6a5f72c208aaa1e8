"""Pictures of a training run, and of the convolutional network that it ends with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.shared import show
from experiments.shared.titles import told
from fn import draw
from fn.data.datasets import Dataset
from fn.draw import Seeds
from fn.layers import softmax
from fn.metrics import confusion_matrix
from fn.models import Model
from fn.trace import trace
from fn.train import Metrics, TrainState


@show.picture
def draw_metrics(runs: Mapping[str, Sequence[Sequence[Metrics]]], path: Path) -> None:
    """Draw the loss, on a logarithmic axis, and the accuracy over the steps, from {name: a history per seed}."""
    panels = {
        quantity: {name: Seeds([[m[quantity] for m in history] for history in seeds]) for name, seeds in runs.items()}
        for quantity in ("loss", "accuracy")
    }
    title = " ".join(told(quantity, lines) for quantity, lines in panels.items())
    show.save(draw.curves(panels, log=["loss"], title=title), path)


@show.picture
def draw_losses(losses: Mapping[str, Sequence[float] | Seeds], path: Path) -> None:
    """Draw the loss over the steps, on a logarithmic axis, a line per run, or a band per group of seeds."""
    show.save(draw.curves({"loss": losses}, log=["loss"], title=told("loss", losses)), path)


def draw_network(model: Model, ts: TrainState, dataset: Dataset, out: Path) -> None:
    """Show what a convolutional network has learned: kernels, feature maps, mistakes on held-out images, parameters."""
    show.parameters(ts.params, "the network, trained")
    draw_kernels(ts, out / "filters.png")
    draw_feature_maps(model, ts, dataset, out / "feature_maps.png")
    draw_mistakes(model, ts, dataset, out)


@show.picture
def draw_kernels(ts: TrainState, path: Path) -> None:
    """Draw the kernels of the first convolution, of their first input channel."""
    kernels = ts.params["conv1"]["weight"][:, 0]
    show.save(
        draw.image_grid(
            kernels, signed=True, title="Kernels of conv1: red adds, blue subtracts; stripes look for edges"
        ),
        path,
    )


@show.picture
def draw_feature_maps(model: Model, ts: TrainState, dataset: Dataset, path: Path) -> None:
    """Draw one held-out image, and below it seven channels of each block's output."""
    image = dataset.test.images[:1]
    _, calls = trace(ts.params, model.apply, ts.params, ts.state, image, train=False)
    convolutions = [call.layer for call in calls if call.op == "conv2d"]
    blocks = [call.result[0] for call in calls if call.op == "relu"]
    rows = [F.interpolate(block[None, :7], size=image.shape[2:])[0] for block in blocks]
    blank = torch.zeros_like(image[0]).expand(6, -1, -1)
    layers = ["image", *(f"{convolution}\nto relu" for convolution in convolutions)]
    names = [f"{layer}\n{x.shape[-2]} × {x.shape[-1]}" for layer, x in zip(layers, (image, *blocks), strict=True)]
    title = "One image, then 7 channels of each block: each deeper block sees more of it, and less finely"
    show.save(draw.image_grid(torch.cat([image[0], blank, *rows]), columns=7, title=title, row_names=names), path)


@show.picture
@torch.no_grad()
def draw_mistakes(model: Model, ts: TrainState, dataset: Dataset, out: Path) -> None:
    """Draw the 16 held-out images whose class was given the least probability, and the confusion matrix."""
    images, labels = dataset.test
    logits = torch.cat([model.apply(ts.params, ts.state, x, train=False)[0] for x in images.split(1000)])
    p = softmax(logits, dim=1)
    worst = p[torch.arange(len(labels)), labels].argsort()[:16]
    name = dataset.classes
    titles = [f"{name[int(labels[i])]}, read as {name[int(p[i].argmax())]}\np = {p[i].max():.2f}" for i in worst]
    title = (
        f"Held-out images with the least probability for what they are: {int((p.argmax(1) != labels).sum())} misread"
    )
    show.save(draw.image_grid(images[worst, 0], titles, title=title), out / "mistakes.png")
    matrix = confusion_matrix(logits, labels).cpu()
    show.save(draw.confusion(matrix, name, title=_most_confused(matrix, name)), out / "confusion.png")


def _most_confused(matrix: Tensor, names: Sequence[str]) -> str:
    """Return the title of a confusion matrix: how many are right, and the commonest mistake."""
    wrong = matrix * ~torch.eye(len(matrix), dtype=torch.bool)
    target, predicted = divmod(int(wrong.argmax()), len(matrix))
    right = f"{int(matrix.trace()):,} of {int(matrix.sum()):,} are right"
    most = f"the commonest mistake is {names[target]} read as {names[predicted]}, {int(wrong.max())} times"
    return f"{right}; {most}" if wrong.any() else right
