"""Train any model on any data set: one script, whose runs can be repeated, interrupted and resumed bit for bit.

A run is a folder: config.json, metrics.jsonl, checkpoints, curves.png, summary.json.
"""

from typing import TYPE_CHECKING

from experiments.shared import cli
from experiments.train.config import Config, parse

if TYPE_CHECKING:
    import torch


def main(config: Config, device: "torch.device") -> list[cli.Check]:
    from experiments.train.run import report  # here, not above: torch takes seconds, which --help need not wait for

    return report(config, device)


if __name__ == "__main__":
    cli.run(Config, main, parse)
