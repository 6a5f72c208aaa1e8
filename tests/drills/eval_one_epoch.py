"""eval_one_epoch with lists."""

import torch
import torch.nn.functional as F

from fn.train import ACCURACY


def eval_one_epoch(params, state, batches, *, apply, metrics=ACCURACY):
    functions = {"loss": F.cross_entropy, **metrics}
    values, sizes = {name: [] for name in functions}, []
    with torch.no_grad():
        for x, y in batches:
            logits = apply(params, state, x, train=False)[0]
            sizes.append(len(y))
            for name, f in functions.items():
                values[name].append(f(logits, y).item() * len(y))
    return {name: sum(of) / sum(sizes) for name, of in values.items()}


WRONG = {
    "the mean of the batches": (
        "f(logits, y).item() * len(y)",
        "f(logits, y).item()",
        "sum(of) / sum(sizes)",
        "sum(of) / len(sizes)",
        "result.loss",
    ),
    "in training mode": ("train=False", "train=True", "differ"),
    "statistics are updated": (
        "logits = apply(params, state, x, train=False)[0]",
        "logits, state = apply(params, state, x, train=True)",
        "differ",
    ),
    "the last batch alone": ("sum(of) / sum(sizes)", "of[-1] / sizes[-1]", "result."),
    "a graph is recorded": ("with torch.no_grad():", "if True:", "records no graph"),
    "autograd stays off": (
        "    with torch.no_grad():",
        "    torch.set_grad_enabled(False)\n    if True:",
        "records no graph",
    ),
    "sums": ("sum(of) / sum(sizes)", "sum(of)", "result.loss"),
    "the loss forgotten": ('{"loss": F.cross_entropy, **metrics}', "dict(metrics)", "has no result.loss"),
}
