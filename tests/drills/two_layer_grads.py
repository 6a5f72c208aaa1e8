"""two_layer_grads with outer sums written as einsum."""

import torch

from fn.layers import linear


def two_layer_grads(params, x, target):
    w1, w2 = params["fc1"]["weight"], params["fc2"]["weight"]
    z = linear(x, **params["fc1"])
    h = z.clamp(min=0)
    p = torch.softmax(linear(h, **params["fc2"]), dim=1)
    rows = torch.arange(len(target))
    d_a = p.clone()
    d_a[rows, target] -= 1
    d_a = d_a / len(target)
    d_z = torch.where(z > 0, d_a @ w2, torch.zeros_like(z))
    fc1 = {"weight": torch.einsum("bo,bi->oi", d_z, x).reshape(w1.shape), "bias": d_z.sum(0)}
    return {"fc1": fc1, "fc2": {"weight": torch.einsum("bo,bi->oi", d_a, h), "bias": d_a.sum(0)}}


WRONG = {
    "by forward mode": (
        "    w1, w2 = params",
        "    from torch.func import jacfwd\n\n    a = lambda p: linear(linear(x, **p['fc1']).clamp(min=0), **p['fc2'])\n"
        "    return jacfwd(lambda p: torch.nn.functional.cross_entropy(a(p), target))(params)\n    w1, w2 = params",
        "this calls `torch.func.jacfwd`",
    ),
    "by finite differences": (
        "    w1, w2 = params",
        "    from fn.gradcheck import numerical_grad\n\n    a = lambda p: linear(linear(x, **p['fc1']).clamp(min=0), **p['fc2'])\n"
        "    return numerical_grad(lambda p: torch.nn.functional.cross_entropy(a(p), target), params)\n    w1, w2 = params",
        "this calls `fn.gradcheck.numerical_grad`",
    ),
    "not divided by the batch": ("d_a = d_a / len(target)", "", "factor"),
    "relu lets all pass": ("torch.where(z > 0, d_a @ w2, torch.zeros_like(z))", "d_a @ w2", "result.fc1"),
    "softmax without the target": ("d_a[rows, target] -= 1", "", "differ"),
    "sign": ("d_a[rows, target] -= 1", "d_a = -d_a\n    d_a[rows, target] += 1", "sign"),
    "the weight's gradient transposed": (
        'torch.einsum("bo,bi->oi", d_a, h)',
        'torch.einsum("bo,bi->io", d_a, h)',
        "swapped",
    ),
    "softmax over the batch": ("dim=1", "dim=0", "differ"),
}
