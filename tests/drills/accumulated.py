"""accumulated over a list of parts."""

from torch.func import grad_and_value

from fn import tree
from fn.metrics import count_targets
from fn.rng import fold_in


def accumulated(objective, params, state, x, y, *, key, parts):
    done, shares = [], [int(count_targets(targets)) for targets in y.chunk(parts)]
    shares = [n / sum(shares) for n in shares] if any(shares) else [1 / len(shares)] * len(shares)
    for i, (data, targets) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
        own = fold_in(key, i)
        grads, (loss, (metrics, state)) = grad_and_value(objective, has_aux=True)(params, state, data, targets, key=own)
        share = shares[i]
        if share:
            done.append(tree.map(lambda t, share=share: t * share, {"grads": grads, "loss": loss, "metrics": metrics}))
    total = done[0]
    for part in done[1:]:
        total = tree.map(lambda a, b: a + b, total, part)
    return total["grads"], (total["loss"], (total["metrics"], state))


WRONG = {
    "added, not averaged": ("share = shares[i]", "share = 1.0", "result[0]"),
    "every part weighs alike": ("share = shares[i]", "share = 1 / parts", "result[0]"),
    "parts weigh their examples": (
        "share = shares[i]",
        "share = len(targets) / len(y)",
        "weigh the targets that count",
    ),
    "the first part twice": (
        "total = done[0]\n    for part in done[1:]:",
        "total = done[0]\n    for part in done:",
        "result[0]",
    ),
    "the last part alone": (
        "total = done[0]\n    for part in done[1:]:\n        total = tree.map(lambda a, b: a + b, total, part)",
        "total = done[-1]",
        "result[0]",
    ),
    "one key for all parts": (
        "own = fold_in(key, i)",
        "own = fold_in(key, 0)",
        "hands the statistics on and draws anew",
    ),
    "each part begins anew": (
        "(metrics, state)) = grad_and_value",
        "(metrics, after)) = grad_and_value",
        "running_mean",
    ),
}
