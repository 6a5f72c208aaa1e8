"""Transforms of images together with their boxes, as in fn.data.transforms; random ones are f(x, objects, key)."""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fn.data.transforms import affine, horizontal_flip
from fn.detection.boxes import box_area, clip_boxes_to_image
from fn.domains import Count, Magnitude, Positive, Probability
from fn.rng import fold_in, uniform


def flip_boxes(objects: Float[Tensor, "*batch 5"], width: Count) -> Float[Tensor, "*batch 5"]:
    """Return the objects of the image mirrored left to right."""
    x1, y1, x2, y2, label = objects.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2, label], dim=-1)


def zoom(
    x: Float[Tensor, "batch channels height width"],
    objects: Float[Tensor, "batch objects 5"],
    translate: Float[Tensor, "batch 2"],
    scale: Float[Tensor, " batch"],
    *,
    visible: Probability = 0.3,
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch objects 5"]]:
    """Scale each image about its centre and move it (right, down) by pixels: a scale above 1 crops, below 1 pads.

    Boxes are clipped at the border; an object is dropped where less than `visible` of its area is left.
    """
    *_, height, width = x.shape
    middle = torch.tensor([width, height], dtype=x.dtype, device=x.device) / 2
    shift = rearrange(middle + translate - scale.unsqueeze(1) * middle, "batch xy -> batch 1 xy")
    moved = objects[..., :4] * rearrange(scale, "batch -> batch 1 1") + shift.repeat(1, 1, 2)
    boxes = clip_boxes_to_image(moved, (height, width))
    gone = (box_area(boxes) <= 0) | (box_area(boxes) < visible * box_area(moved))
    return affine(x, torch.zeros_like(scale), translate, scale), _with_boxes(objects, boxes, gone)


def _with_boxes(
    objects: Float[Tensor, "batch objects 5"],
    boxes: Float[Tensor, "batch objects 4"],
    gone: Bool[Tensor, "batch objects"],
) -> Float[Tensor, "batch objects 5"]:
    """Put the boxes into the objects; where one is gone, or was padding, padding: (0, 0, 0, 0, -1)."""
    padding = torch.tensor([0, 0, 0, 0, -1], dtype=objects.dtype, device=objects.device)
    absent = (gone | (objects[..., 4] < 0)).unsqueeze(-1)
    return torch.where(absent, padding, torch.cat([boxes, objects[..., 4:]], dim=-1))


def random_flip(
    x: Float[Tensor, "batch channels height width"],
    objects: Float[Tensor, "batch objects 5"],
    key: Int64[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch objects 5"]]:
    """Mirror each image and its boxes with probability 1/2."""
    flipped = rearrange(uniform(key, ()) < 0.5, "batch -> batch 1 1 1")
    mirrored = _with_boxes(objects, flip_boxes(objects, x.shape[-1])[..., :4], objects[..., 4] < 0)
    return torch.where(flipped, horizontal_flip(x), x), torch.where(flipped.squeeze(1), mirrored, objects)


def random_zoom(
    x: Float[Tensor, "batch channels height width"],
    objects: Float[Tensor, "batch objects 5"],
    key: Int64[Tensor, " batch"],
    *,
    scale: tuple[Positive, Positive] = (0.8, 1.25),
    translate: Magnitude = 0.15,
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch objects 5"]]:
    """Scale each image by a factor from the range `scale` and move it by up to ±`translate` of its width and height."""
    right, down, size = uniform(key, (3,)).to(x.dtype).unbind(1)
    *_, height, width = x.shape
    moves = torch.stack([(2 * right - 1) * translate * width, (2 * down - 1) * translate * height], dim=1)
    return zoom(x, objects, moves, scale[0] + size * (scale[1] - scale[0]))


def compose(
    x: Float[Tensor, "batch channels height width"],
    objects: Float[Tensor, "batch objects 5"],
    key: Int64[Tensor, " batch"],
    *,
    transforms: Sequence[Callable],
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch objects 5"]]:
    """Apply the transforms one after the other, each with keys of its own."""
    for i, transform in enumerate(transforms):
        x, objects = transform(x, objects, fold_in(key, i))
    return x, objects
