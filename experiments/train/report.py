"""Show a run at its end: the table, the curves, the claim about its test accuracy."""

import math
from pathlib import Path
from typing import Any

from experiments.shared import cli, show
from experiments.shared.titles import told
from experiments.train.config import Config
from fn import draw


def report(config: Config, history: list[dict[str, Any]]) -> list[cli.Check]:
    *_, last, end = history
    title = f"{config.model} on {config.dataset} after {last['epoch']} epochs"
    diverged = bool(last["validation"]) and not end["best_epoch"]
    if diverged:
        title += "; none had a finite validation loss, and the test is of the last"
    elif last["validation"]:
        title += f"; the test is of epoch {end['best_epoch']}, the best in validation"
    metrics = end["test"]
    rows = {"train": last["train"], "validation": last["validation"], "test": metrics}
    show.table(
        title,
        ("", *metrics),
        [(split, *(f"{m[name]:.4f}" if name in m else "" for name in metrics)) for split, m in rows.items() if m],
    )
    checks = [cli.check(f"{config.dataset}: test loss", metrics["loss"], "<", math.inf)]
    if config.target_accuracy:
        checks.append(cli.check(f"{config.dataset}: test accuracy", metrics["accuracy"], ">=", config.target_accuracy))
    if diverged:
        checks.append(cli.check("epochs with a finite validation loss", 0, ">", 0))
    return checks


@show.picture
def draw_curves(history: list[dict[str, Any]], path: Path) -> None:
    """Draw loss and accuracy: of every step in training, of every epoch in validation."""
    panels: dict[str, Any] = {}
    validated = [entry for entry in history if entry["event"] == "epoch" and entry["validation"]]
    for quantity in ("loss", "accuracy"):
        panels[quantity] = {"train": [entry[quantity] for entry in history if entry["event"] == "step"]}
        if validated:
            panels[quantity]["validation"] = {entry["step"]: entry["validation"][quantity] for entry in validated}
    title = " ".join(told(quantity, lines) for quantity, lines in panels.items())
    show.save(draw.curves(panels, log=["loss"], title=title), path)
