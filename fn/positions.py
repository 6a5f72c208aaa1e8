"""Position encodings for a transformer; without one, attention sees a set of tokens, not a sequence."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from fn.domains import Count, Natural, Positive
from fn.precision import half_in_float32

Positions = Literal["learned", "sinusoidal", "rotary", "none"]


def _angles(length: int, width: int, base: float) -> Float[Tensor, "{length} pairs"]:
    """Return t · base^(-2i / width) at position t for pair i of the entries: clocks from fast to slow."""
    if width % 2:
        raise ValueError(f"positions: a width of {width} does not divide into pairs; let d_model or d_head be even")
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.arange(length, dtype=torch.float64)[:, None] * frequencies


def sinusoidal_encoding(
    length: Natural, d_model: Count, base: Positive = 1e4, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "{length} {d_model}"]:
    """Return the table p[t, 2i] = sin(t · base^(-2i / d_model)), p[t, 2i + 1] = cos(t · base^(-2i / d_model)).

    A shift by k turns each pair by an angle that depends on k alone: p[t + k] = R_k p[t]. Vaswani et al. 2017,
    section 3.5. ValueError for an odd width.

    >>> sinusoidal_encoding(length=3, d_model=4)
    tensor([[ 0.0000,  1.0000,  0.0000,  1.0000],
            [ 0.8415,  0.5403,  0.0100,  0.9999],
            [ 0.9093, -0.4161,  0.0200,  0.9998]])
    """
    angles = _angles(length, d_model, base)
    return rearrange([angles.sin(), angles.cos()], "two t pairs -> t (pairs two)").to(dtype)


@half_in_float32("x")
def rotary_encoding(x: Float[Tensor, "*batch seq d_head"], base: Positive = 1e4) -> Float[Tensor, "*batch seq d_head"]:
    """Rotate entries (2i, 2i + 1) of row t by the angle t · base^(-2i / d_head).

    The product of a rotated query and a rotated key depends on their positions through the distance alone. Su et al.
    2021, section 3.2. ValueError for an odd width.

    >>> rotary_encoding(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    tensor([[ 1.0000,  0.0000],
            [ 0.5403,  0.8415],
            [-0.4161,  0.9093]])
    """
    angles = _angles(x.shape[-2], x.shape[-1], base)
    cos, sin = (part.to(x.device, x.dtype) for part in (angles.cos(), angles.sin()))
    first, second = rearrange(x, "... seq (pairs two) -> two ... seq pairs", two=2)
    turned = [first * cos - second * sin, first * sin + second * cos]
    return rearrange(turned, "two ... seq pairs -> ... seq (pairs two)")


def add_positions(
    x: Float[Tensor, "*batch seq d_model"], positions: Positions, weight: Float[Tensor, "longest d_model"] | None = None
) -> Float[Tensor, "*batch seq d_model"]:
    """Return x + p, p[t] being row t of the sinusoidal or the learned table; "rotary" and "none" add nothing.

    ValueError for a sequence longer than the learned table.

    >>> x, table = torch.zeros(2, 3, 4), torch.ones(5, 4)
    >>> add_positions(x, "learned", table).shape
    torch.Size([2, 3, 4])
    """
    if positions == "sinusoidal":
        return x + sinusoidal_encoding(x.shape[-2], x.shape[-1], dtype=x.dtype).to(x.device)
    if weight is None:
        return x
    if x.shape[-2] > len(weight):
        raise ValueError(f"positions: a sequence of {x.shape[-2]} is longer than the {len(weight)} that were learned")
    return x + weight[: x.shape[-2]]
