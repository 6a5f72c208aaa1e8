"""train_one_epoch with the sums kept in place."""

from fn.metrics import count_targets
from fn.train import check_finite, run_key


def train_one_epoch(ts, batches, *, step, seed, on_step=None):
    sums, examples = {}, 0
    step = check_finite(step)
    for x, y in batches:
        ts, metrics = step(ts, x, y, key=run_key(seed))
        n = int(count_targets(y))
        examples += n
        sums = {name: sums.get(name, 0.0) + value * n for name, value in metrics.items()}
        if on_step is not None:
            on_step(ts, metrics)
    return ts, {name: total / examples for name, total in sums.items()}


WRONG = {
    "the mean of the batches": ("n = int(count_targets(y))", "n = 1", "result[1]"),
    "batches weigh their examples": ("n = int(count_targets(y))", "n = len(y)", "over what counts"),
    "every step from the beginning": ("ts, metrics = step(ts,", "after, metrics = step(ts,", "result[0]"),
    "another key": (
        "key=run_key(seed)",
        "key=run_key(seed + 1)",
        "an epoch is the step repeated under the keys of its seed",
    ),
    "the last batch alone": ("sums.get(name, 0.0) + value * n", "value * examples", "result[1]"),
    "on_step is never called": (
        "        if on_step is not None:\n            on_step(ts, metrics)\n",
        "",
        "an epoch is the step repeated",
    ),
    "the step is not checked": ("    step = check_finite(step)\n", "", "before the update"),
    "sums, not means": ("total / examples", "total", "result[1]"),
    "the first batch is skipped": ("for x, y in batches:", "for x, y in list(batches)[1:]:", "result"),
}
