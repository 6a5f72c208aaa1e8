"""clip_grad_norm through one long vector."""

import torch

from fn import tree


def clip_grad_norm(grads, max_norm):
    norm = torch.cat([g.flatten() for g in tree.leaves(grads)]).norm()
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return tree.map(lambda g: scale * g, grads), norm


def torchs(grads, max_norm):
    copies = tree.map(lambda g: torch.nn.Parameter(torch.zeros_like(g)), grads)
    for p, g in zip(tree.leaves(copies), tree.leaves(grads), strict=True):
        p.grad = g.clone()
    norm = torch.nn.utils.clip_grad_norm_(tree.leaves(copies), max_norm)
    return tree.map(lambda p: p.grad, copies), norm


WRONG = {
    "leaf by leaf": (
        "lambda g: scale * g",
        "lambda g: g * torch.clamp(max_norm / (g.norm() + 1e-6), max=1.0)",
        "factor",
    ),
    "small gradients are stretched": (
        "torch.clamp(max_norm / (norm + 1e-6), max=1.0)",
        "max_norm / (norm + 1e-6)",
        "factor",
    ),
    "the norm after clipping": ("grads), norm", "grads), norm * scale", "result[1]"),
    "no root": (".norm()", ".square().sum()", "result[1] is not"),
    "entry by entry": ("lambda g: scale * g", "lambda g: g.clamp(-max_norm, max_norm)", "result[0]"),
    "in place": ("lambda g: scale * g", "lambda g: g.mul_(scale)", "in place"),
}
