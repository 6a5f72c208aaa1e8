"""eval_one_epoch with lists."""

import torch
import torch.nn.functional as F

from fn.metrics import count
from fn.train import ACCURACY


def eval_one_epoch(params, state, batches, *, apply, metrics=ACCURACY):
    functions = {"loss": F.cross_entropy, **metrics}
    values, sizes = ({name: [] for name in functions} for _ in "ab")
    with torch.no_grad():
        for x, y in batches:
            logits = apply(params, state, x, train=False)[0]
            for name, f in functions.items():
                n = int(count(f, y))
                sizes[name].append(n)
                values[name].append(f(logits, y).item() * n if n else 0.0)
    return {name: sum(of) / sum(sizes[name]) if sum(sizes[name]) else float("nan") for name, of in values.items()}


WRONG = {
    "the mean of the batches": (
        "f(logits, y).item() * n",
        "f(logits, y).item()",
        "sum(of) / sum(sizes[name])",
        "sum(of) / len(sizes[name])",
        "result.loss",
    ),
    "in training mode": ("train=False", "train=True", "differ"),
    "statistics are updated": (
        "logits = apply(params, state, x, train=False)[0]",
        "logits, state = apply(params, state, x, train=True)",
        "differ",
    ),
    "the last batch alone": ("sum(of) / sum(sizes[name])", "of[-1] / sizes[name][-1]", "result."),
    "batches weigh their examples": ("n = int(count(f, y))", "n = len(y)", "over what counts"),
    "a graph is recorded": ("with torch.no_grad():", "if True:", "records no graph"),
    "autograd stays off": (
        "    with torch.no_grad():",
        "    torch.set_grad_enabled(False)\n    if True:",
        "records no graph",
    ),
    "sums": ("sum(of) / sum(sizes[name])", "sum(of)", "result.loss"),
    "the loss forgotten": ('{"loss": F.cross_entropy, **metrics}', "dict(metrics)", "has no result.loss"),
}
