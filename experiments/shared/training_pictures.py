"""Pictures of a training run, and of the convolutional network that it ends with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from experiments.shared import show
from fn import draw
from fn.data.datasets import Dataset
from fn.layers import softmax
from fn.metrics import confusion_matrix
from fn.models import Model
from fn.trace import trace
from fn.train import Metrics, TrainState


@show.picture
def draw_metrics(runs: Mapping[str, Sequence[Metrics]], path: Path) -> None:
    """Draw the loss, on a logarithmic axis, and the accuracy over the steps, a line per run."""
    panels = {
        quantity: {name: [metrics[quantity] for metrics in history] for name, history in runs.items()}
        for quantity in ("loss", "accuracy")
    }
    show.save(draw.curves(panels, log=["loss"]), path)


@show.picture
def draw_losses(losses: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw the loss over the steps, on a logarithmic axis, a line per run."""
    show.save(draw.curves({"loss": losses}, log=["loss"]), path)


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
    show.save(draw.image_grid(kernels, signed=True, title="kernels of conv1: red adds, blue subtracts"), path)


@show.picture
def draw_feature_maps(model: Model, ts: TrainState, dataset: Dataset, path: Path) -> None:
    """Draw one held-out image, and below it seven channels of each block's output."""
    image = dataset.test.images[:1]
    _, calls = trace(ts.params, model.apply, ts.params, ts.state, image, train=False)
    maps = [call.result[0, :7] for call in calls if call.op == "relu"]
    rows = [F.interpolate(channels[None], size=image.shape[2:])[0] for channels in maps]
    blank = torch.zeros_like(image[0]).expand(6, -1, -1)
    title = "one image, then 7 channels of each block"
    show.save(draw.image_grid(torch.cat([image[0], blank, *rows]), columns=7, title=title), path)


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
    show.save(draw.image_grid(images[worst, 0], titles, title="the worst of the held-out images"), out / "mistakes.png")
    show.save(draw.confusion(confusion_matrix(logits, labels).cpu(), name), out / "confusion.png")
