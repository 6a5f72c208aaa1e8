"""The tables of Lab 0: the gradients while a model learns, and the lines of the two loops."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence

from experiments.shared import show
from fn import tree
from fn.train import Metrics
from fn.tree import Params


def show_gradient_norms(history: Sequence[Metrics], norms: Mapping[int, Params]) -> None:
    """Show a row per step of `norms`: the metrics after it, and the norm of each parameter's gradient."""
    rows = []
    for step, of_step in norms.items():
        metrics, flat = history[step - 1], tree.flatten(of_step)
        numbers = [f"{number:.1e}" for number in (metrics["loss"], *flat.values())]
        rows.append((f"{step}", f"{metrics['accuracy']:.0%}", *numbers))
    names = tree.flatten(norms[1])
    title = "32 digits overfitted, and the gradient norm of each parameter on the way"
    show.table(title, ("step", "accuracy", "loss", *names), rows)


def show_lines(classic_loop: Callable, functional_loop: Callable) -> None:
    """Show each tagged line of the classic loop beside the line of the functional loop that does the same."""
    classic, functional = tagged_lines(classic_loop), tagged_lines(functional_loop)
    rows = [(tag, line, functional.get(tag, "nothing to clear: grads is a new value")) for tag, line in classic.items()]
    if classic and functional:  # a reader's own loop may have no tags
        show.table("Which line became which", ("", "classic", "functional"), rows)


def tagged_lines(function: Callable) -> dict[str, str]:
    """Return the lines of a function that end in a one-word comment, by that word."""
    found = re.findall(r"^ *(.+?)  # (\w+)$", inspect.getsource(function), re.MULTILINE)
    return {tag: line for line, tag in found}
