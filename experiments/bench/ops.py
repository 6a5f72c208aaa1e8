"""The single operations that `just bench` times: ours, and torch's beside them."""

from collections import deque
from collections.abc import Callable
from functools import partial

import torch
from torch.func import grad
from torch.utils.data import DataLoader, TensorDataset
from torchvision import ops

from experiments.bench.torch_steps import Task, Variant, random_mnist
from experiments.bench.workloads import SIDE
from fn import tree
from fn.conv import conv2d, conv2d_init, conv2d_unfold
from fn.data.datasets import Split
from fn.data.loader import batches, epoch_order
from fn.detection.boxes import batched_nms, nms
from fn.rng import generator


def convolution(task: Task, *, way: Callable) -> Variant:
    """Return the convolution of Lab 1, forward and backward."""
    rng = generator(task.seed)
    inputs = {"x": torch.randn(32, 32, 14, 14, generator=rng), **conv2d_init(rng, 32, 64, 3)}
    inputs = tree.to(inputs, task.device)
    weights = torch.randn(32, 64, 14, 14, generator=rng).to(task.device)
    return Variant(lambda carry: grad(lambda inputs: (way(**inputs, padding="same") * weights).sum())(inputs))


def loader(task: Task, *, by_batch: bool) -> Variant:
    """Return an epoch of 5,120 images of 28×28 in random order, batches of 128."""
    split = Split(*random_mnist(5120, task.seed))
    order = epoch_order(5120, seed=task.seed, epoch=0).tolist()
    by_example = DataLoader(TensorDataset(*split), 128, sampler=order)
    return Variant(lambda carry: deque(batches(split, 128, seed=task.seed) if by_batch else by_example, maxlen=0))


def suppression(task: Task, *, way: Callable, classes: int = 0) -> Variant:
    """Return non-maximum suppression among 5,000 boxes, a dozen for each of 400 objects, on one thread."""
    torch.set_num_threads(1)  # torchvision's kernel has no more
    rng = generator(task.seed)
    objects = torch.rand(400, 4, generator=rng)
    boxes = objects[torch.randint(400, (5000,), generator=rng)] + 0.01 * torch.randn(5000, 4, generator=rng)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + 0.05 + 0.1 * boxes[:, 2:].abs()], dim=1).to(task.device)
    scores = torch.rand(5000, generator=rng).to(task.device)
    detections = (boxes, scores)
    if classes:
        detections = (*detections, torch.randint(classes, (5000,), generator=rng).to(task.device))
    return Variant(lambda carry: way(*detections, 0.5))


def matrix_product(task: Task) -> Variant:
    """Return the product of two large matrices, the peak of the machine."""
    a, b = torch.randn(2, SIDE, SIDE, generator=generator(task.seed)).to(task.device)
    return Variant(lambda carry: a @ b)


OPS: dict[str, dict[str, Callable[[Task], Variant]]] = {
    "convolution": {"native": partial(convolution, way=conv2d), "unfold": partial(convolution, way=conv2d_unfold)},
    "loader": {"by batch": partial(loader, by_batch=True), "DataLoader": partial(loader, by_batch=False)},
    "NMS": {"written out": partial(suppression, way=nms), "torchvision": partial(suppression, way=ops.nms)},
    "NMS of 10 classes": {
        "written out": partial(suppression, way=batched_nms, classes=10),
        "torchvision": partial(suppression, way=ops.batched_nms, classes=10),
    },
    "matrix product": {"float32": matrix_product},
}
