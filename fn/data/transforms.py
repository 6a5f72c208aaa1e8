"""Random variation of image batches, all examples at once."""

import torch
from jaxtyping import Float
from torch import Tensor


def random_shift(
    x: Float[Tensor, "batch channels height width"], rng: torch.Generator, *, max_shift: int
) -> Float[Tensor, "batch channels height width"]:
    """Each image moved by up to `max_shift` pixels along both axes; the batch's least value moves in from outside."""
    batch, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, (max_shift,) * 4, value=float(x.min()))
    down, right = torch.randint(0, 2 * max_shift + 1, (2, batch), generator=rng)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(batch), :, down, right]
