"""The picture and the checks of a network that overfits a few examples: Labs 0 and 1."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.shared import cli
from experiments.shared.training_pictures import draw_metrics
from fn.train import Metrics, steps_to_overfit


def check_fit(examples: str, runs: Mapping[str, Sequence[Metrics]], steps: int, path: Path) -> list[cli.Check]:
    """Draw the runs, metrics after each step by name, and check that the first fits its examples within `steps`."""
    draw_metrics({name: [history] for name, history in runs.items()}, path)
    history = next(iter(runs.values()))
    return [
        cli.check(f"{examples}: accuracy", history[-1]["accuracy"], "==", 1),
        cli.check(f"{examples}: loss", history[-1]["loss"], "<", 1e-3),
        cli.check(f"{examples}: steps to both", steps_to_overfit(history), "<=", steps),
    ]
