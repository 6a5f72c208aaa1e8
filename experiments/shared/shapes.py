"""The shapes of a running network as a table, as a check, and as a quiz."""

import re
from collections.abc import Sequence

from torch import Tensor

from experiments.shared import cli, show
from experiments.shared.report import record
from fn import tree
from fn.models import Model
from fn.rng import generator
from fn.trace import Axes, Call, trace
from fn.tree import Params


def show_shapes(calls: Sequence[Call], params: Params, title: str, *, inside: str = "") -> cli.Check:
    """Show a row per call that `fn.trace.trace` returned; check that each shape is the one that arithmetic gives.

    The prefix `inside` is left out of the names of the layers.
    """
    rows = []
    for c in calls:
        counts = map(_count, (c.parameters, c.multiply_adds))
        rows.append((c.layer.removeprefix(inside), show_axes(c.output), c.by_hand, *counts))
    show.table(title, ("layer", "output", "by hand", "params", "mult-adds"), rows)
    total = sum(c.multiply_adds for c in calls)
    show.console.print(f"{tree.size(params):,} parameters, {total:,} multiply-adds per example")
    keep_shapes(calls, params, title, inside)
    wrong = sum(_agrees(c) is False for c in calls)
    return cli.check("shapes: layers that differ from the sum by hand", wrong, "==", 0)


def _agrees(call: Call) -> bool | None:
    """Return whether the shape is the one that arithmetic gives; None for an op that has no rule."""
    return None if call.expected is None else call.expected == tuple(call.result.shape)


@record.harmless
def keep_shapes(calls: Sequence[Call], params: Params, title: str, inside: str) -> None:
    """Keep the rows of `show_shapes` for report.html, with the input of each layer beside its output."""
    rows = [
        {
            "layer": c.layer.removeprefix(inside),
            "op": c.op,
            "input": show_axes(c.input),
            "output": show_axes(c.output),
            "by_hand": c.by_hand,
            "agrees": _agrees(c),
            "parameters": c.parameters,
            "multiply_adds": c.multiply_adds,
        }
        for c in calls
    ]
    total = sum(c.multiply_adds for c in calls)
    record.keep("shapes", title=title, rows=rows, parameters=tree.size(params), multiply_adds=total)


def trace_shapes(model: Model, example: Tensor, title: str, *, seed: int, inside: str = "") -> cli.Check:
    """Run the model, untrained, on one example; show and check its shapes, see `show_shapes`."""
    params, state = (tree.to(part, example.device) for part in model.init(generator(seed)))
    _, calls = trace(params, model.apply, params, state, example, train=False)
    return show_shapes(calls, params, title, inside=inside)


def quiz_shapes(calls: Sequence[Call]) -> None:
    """Ask for the sizes of each layer's output, and grade the answers. UsageError where the answers end too soon."""
    intro = "What leaves each layer? Sizes in this order, batch left out."
    show.console.print(f"The images are {show_axes(calls[0].input)}. {intro}")
    right = 0
    for asked, call in enumerate(calls):
        names, sizes = zip(*call.output[1:], strict=True)
        try:
            answer = input(f"{call.layer} ({call.op}{_settings(call)}): {' '.join(names)}? ")
        except EOFError:
            raise cli.UsageError(f"--quiz: the answers ended after {asked} of {len(calls)} questions") from None
        if tuple(map(int, re.findall(r"\d+", answer))) == sizes:
            right += 1
        else:
            show.console.print(f"  no, {' '.join(map(str, sizes))}: {call.by_hand}")
    show.console.print(f"{right} of {len(calls)} right")


def _settings(call: Call) -> str:
    """Return the arguments that decide the shape: " weight (32, 1, 3, 3) padding same"."""
    weight = call.arguments.get("weight")
    shown = f" weight {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
    given = {name: call.arguments.get(name) for name in ("kernel_size", "stride", "padding", "dilation")}
    return shown + "".join(f" {name} {value}" for name, value in given.items() if value is not None)


def show_axes(axes: Axes) -> str:
    return " ".join(f"{name} {size}" for name, size in axes[1:])


def _count(n: int) -> str:
    return f"{n:,}" if n else "-"
