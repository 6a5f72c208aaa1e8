"""The two recipes to beat, as modules: that of pytorch/examples, and a fast one in the spirit of train_mnist_fast."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from experiments.shared import show
from fn.data.datasets import Split, data_root
from fn.data.idx import read_split

BATCH, LR = 256, 1e-2
RECIPE_EPOCHS = 14
"""the epochs of the recipe of pytorch/examples, whether or not it reaches the goal"""
PREPARE = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
"""makes an image what that recipe trains on"""


def fast(split: Split, seed: int) -> Callable:
    """Train a small CNN for one epoch, channels last, by a plain loop.

    Few channels, early pooling, batches of 256, one cycle of Adam with short memories: the ideas of
    github.com/tuomaso/train_mnist_fast; batch norm is ours.
    """
    torch.manual_seed(seed)
    first = [nn.Conv2d(1, 24, 5, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(24), nn.ReLU()]
    second = [nn.Conv2d(24, 32, 3, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU()]
    head = [nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)]
    module = nn.Sequential(*first, *second, *head)
    module = module.to(split.images.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = split.images.contiguous(memory_format=torch.channels_last)
    order = torch.randperm(len(images), device=images.device).split(BATCH)
    optimizer = torch.optim.Adam(module.parameters(), betas=(0.7, 0.9), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=len(order) + 1, cycle_momentum=False)
    for index in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images[index]), split.labels[index]).backward()
        optimizer.step()
        schedule.step()
    module.eval()
    return lambda images: module(images.contiguous(memory_format=torch.channels_last))


class Pictures(Dataset):
    """MNIST's training images, each through PIL and PREPARE when it is asked for, as in torchvision's MNIST.

    That class does not read the archives by themselves.
    """

    def __init__(self) -> None:
        self.images, self.labels = read_split(data_root() / "MNIST" / "raw", "train")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return PREPARE(Image.fromarray(self.images[index].numpy())), int(self.labels[index])


def published(device: torch.device, seed: int) -> Iterator[Callable]:
    """Train by the recipe of pytorch/examples' mnist/main.py, and yield the module as it is after each epoch.

    Two convolutions of 32 and 64 channels, dropout, two linear layers; Adadelta at 1.0, times 0.7 an epoch; batches of
    64, each image through torchvision's ToTensor and Normalize.
    """
    torch.manual_seed(seed)
    convolutions = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]
    head = [nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
    module = nn.Sequential(*convolutions, *head).to(device)
    optimizer = torch.optim.Adadelta(module.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)
    loader = DataLoader(Pictures(), 64)
    for epoch in range(RECIPE_EPOCHS):
        with show.progress(len(loader), f"pytorch/examples, seed {seed}, epoch {epoch + 1}") as advance:
            module.train()
            for x, y in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(module(x.to(device)), y.to(device))
                loss.backward()
                optimizer.step()
                advance(loss.item())
        schedule.step()
        yield module.eval()
