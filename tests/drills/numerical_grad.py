"""numerical_grad with plain loops."""

import torch

from fn import tree


def numerical_grad(f, params, eps=1e-6, chunk_size=256):
    flat, slopes = tree.flatten(params), {}
    for name, leaf in flat.items():
        slope = torch.zeros(leaf.numel(), dtype=leaf.dtype)
        for i in range(leaf.numel()):
            values = []
            for step in (eps, -eps):
                moved = leaf.reshape(-1).clone()
                moved[i] += step
                values.append(f(tree.unflatten(flat | {name: moved.reshape(leaf.shape)})))
            slope[i] = (values[0] - values[1]) / (2 * eps)
        slopes[name] = slope.reshape(leaf.shape)
    return tree.unflatten(slopes)


WRONG = {
    "divided by ε, not 2ε": ("(2 * eps)", "eps", "factor of 2"),
    "from one side": ("(eps, -eps)", "(eps, 0.0)", "(2 * eps)", "eps", "wrong"),
    "the leaf itself is moved": ("leaf.reshape(-1).clone()", "leaf.flatten()", "0.5"),
    "in float32": (
        "slope = torch.zeros(leaf.numel(), dtype=leaf.dtype)",
        "slope = torch.zeros(leaf.numel())",
        "dtype",
    ),
    "sign": ("(eps, -eps)", "(-eps, eps)", "sign"),
    "the first entry alone": ("range(leaf.numel())", "range(1)", "wrong"),
}
