"""python -m experiments.train: the loop is `train` in run.py; see the README beside this file."""

import sys
from typing import TYPE_CHECKING

from experiments.shared import cli, ranks, show
from experiments.train.config import Config, parse

if TYPE_CHECKING:
    import torch


def main(config: Config, device: "torch.device") -> list[cli.Check]:
    # here, not above: torch takes seconds, which --help need not wait for
    from experiments.train.launch import end_with_launcher, launch
    from experiments.train.report import report
    from experiments.train.run import train

    if config.processes and not ranks.among_many():
        sys.exit(launch(config))
    end_with_launcher()
    run = train(config, device)
    if not ranks.leads():
        return []
    show.parameters(run.ts.params, f"The parameters of {config.model} after the last step")
    return report(config, run.history)


if __name__ == "__main__":
    ranks.hush()
    with ranks.telling():
        cli.run(Config, main, parse)
