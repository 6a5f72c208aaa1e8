"""freeze with closures."""

from fn import tree
from fn.models import Model
from fn.transfer import trained_modes


def freeze(model, trained, *, keep_statistics=True):
    def init(rng):
        params, state = model.init(rng)
        chosen, rest = tree.split(params, list(trained))
        return chosen, {"frozen": rest, "state": state}

    def apply(params, state, x, *, train, **options):
        inner = state["state"]
        if train and keep_statistics and inner:
            options = options | {"modes": trained_modes(inner, params)}
        y, inner = model.apply(tree.merge(params, state["frozen"]), inner, x, train=train, **options)
        return y, {"frozen": state["frozen"], "state": inner}

    return Model(init, apply)


WRONG = {
    "statistics move under a frozen norm": (
        "if train and keep_statistics and inner:",
        "if False:",
        "frozen leaves stay",
    ),
    "statistics are always kept": (
        "if train and keep_statistics and inner:",
        "if train and inner:",
        "frozen statistics move when asked to",
    ),
    "a prefix that matches nothing is passed over": (
        "tree.split(params, list(trained))",
        "tree.split(params, [p for p in trained if any(tree.below(name, p) for name in tree.flatten(params))])",
        "is refused",
    ),
    "the rest is trained": ("chosen, rest = tree.split", "rest, chosen = tree.split", "frozen leaves stay"),
    "nothing is frozen": (
        'return chosen, {"frozen": rest, "state": state}',
        'return params, {"frozen": {}, "state": state}',
        "frozen leaves stay",
    ),
    "new statistics are dropped": (
        "        y, inner = model.apply",
        "        y, _ = model.apply",
        "frozen leaves stay",
    ),
}
