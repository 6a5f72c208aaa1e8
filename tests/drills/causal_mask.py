"""causal_mask by comparing positions."""

import torch


def causal_mask(queries, keys, device=None):
    i, j = torch.arange(queries, device=device), torch.arange(keys, device=device)
    return j[None, :] <= i[:, None]


WRONG = {
    "the future": ("j[None, :] <= i[:, None]", "j[None, :] >= i[:, None]", "wrong"),
    "inverted": ("j[None, :] <= i[:, None]", "j[None, :] > i[:, None]", "inverted"),
    "not itself": ("j[None, :] <= i[:, None]", "j[None, :] < i[:, None]", "off by one"),
    "aligned at the end": ("j[None, :] <= i[:, None]", "j[None, :] - keys <= i[:, None] - queries", "wrong"),
    "keys by queries": ("j[None, :] <= i[:, None]", "j[:, None] <= i[None, :]", "shape"),
    "always on the CPU": (
        "torch.arange(queries, device=device), torch.arange(keys, device=device)",
        "torch.arange(queries), torch.arange(keys)",
        "on cpu, expected meta",
    ),
    "numbers": ("j[None, :] <= i[:, None]", "(j[None, :] <= i[:, None]).float()", "Bool"),
}
