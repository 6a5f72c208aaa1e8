"""Boxes, masks and images go through the same transform together

Old: transforms.RandomHorizontalFlip

New: transforms.v2.RandomHorizontalFlip, with tv_tensors

Since: torchvision 0.16

Today: is wrong, silently: the image is mirrored, its boxes stay

Why: The first transforms know images alone. v2 takes any structure, finds
tv_tensors in it, and moves BoundingBoxes and Masks with the image. It
also works on batches. Stable since 0.17.

Read: torchvision.transforms.v2, torchvision.tv_tensors.BoundingBoxes

Gone: transforms.RandomHorizontalFlip
"""

import torch
from torch import Tensor
from torchvision import transforms, tv_tensors
from torchvision.transforms import v2


def given(seed: int) -> tuple[Tensor, Tensor]:
    """An image with one bright pixel, and the box around it"""
    image, left = torch.zeros(1, 4, 8), seed % 3
    image[0, 1, left] = 1
    return image, torch.tensor([[left, 1, left + 1, 2]])


def old(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    flip = transforms.RandomHorizontalFlip(p=1)
    return flip(image), boxes


def new(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    flip = v2.RandomHorizontalFlip(p=1)
    size = (image.shape[-2], image.shape[-1])
    boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
    image, boxes = flip(image, boxes)
    return image, boxes.as_subclass(Tensor)


def wanted(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    left, top, right, bottom = boxes.unbind(dim=1)
    width = image.shape[-1]
    mirrored = [width - right, top, width - left, bottom]
    return image[..., range(width - 1, -1, -1)], torch.stack(
        mirrored, dim=1
    )
