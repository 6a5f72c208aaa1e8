"""train_one_epoch with the sums kept here."""

from fn.train import checked_step, run_key


def train_one_epoch(ts, batches, *, step, seed, totals=None, each=None):
    sums = dict(totals) if totals else {"examples": 0}
    for x, y in batches:
        ts, metrics = checked_step(ts, x, y, step=step, key=run_key(seed))
        n = len(y)
        sums = {"examples": sums["examples"] + n} | {m: sums.get(m, 0.0) + v * n for m, v in metrics.items()}
        if each is not None:
            each(ts, metrics, sums)
    return ts, {m: total / sums["examples"] for m, total in sums.items() if m != "examples"}


WRONG = {
    "the mean of the batches": ("n = len(y)", "n = 1", "result[1]"),
    "every step from the beginning": (
        "ts, metrics = checked_step(ts,",
        "after, metrics = checked_step(ts,",
        "result[0]",
    ),
    "another key": (
        "key=run_key(seed)",
        "key=run_key(seed + 1)",
        "an epoch is the step repeated under the keys of its seed",
    ),
    "an interrupted epoch's sums are lost": (
        'dict(totals) if totals else {"examples": 0}',
        '{"examples": 0}',
        "with `totals`",
    ),
    "each is never called": (
        "        if each is not None:\n            each(ts, metrics, sums)\n",
        "",
        "an epoch is the step repeated",
    ),
    "the step is not checked": (
        "checked_step(ts, x, y, step=step, key=run_key(seed))",
        "step(ts, x, y, key=run_key(seed))",
        "before the update",
    ),
    "sums, not means": ('total / sums["examples"]', "total", "result[1]"),
    "the first batch is skipped": ("for x, y in batches:", "for x, y in list(batches)[1:]:", "result"),
}
