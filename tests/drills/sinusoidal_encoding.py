"""sinusoidal_encoding by filling every other column."""

import torch


def sinusoidal_encoding(length, d_model, base=1e4, *, dtype=torch.float32):
    if d_model % 2:
        raise ValueError("positions: the width is odd")
    p = torch.zeros(length, d_model, dtype=torch.float64)
    t = torch.arange(length).double()[:, None]
    i = torch.arange(d_model // 2).double()
    angles = t / base ** (2 * i / d_model)
    p[:, 0::2] = angles.sin()
    p[:, 1::2] = angles.cos()
    return p.to(dtype)


WRONG = {
    "halves, not interleaved": (
        "p[:, 0::2] = angles.sin()\n    p[:, 1::2]",
        "p[:, : d_model // 2] = angles.sin()\n    p[:, d_model // 2 :]",
        "other places",
    ),
    "i, not 2i": ("(2 * i / d_model)", "(i / d_model)", "wrong"),
    "sine and cosine swapped": (
        "p[:, 0::2] = angles.sin()\n    p[:, 1::2]",
        "p[:, 1::2] = angles.sin()\n    p[:, 0::2]",
        "wrong",
    ),
    "an odd width is taken": (
        "if d_model % 2:",
        "if d_model % 2:\n        return sinusoidal_encoding(length, d_model + 1, base, dtype=dtype)[:, :-1]\n    if False:",
        "refused",
    ),
    "positions from 1": ("torch.arange(length)", "(1 + torch.arange(length))", "wrong in all"),
    "clocks that speed up": ("t / base **", "t * base **", "wrong"),
    "the base is fixed": ("base ** (", "1e4 ** (", "`base=10000.0`"),
}
