"""The whole of Lab 2: each function as in its drill, and the difference of two runs leaf by leaf."""

import torch
import torch.nn.functional as F
from torch.func import grad_and_value

from experiments.train import folder
from experiments.train.run import Run
from fn import tree
from fn.metrics import count_targets
from fn.rng import fold_in
from fn.train import ACCURACY, TrainState


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


def train_step(ts, x, y, *, objective, optimizer, key):
    key = fold_in(key, ts.opt_state["step"])
    grads, (_, aux) = grad_and_value(lambda p: objective(p, ts.state, x, y, key=key), has_aux=True)(ts.params)
    metrics, state = aux
    params, opt_state = optimizer.update(ts.params, grads, ts.opt_state)
    norm = sum((g * g).sum() for g in tree.leaves(grads)) ** 0.5
    return TrainState(params, state, opt_state), {**metrics, "grad_norm": norm}


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


def top_k_accuracy(input, target, k, *, ignore_index=-100):
    if not 1 <= k <= input.shape[1]:
        raise ValueError(f"top_k_accuracy: k={k} is not between 1 and {input.shape[1]}")
    counted = target != ignore_index
    best = input.sort(dim=1, descending=True, stable=True).indices[:, :k]
    found = (best == target.unsqueeze(1)).any(dim=1)
    return (found & counted).sum() / counted.sum()


def largest_difference(run: Run, whole: Run) -> float:
    if folder.log_file(run.config.out).read_bytes() != folder.log_file(whole.config.out).read_bytes():
        return float("inf")
    mine, theirs = (tree.leaves(one.ts._asdict()) for one in (run, whole))
    gaps = torch.stack([(a.double() - b.double()).abs().max() for a, b in zip(mine, theirs, strict=True)])
    return float(gaps.max())


WRONG = {
    "the kth alone": (
        "[:, :k]",
        "[:, k - 1 : k]",
        "compare_top_k",
        "top-k: largest difference from scikit-learn's in 100 sets: ",
    ),
    "a sum of the parts, not their mean": (
        "shares = [n / sum(shares) for n in shares] if any(shares)",
        "shares = [1.0 for n in shares] if any(shares)",
        "accumulate",
        "accumulation: relative gap to the large batch, in float64: ",
    ),
}
