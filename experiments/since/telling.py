"""Show one pair, the old way and the new one, both live: `just since NAME`."""

import torch

from experiments.shared import cli
from experiments.shared.show import console, wrapped
from experiments.shared.source import show_code, source, wait
from experiments.since.pairs import Pair
from experiments.since.running import Outcome, evaluate, in_words, reaches, run, wanted


def present(pair: Pair, *, seed: int = 0, ask: bool = False) -> list[cli.Check]:
    """Show a pair, run both ways, and return the checks of its three statements."""
    runnable = pair.load()
    console.print(f"\n{pair.name}, changed in {pair.year} by {version(pair)}\n", style="bold", markup=False)
    wrapped("", f"{pair.title}.")
    print()
    wrapped("Old  ", pair.parts["Old"])
    show_code(["", *source(runnable.old).splitlines()])
    if ask:
        wait("\nWhat does it do today? Your guess, then Enter: ")
    old, new, right = run(pair, runnable.old, seed), run(pair, runnable.new, seed), wanted(pair, seed)
    console.print(f"\nIt runs on torch {torch.__version__.partition('+')[0]}:", style="bold")
    show_outcome(pair, old, right)
    if pair.today.does in ("is wrong", "costs"):
        wrapped("  so it   ", pair.parts["Today"], style="red")
    print()
    wrapped("New  ", pair.parts["New"])
    show_code(["", *source(runnable.new).splitlines()])
    console.print("\nIt runs:", style="bold")
    show_outcome(pair, new, right)
    print()
    wrapped("Why    ", pair.parts["Why"])
    wrapped("Read   ", pair.parts["Read"])
    wrapped("Yours  ", f"just since {pair.name} --mine writes the old one for you to rewrite")
    return evaluate(pair, old, new, right)


def version(pair: Pair) -> str:
    """Return "torch 1.9", or "torchvision 0.13"."""
    since = pair.parts["Since"]
    return since if since.startswith("torchvision") else f"torch {since}"


def show_outcome(pair: Pair, outcome: Outcome, right: object) -> None:
    """Print the warnings or the error of a call, its result beside the one that is wanted, and its cost."""
    for said in outcome.warned:
        wrapped("  warns   ", _shortened(said), style="yellow")
    if outcome.error is not None:
        said = f"{type(outcome.error).__name__}: {outcome.error}"
        wrapped("  raises  ", _shortened(said), style="red")
    else:
        wrapped("  gives   ", in_words(outcome.result), style="")
    if reaches(outcome.result, right):
        wrapped("          ", "as wanted", style="")
    else:
        wrapped("  wanted  ", in_words(right), style="")
    if outcome.cost is not None:
        wrapped("  costs   ", f"{outcome.cost:,} {pair.today.words}", style="")


def _shortened(said: str, most: int = 300) -> str:
    """Return a message in one line."""
    said = " ".join(said.split())
    return said if len(said) <= most else f"{said[:most]}…"
