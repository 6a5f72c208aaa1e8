"""Race to 99 % of MNIST's test images: our record, a fast module, the recipe of pytorch/examples, and yours.

All are trained on the same machine in the same run, in turns, seed by seed. The rules are in experiments/race/rules.py.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Annotated

import torch

from experiments.race import modules, ours, rules
from experiments.race.rules import GOAL, Run
from experiments.shared import cli, show

Runs = dict[str, list[Run]]
PUBLISHED = "pytorch/examples"


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/race")
    """the folder for summary.json"""
    seeds: cli.Count = 10
    """runs of ours, of the fast module, and of yours"""
    recipe_seeds: Annotated[int, cli.Between(0, 10**9)] = 1
    """runs of the recipe of pytorch/examples, minutes each"""
    mine: cli.MaybePath = None
    """a file with your recipe, train(split, seed) -> predict"""

    def compile_pays(self) -> bool:
        return True  # the clock of training leaves compiling out


def main(config: Config, device: torch.device) -> list[cli.Check]:
    yours = {"yours": rules.load(config.mine)} if config.mine else {}
    recipes = yours | {"ours": partial(ours.train, compiled=config.compile), "fast module": modules.fast}
    data = cli.load("mnist", device)
    runs: Runs = {}
    for turn, seed in enumerate(cli.seeds(config, max(config.seeds, config.recipe_seeds))):
        turns = {name: rules.once(train, data, seed) for name, train in recipes.items() if turn < config.seeds}
        if turn < config.recipe_seeds:
            turns[PUBLISHED] = modules.published(device, seed)
        for name, predicts in turns.items():
            run = rules.run(f"--mine {config.mine}" if name == "yours" else name, predicts, data.test)
            runs.setdefault(name, []).append(run)
            show.log.print(f"{name}, seed {seed}: {run.accuracy:.2%} after {run.training:.1f} s", soft_wrap=True)
    _show_accuracies(runs)
    _show_clocks(runs)
    return _checks(runs)


def _accuracies(runs: list[Run]) -> list[float]:
    return [run.accuracy for run in runs]


def _show_accuracies(runs: Runs) -> None:
    rows = []
    for name, of_one in runs.items():
        found = _accuracies(of_one)
        spread = (f"{cli.deviation(found):.3%}", f"{rules.p_value(found):.2g}") if len(found) > 1 else ("-", "-")
        rows.append((name, f"{len(found)}", f"{mean(found):.3%}", *spread))
    show.table("Accuracy on the test images", ("", "seeds", "mean", "deviation", "p"), rows)
    show.say("p: of a mean so high if the true one were 99 %, by a one-sided t-test; one seed has none")


def _show_clocks(runs: Runs) -> None:
    rows = []
    for name, of_one in runs.items():
        clocks = rules.summarize(of_one)
        compiling = "-" if clocks.compiling is None else f"{clocks.compiling:.1f}"
        rows.append((name, f"{clocks.training:.2f}", f"{clocks.evaluation:.2f}", compiling, f"{clocks.in_all:.1f}"))
    show.table("Seconds of a run, and in all", ("", "training", "evaluation", "compiling", "in all"), rows)
    show.say("compiling: what the first run took beyond the later ones; a single run cannot tell it from training")


def _checks(runs: Runs) -> list[cli.Check]:
    checks = []
    for name in ("yours", "ours"):
        if name not in runs:
            continue
        found = _accuracies(runs[name])
        if len(found) > 1:
            checks.append(cli.check_mean(f"{name}: mean accuracy", found, ">=", GOAL))
            checks.append(
                cli.check(f"{name}: p of that mean if the true one were 99 %", rules.p_value(found), "<", 0.01)
            )
        else:
            checks.append(cli.check(f"{name}: accuracy", found[0], ">=", GOAL))
    if PUBLISHED in runs:
        seconds = {name: rules.summarize(runs[name]).training for name in ("ours", PUBLISHED)}
        checks.append(cli.check(f"times faster than {PUBLISHED}", seconds[PUBLISHED] / seconds["ours"], ">=", 5))
    return checks


if __name__ == "__main__":
    cli.run(Config, main)
