"""Standardise and augment image batches, all examples at once.

A random transform is `f(x, key)` with a key per image. The result for an image depends on its own key alone: a batch of
one, a batch of many and any worker process give the same bits. Pixels from outside an image have the least value of
that image, its background.
"""

from collections.abc import Callable, Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int, Int64
from torch import Tensor

from fn.domains import Count, Magnitude, Natural, Positive, Probability, Share
from fn.rng import fold_in, randint, uniform


def channel_stats(x: Float[Tensor, "batch channels height width"]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Return (mean, std) of each channel over all images and positions."""
    std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
    return mean, std


def normalize(
    x: Float[Tensor, "batch channels height width"],
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
) -> Float[Tensor, "batch channels height width"]:
    """Return (x - mean) / std, channel by channel. A channel that never varies, std 0, is only centred."""
    std = torch.where(std == 0, 1.0, std)
    return (x - rearrange(mean, "channels -> channels 1 1")) / rearrange(std, "channels -> channels 1 1")


def pad_crop(
    x: Float[Tensor, "batch channels height width"],
    top: Int[Tensor, " batch"],
    left: Int[Tensor, " batch"],
    *,
    padding: Natural,
) -> Float[Tensor, "batch channels height width"]:
    """Pad every side, then cut the original size out at (top, left), each from 0 to 2·padding."""
    *_, height, width = x.shape
    grown = (height + 2 * padding, width + 2 * padding)
    padded = repeat(x.amin(dim=(1, 2, 3)), "batch -> batch channels h w", channels=x.shape[1], h=grown[0], w=grown[1])
    padded = padded.clone()
    padded[..., padding : padding + height, padding : padding + width] = x
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def horizontal_flip(x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
    """Mirror left and right."""
    return x.flip(-1)


def affine(
    x: Float[Tensor, "batch channels height width"],
    angle: Float[Tensor, " batch"],
    translate: Float[Tensor, "batch 2"],
    scale: Float[Tensor, " batch"],
) -> Float[Tensor, "batch channels height width"]:
    """Rotate each image clockwise by `angle` degrees, scale it about its centre, move it (right, down) by pixels.

    A pixel p of the result is read, bilinearly, at R(-angle) (p - translate) / scale, both from the centre.
    """
    *_, height, width = x.shape
    down = torch.arange(height, device=x.device) - (height - 1) / 2
    right = torch.arange(width, device=x.device) - (width - 1) / 2
    along = rearrange(right, "w -> 1 1 w") - rearrange(translate[:, 0], "batch -> batch 1 1")
    below = rearrange(down, "h -> 1 h 1") - rearrange(translate[:, 1], "batch -> batch 1 1")
    cos, sin, size = (rearrange(f, "batch -> batch 1 1") for f in (angle.deg2rad().cos(), angle.deg2rad().sin(), scale))
    return _bilinear(
        x,
        rows=(cos * below - sin * along) / size + (height - 1) / 2,
        columns=(cos * along + sin * below) / size + (width - 1) / 2,
    )


def _bilinear(
    x: Float[Tensor, "batch channels height width"],
    rows: Float[Tensor, "batch height width"],
    columns: Float[Tensor, "batch height width"],
) -> Float[Tensor, "batch channels height width"]:
    """Return Σ over the four pixels around (row, column) of (1 - |Δrow|) (1 - |Δcolumn|) · pixel"""
    *_, height, width = x.shape
    flat, outside = x.flatten(2), x.amin(dim=(1, 2, 3), keepdim=True)
    y = torch.zeros_like(x)
    for row in (rows.floor(), rows.floor() + 1):
        for column in (columns.floor(), columns.floor() + 1):
            weight = (1 - (rows - row).abs()) * (1 - (columns - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            pixel = flat.gather(2, repeat(index, "batch h w -> batch channels (h w)", channels=x.shape[1])).view_as(x)
            y = y + weight.unsqueeze(1) * torch.where(inside.unsqueeze(1), pixel, outside)
    return y


def cutout(
    x: Float[Tensor, "batch channels height width"],
    top: Int[Tensor, " batch"],
    left: Int[Tensor, " batch"],
    *,
    size: Natural,
) -> Float[Tensor, "batch channels height width"]:
    """Set a square to 0, the mean of standardised pixels. Its upper left corner may lie outside the image."""
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape[2:])
    down = rearrange(rows, "h -> 1 h 1") - rearrange(top, "batch -> batch 1 1")
    right = rearrange(columns, "w -> 1 1 w") - rearrange(left, "batch -> batch 1 1")
    inside = (down >= 0) & (down < size) & (right >= 0) & (right < size)
    return torch.where(inside.unsqueeze(1), 0.0, x)


def random_crop(
    x: Float[Tensor, "batch channels height width"], key: Int64[Tensor, " batch"], *, padding: Natural = 2
) -> Float[Tensor, "batch channels height width"]:
    """Move each image by up to `padding` pixels along both axes."""
    top, left = randint(key, 0, 2 * padding + 1, (2,)).unbind(1)
    return pad_crop(x, top, left, padding=padding)


def random_horizontal_flip(
    x: Float[Tensor, "batch channels height width"], key: Int64[Tensor, " batch"], *, p: Probability = 0.5
) -> Float[Tensor, "batch channels height width"]:
    """Mirror each image with probability `p`."""
    flipped = rearrange(uniform(key, ()) < p, "batch -> batch 1 1 1")
    return torch.where(flipped, horizontal_flip(x), x)


def random_affine(
    x: Float[Tensor, "batch channels height width"],
    key: Int64[Tensor, " batch"],
    *,
    degrees: Magnitude = 10.0,
    translate: Magnitude = 0.1,
    scale: tuple[Positive, Positive] = (0.9, 1.1),
) -> Float[Tensor, "batch channels height width"]:
    """Rotate by up to ±`degrees`, move by up to ±`translate` of each side, scale by a factor within `scale`."""
    turn, right, down, size = uniform(key, (4,)).to(x.dtype).unbind(1)
    *_, height, width = x.shape
    moves = torch.stack([(2 * right - 1) * translate * width, (2 * down - 1) * translate * height], dim=1)
    return affine(x, (2 * turn - 1) * degrees, moves, scale[0] + size * (scale[1] - scale[0]))


def random_resized_crop(
    x: Float[Tensor, "batch channels height width"], key: Int64[Tensor, " batch"], *, area: Share = 0.5
) -> Float[Tensor, "batch channels height width"]:
    """Cut out a random part of each image, at least `area` of its area, and scale it up to the size of the image.

    The part has the proportions of the image. After Szegedy et al. 2015.
    """
    right, down, share = uniform(key, (3,)).to(x.dtype).unbind(1)
    *_, height, width = x.shape
    scale = (area + share * (1 - area)).rsqrt()
    room = (scale - 1) / 2  # to either side, in sides of the image, from the middle of its first pixel to its last's
    moves = torch.stack([(2 * right - 1) * room * (width - 1), (2 * down - 1) * room * (height - 1)], dim=1)
    return affine(x, torch.zeros_like(scale), moves, scale)


def random_cutout(
    x: Float[Tensor, "batch channels height width"], key: Int64[Tensor, " batch"], *, size: Count | None = None
) -> Float[Tensor, "batch channels height width"]:
    """Set a square about a random pixel to 0; `size` is a third of the height unless given. DeVries and Taylor 2017."""
    *_, height, width = x.shape
    size = height // 3 if size is None else size
    row, column = (uniform(key, (2,)) * torch.tensor([height, width], device=x.device)).long().unbind(1)
    return cutout(x, row - size // 2, column - size // 2, size=size)


def compose(
    x: Float[Tensor, "batch channels height width"],
    key: Int64[Tensor, " batch"],
    *,
    transforms: Sequence[Callable],
) -> Float[Tensor, "batch channels height width"]:
    """Apply the transforms in turn, each with its own keys."""
    for i, transform in enumerate(transforms):
        x = transform(x, fold_in(key, i))
    return x
