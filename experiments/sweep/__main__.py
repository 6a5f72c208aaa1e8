"""python -m experiments.sweep: the loop is `train` in run.py; see the README beside this file."""

from typing import TYPE_CHECKING

from experiments.shared import cli
from experiments.sweep.config import Config, parse

if TYPE_CHECKING:
    import torch


def main(config: Config, device: "torch.device") -> list[cli.Check]:
    from experiments.sweep.run import report  # here, not above: torch takes seconds, which --help need not wait for

    return report(config, device)


if __name__ == "__main__":
    cli.run(Config, main, parse)
