"""eval_one_epoch with lists."""

import torch
import torch.nn.functional as F

from fn.metrics import count_targets
from fn.train import ACCURACY


def eval_one_epoch(params, state, batches, *, apply, metrics=ACCURACY):
    functions = {"loss": (F.cross_entropy, count_targets), **metrics}
    values, sizes = ({name: [] for name in functions} for _ in "ab")
    with torch.no_grad():
        for x, y in batches:
            logits = apply(params, state, x, train=False)[0]
            for name, (mean, over) in functions.items():
                n = int(over(y))
                sizes[name].append(n)
                values[name].append(mean(logits, y).item() * n if n else 0.0)
    return {name: sum(of) / sum(sizes[name]) if sum(sizes[name]) else float("nan") for name, of in values.items()}


WRONG = {
    "the mean of the batches": (
        "mean(logits, y).item() * n",
        "mean(logits, y).item()",
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
    "batches weigh their examples": ("n = int(over(y))", "n = len(y)", "over what counts"),
    "a graph is recorded": ("with torch.no_grad():", "if True:", "records no graph"),
    "autograd stays off": (
        "    with torch.no_grad():",
        "    torch.set_grad_enabled(False)\n    if True:",
        "records no graph",
    ),
    "sums": ("sum(of) / sum(sizes[name])", "sum(of)", "result.loss"),
    "the loss forgotten": (
        '{"loss": (F.cross_entropy, count_targets), **metrics}',
        "dict(metrics)",
        "has no result.loss",
    ),
}
