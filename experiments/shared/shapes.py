"""The shapes of a running network as a table, and as a check."""

from collections.abc import Sequence

from experiments.shared import cli, show
from fn import tree
from fn.trace import Axes, Call
from fn.tree import Params


def show_shapes(calls: Sequence[Call], params: Params, title: str, *, inside: str = "") -> cli.Check:
    """A row per layer of what `fn.trace.trace` saw of one example; whether each shape is what arithmetic says.

    `inside` is what the names of the layers are short for.
    """
    show.table(
        title,
        ("layer", "output", "by hand", "params", "mult-adds"),
        [
            (
                c.layer.removeprefix(inside),
                show_axes(c.output),
                c.by_hand,
                *map(_count, (c.parameters, c.multiply_adds)),
            )
            for c in calls
        ],
    )
    total = sum(c.multiply_adds for c in calls)
    show.console.print(f"{tree.size(params):,} parameters, {total:,} multiply-adds per example")
    wrong = sum(c.expected not in (None, tuple(c.result.shape)) for c in calls)
    return cli.check("shapes: layers that differ from the sum by hand", wrong, "==", 0)


def show_axes(axes: Axes) -> str:
    return " ".join(f"{name} {size}" for name, size in axes[1:])


def _count(n: int) -> str:
    return f"{n:,}" if n else "-"
