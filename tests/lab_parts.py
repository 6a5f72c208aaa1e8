"""The parts of each lab, as a page or a wrong answer names them, at sizes that take seconds; and a whole lab, small."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from experiments import lab as labs
from experiments import (
    lab0_mlp,
    lab1_cnn,
    lab2_training,
    lab3_transformer,
    lab4_pretrained,
    lab5_detection,
    lab6_data,
    lab7_processes,
)
from experiments.lab_helpers.lab3 import language_tasks
from experiments.lab_helpers.lab5.baselines import score_baselines
from experiments.shared import cli, local_processes
from experiments.train.config import Config as TrainerConfig
from experiments.train.run import train
from fn.data import scenes
from fn.data.datasets import digits, take
from fn.models.mlp import mlp
from fn.models.ssd import ssd
from fn.rng import generator
from fn.train import TrainState

CPU = torch.device("cpu")
EXAMPLES = 256
"""of Lab 6, in place of 5,120"""


def small_digits():
    return scenes.digits(32, 20)


def lab0(part: str, out: Path) -> Callable[[], list]:
    few, config = take(digits().train, 32), lab0_mlp.Config(out=out)
    if part == "overfit_few":
        return lambda: lab0_mlp.overfit_few(config, mlp((1, 8, 8), 10), few, lr=0.01, title="")
    return lambda: getattr(lab0_mlp, part)(config, few)


def lab1(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    return lambda: getattr(lab1_cnn, part)(lab1_cnn.Config(out=out), CPU)


def lab2(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config = lab2_training.Config(out=out)
    if part == "damage_checkpoints":
        settings = TrainerConfig(model="mlp", epochs=1, limit=100, overwrite=True, compile=False, out=out / "whole")
        return lambda: lab2_training.damage_checkpoints(config, train(settings, CPU))
    arguments = {"compare_top_k": (config,), "accumulate": (config, CPU)}[part]
    return lambda: getattr(lab2_training, part)(*arguments)


def lab3(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config = lab3_transformer.Config(out=out)
    if part == "compare_with_torch":
        return lambda: lab3_transformer.compare_with_torch(config, CPU)
    task = language_tasks.toy_task("reverse", seed=0, device=CPU)

    def run() -> list[cli.Check]:
        model = lab3_transformer.build(config, lab3_transformer.RECIPES["reverse"], task)
        if part == "check_untrained":
            return [lab3_transformer.check_untrained(config, model, task)]
        params, state = model.init(generator(0))
        return lab3_transformer.check_attention(model, task, [TrainState(params, state, {})])

    return run


def lab4(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config = lab4_pretrained.Config(out=out)
    return lambda: getattr(lab4_pretrained, part)(config, CPU)


def lab5(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config, few = lab5_detection.Config(out=out, compile=False), small_digits()
    if part == "check_baselines":
        return lambda: lab5_detection.check_baselines(config, score_baselines(few, 0))
    baselines = ({},) if part == "train_and_test" else ()
    return lambda: getattr(lab5_detection, part)(config, "anchor", ssd(few.shape, 10), few, *baselines)


def lab6(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config = lab6_data.Config(out=out)
    return lambda: getattr(lab6_data, part)(config)


def lab7(part: str, out: Path) -> Callable[[], list[cli.Check]]:
    config, way = lab7_processes.Config(out=out), "MLP, in order"
    if part == "make_mistakes":
        return lambda: lab7_processes.make_mistakes(config)
    trained = lambda n: local_processes.in_processes(lab7_processes.train, n, way, 0, 1)  # noqa: E731
    return lambda: lab7_processes.compare_results({way: [trained(n) for n in (1, 2, 4)]})


PARTS = {f"lab{n}": globals()[f"lab{n}"] for n in labs.LABS}


def make_small(monkeypatch) -> None:
    """Set the sizes with which a part of a lab takes seconds."""
    once, make, write = lab6_data.time_loaders, lab6_data.make_loaders, lab6_data.write_photographs
    monkeypatch.setattr(lab6_data, "make_loaders", lambda *split: {k: f for k, f in make(*split).items() if not k[1]})
    monkeypatch.setattr(lab6_data, "EXAMPLES", EXAMPLES)
    monkeypatch.setattr(lab6_data, "time_loaders", lambda loaders, rounds: once(loaders, rounds=1))
    monkeypatch.setattr(lab6_data, "write_photographs", lambda root, count: write(root, 4))
    monkeypatch.setattr(lab6_data, "run_at_once", lambda *arguments: [0] * len(arguments))
    monkeypatch.setattr(lab1_cnn, "range", lambda _: range(1), raising=False)
    recipe = lab4_pretrained.RECIPES["digits"]
    ways = {name: way._replace(epochs=1) for name, way in recipe.ways.items()}
    monkeypatch.setitem(lab4_pretrained.RECIPES, "digits", recipe._replace(ways=ways, shots={3: 2}, timed_epochs=1))
    monkeypatch.setattr(lab7_processes, "BATCH", 360)
    inherit_changes(monkeypatch)


def inherit_changes(monkeypatch) -> None:
    """Let the processes of Lab 7 be forks, which have whatever was changed here."""
    monkeypatch.setattr(local_processes, "START_METHOD", "fork")
    monkeypatch.setattr(local_processes, "_mine", lambda: None)


def whole(lab: str, monkeypatch, out: Path) -> list[cli.Check]:
    """Run a lab, or the parts of it that call each function of its last drill, with two seeds, as small as holds."""
    monkeypatch.setattr(cli, "seeds", lambda config, n: range(1 if lab == "lab3" else 2))
    if lab == "lab2":
        return whole_of_lab2(monkeypatch, out)
    if lab == "lab4":
        recipe = lab4_pretrained.RECIPES["digits"]._replace(shots={10: 2}, timed_epochs=2)
        monkeypatch.setitem(lab4_pretrained.RECIPES, "digits", recipe)
    if lab == "lab5":
        return lab5("overfit_few", out)() + lab5("check_baselines", out)()
    if lab == "lab6":
        make_small(monkeypatch)
        return [check for part in ("compare_loaders", "cache_photographs") for check in lab6(part, out)()]
    if lab == "lab7":
        inherit_changes(monkeypatch)
        ways = ("MLP, in order", "MLP, all_reduce")
        trained = {w: [local_processes.in_processes(lab7_processes.train, n, w, 0, 1) for n in (1, 2, 4)] for w in ways}
        return [check for check in lab7_processes.compare_results(trained) if "accuracy" not in check.name]
    module = {"lab0": lab0_mlp, "lab1": lab1_cnn, "lab3": lab3_transformer, "lab4": lab4_pretrained}[lab]
    return module.main(module.Config(out=out), CPU)


def whole_of_lab2(monkeypatch, out: Path) -> list[cli.Check]:
    """Resume copies of a run that has ended, in place of one that was killed: no process is started."""
    settings = TrainerConfig(model="mlp", epochs=2, limit=200, overwrite=True, compile=False, out=out / "whole")
    ended = train(settings, CPU)

    def stopped(flags, stops):
        for stop in stops:
            shutil.copytree(out / "whole", stop.out)
        return [(130, 0), (-9, 0)]

    monkeypatch.setattr(lab2_training, "train_and_stop", stopped)
    checks = lab2_training.stop_and_resume(lab2_training.Config(out=out), ended, CPU)
    return checks + [check for part in ("compare_top_k", "accumulate") for check in lab2(part, out)()]
