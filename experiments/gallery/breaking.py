"""Show and check one failure, from the question to the fix: `just break NAME`."""

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import TypeCheckError

from experiments.gallery.failures import Failure, Runnable, Seen
from experiments.gallery.seen import show_seen
from experiments.shared import cli
from experiments.shared.show import console, is_wide, wrapped
from experiments.shared.source import show_code, wait
from experiments.shared.source import source as shared_source
from experiments.shared.titles import told
from fn import draw


class Refusal(NamedTuple):
    """The error of fn's shape checks."""

    by: str
    """the function that refused the mistake"""
    text: str


def refusal(run: Runnable, seed: int) -> Refusal | None:
    """Return the error of the check of fn, of shape or dtype, that refused the mistake; None if none did.

    Where `checked` is `broken` itself, the checks have let it pass, as it has run already.
    """
    if run.checked is run.broken:
        return None
    try:
        run.checked(seed)
    except TypeCheckError as error:
        said = str(error).partition("\n---")[0]
        by = re.search(r"whilst checking the \w+(?: \w+)? of (fn\.[\w.]*\w)", said)
        return Refusal(by[1], said) if by else None
    except (RuntimeError, ValueError):  # an error of torch, or one of fn that is no shape check
        return None
    return None


def on(device: torch.device, f: Callable[..., Any]) -> Callable[..., Any]:
    """Return `f` with this accelerator as its `elsewhere`, if it takes one; on a CPU that stays the device "meta"."""
    takes_device = device.type != "cpu" and "elsewhere" in inspect.signature(f).parameters
    return partial(f, elsewhere=str(device)) if takes_device else f


def evaluate(failure: Failure, run: Runnable, broken: Seen, fixed: Seen, refused: Refusal | None) -> list[cli.Check]:
    """Check the three statements of a failure."""
    as_stated = (refused and refused.by) == failure.catcher
    return [
        cli.check(f"{failure.name}: broken shows the symptom", run.shows(broken), "==", 1),
        cli.check(f"{failure.name}: fixed shows it still", run.shows(fixed), "==", 0),
        cli.check(f"{failure.name}: shape checks answer as it says", as_stated, "==", 1),
    ]


def in_one(checks: Sequence[cli.Check]) -> cli.Check:
    """Return one check of a failure: how many of its statements hold."""
    return cli.check(checks[0].name.partition(":")[0] + ": statements that hold", sum(c.ok for c in checks), "==", 3)


def present(failure: Failure, config: cli.Config, device: torch.device, *, ask: bool = False) -> list[cli.Check]:
    """Show a failure in the order in which one finds it out; return the checks of its three statements."""
    run = failure.load()
    before, after = source(run.broken), source(run.fixed)
    console.print(f"\n{failure.name}, a failure of {failure.kind}\n", style="bold")
    show_code(before.splitlines())

    print()
    wrapped("Expect   ", failure.parts["Expect"])
    if ask:
        wait("\nYour guess, then Enter: ")
    broken = on(device, run.broken)(config.seed)
    console.print(f"\nIt runs, seed {config.seed}:", style="bold")
    show_seen(broken)

    print()
    wrapped("Symptom  ", failure.symptom)
    if ask:
        wait("\nThe cause? Then Enter: ")
    print()
    wrapped("Cause    ", f"{failure.title}. {failure.parts['Cause']}")
    wrapped("Find     ", failure.parts["Find"])
    wrapped("Fix      ", failure.parts["Fix"])
    print()
    show_code([line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "-+"])

    fixed = on(device, run.fixed)(config.seed)
    console.print(f"\nFixed, it runs, seed {config.seed}:", style="bold")
    show_seen(fixed)

    refused = refusal(run, config.seed)
    print()
    wrapped("Checks   ", failure.parts["Checks"])
    if refused:
        for line in refused.text.splitlines():
            wrapped("          ", line)
    if picture := draw_curves(failure, broken, fixed, config.out):
        console.print(f"\nBoth curves: {picture}", markup=False, soft_wrap=True)
    return evaluate(failure, run, broken, fixed, refused)


def source(f: Callable[..., Any]) -> str:
    """Return the source of a function and of what it uses; named `broken` in any case."""
    return shared_source(f).replace("def fixed(", "def broken(")


def draw_curves(failure: Failure, broken: Seen, fixed: Seen, out: Path) -> Path | None:
    """Draw the curves of both runs in one picture; None if they have none."""
    panels = {name: {"broken": broken[name], "fixed": fixed[name]} for name in broken if isinstance(broken[name], list)}
    if not panels:
        return None
    figure = draw.curves(
        panels,
        log=[name for name in panels if is_wide([v for line in panels[name].values() for v in line])],
        title=" ".join(told(name, lines, step=_axis(name)) for name, lines in panels.items()),
    )
    for axes, name in zip(figure.axes, panels, strict=True):
        axes.set_xlabel(_axis(name))
    return draw.save(figure, out / f"{failure.name}.png")


def _axis(name: str) -> str:
    return "layer" if "layer" in name else "step"
