"""Lab 2: one trainer for every model and data set, whose runs can be stopped, resumed and repeated to the bit.

Train every model, stop a run by Ctrl-C and by a kill, recompute the log, flip bits in a checkpoint.
"""

import random
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from sklearn.metrics import top_k_accuracy_score

from experiments.shared import cli, show
from experiments.shared.registry import MODELS, RootlessName
from experiments.train import folder
from experiments.train.config import Config as TrainerConfig
from experiments.train.processes import Stop, train_and_stop
from experiments.train.run import Run, train
from fn import checkpoint, tree
from fn.checkpoint import CheckpointError
from fn.gradcheck import largest, relative_error
from fn.metrics import top_k_accuracy
from fn.models.mlp import mlp
from fn.optim import adamw
from fn.rng import generator
from fn.train import TrainState, classifier_step, run_key
from fn.train_variants import accumulated_step


@dataclass(frozen=True)
class Config(cli.CompiledLab):
    out: Path = Path("runs/lab2")
    """the folder for the runs, pictures and summary.json"""
    datasets: tuple[RootlessName, ...] = ("digits",)
    """what every model is trained on for an epoch"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    for name in config.datasets:
        cli.load(name)  # refused here, before anything is trained, if it is not there
    settings = TrainerConfig(seed=config.seed, device=config.device, compile=config.compile, overwrite=True)
    settings_whole = replace(settings, model="mlp", epochs=10, dropout_p=0.2, augment=("affine",), workers=2)
    whole = train(replace(settings_whole, out=config.out / "whole"), device)
    show.parameters(whole.ts.params, "The MLP of the run in one go, trained")
    return [
        *train_every_model(config, settings, device),
        *stop_and_resume(config, whole, device),
        *recompute_the_log(whole, device),
        *damage_checkpoints(config, whole),
        *compare_top_k(config),
        *accumulate(config, device),
    ]


def train_every_model(config: Config, settings: TrainerConfig, device: torch.device) -> list[cli.Check]:
    """Train every model on every data set for an epoch; each must do better than always naming the commonest class."""
    rows, better = [], 0
    for dataset in config.datasets:
        for model in MODELS:
            began, out = time.perf_counter(), config.out / f"{model}-{dataset}"
            run = train(replace(settings, model=model, dataset=dataset, epochs=1, out=out), device)
            accuracy, labels = run.history[-1]["test"]["accuracy"], run.parts.data["test"].labels
            commonest = float(labels.bincount().max() / len(labels))
            better += accuracy > commonest
            seconds = f"{time.perf_counter() - began:.1f}"
            rows.append((model, dataset, f"{accuracy:.2%}", f"{commonest:.2%}", seconds))
    show.table("One epoch of each pair", ("model", "dataset", "test accuracy", "commonest class", "seconds"), rows)
    return [cli.check("swap: pairs that beat the commonest class", better, "==", len(rows))]


def stop_and_resume(config: Config, whole: Run, device: torch.device) -> list[cli.Check]:
    """Stop the run `whole` by Ctrl-C and, once more, by a kill; resumed, each must end where `whole` did."""
    rng, flags = random.Random(config.seed), cli.as_flags(TrainerConfig, whole.config.out / "config.json")
    signals = (signal.SIGINT, signal.SIGKILL)
    stops = [Stop(s, config.out / s.name, rng.randint(1, whole.progress.step // 2)) for s in signals]
    stopped = train_and_stop(flags, stops)
    rows, checks = [], []
    for stop, (status, lines) in zip(stops, stopped, strict=True):
        run = train(replace(whole.config, out=stop.out, resume=stop.out), device)
        difference = largest_difference(run, whole)
        rows.append((stop.signal.name, f"{status}", f"{lines} of {len(whole.history)}", f"{difference:g}"))
        checks.append(cli.check(f"resume after {stop.signal.name}: largest difference", difference, "==", 0))
    columns = ("signal", "exit status", "lines logged by then", "largest difference at the end")
    show.table(f"Stopped, resumed, and compared with {whole.progress.step} steps in one go", columns, rows)
    before = sum(status in (130, -signal.SIGKILL) for status, _ in stopped)
    return [cli.check("resume: runs that were stopped before their end", before, "==", 2), *checks]


def largest_difference(run: Run, whole: Run) -> float:
    """Return the largest difference of their parameters and optimizer states; infinity if their logs differ."""
    one, other = (folder.log_file(r.config.out).read_bytes() for r in (run, whole))
    if one != other:
        return float("inf")
    gaps = tree.map(lambda a, b: (a.double() - b.double()).abs().max(), run.ts._asdict(), whole.ts._asdict())
    return largest(tree.leaves(gaps))


def recompute_the_log(whole: Run, device: torch.device) -> list[cli.Check]:
    """Recompute each epoch's training loss from its steps, and the last validation loss from the saved weights."""
    _, history = folder.read_log(whole.config.out, len(whole.history))
    epochs = [entry for entry in history if entry["event"] == "epoch"]
    rows, gaps, steps = [], [], []
    for entry in epochs:
        steps = [s for s in history if s["event"] == "step" and s["epoch"] == entry["epoch"]]
        examples = sum(s["examples"] for s in steps)
        weighted = sum(s["loss"] * s["examples"] for s in steps) / examples
        unweighted, logged = mean(s["loss"] for s in steps), entry["train"]["loss"]
        gaps.append(abs(weighted - logged))
        rows.append((f"{entry['epoch']}", f"{logged:.6f}", f"{weighted:.6f}", f"{unweighted:.6f}"))
    title = f"Training loss of an epoch of {len(steps)} batches, the last with {steps[-1]['examples']} examples"
    show.table(title, ("epoch", "logged", "mean over examples", "mean over batches"), rows)
    tensors, _ = checkpoint.load_newest(folder.checkpoints(whole.config.out), whole.ts._asdict())
    images, labels = (x.to(device) for x in whole.parts.data["validation"])
    logits, _ = whole.parts.model.apply(tensors["params"], tensors["state"], images, train=False)
    gap = abs(float(torch.nn.functional.cross_entropy(logits, labels)) - epochs[-1]["validation"]["loss"])
    seen = sum(entry["examples"] for entry in history if entry["event"] == "step")
    unseen = len(epochs) * len(whole.parts.data["train"].labels) - seen
    return [
        cli.check("log: examples that no line accounts for", unseen, "==", 0),
        cli.check("log: epoch's loss against the mean over examples", largest(gaps), "<=", 1e-12),
        cli.check("log: last validation loss against torch's, of the saved weights", gap, "<=", 1e-5),
    ]


def damage_checkpoints(config: Config, whole: Run) -> list[cli.Check]:
    """Flip one bit of a checkpoint, a hundred times over, and cut it off, a hundred times over: none may load."""
    newest, like = checkpoint.find(folder.checkpoints(whole.config.out))[-1], whole.ts._asdict()
    content = newest.read_bytes()
    rng = random.Random(config.seed)
    refusals = []
    damaged = config.out / "damaged" / newest.name
    damaged.parent.mkdir(exist_ok=True)
    for _ in range(100):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        for bad in (bytes(flipped), content[: rng.randrange(len(content))]):
            damaged.write_bytes(bad)
            try:
                checkpoint.load(damaged, like)
            except CheckpointError as error:
                refusals.append(str(error))
    damaged.unlink()
    show.console.print("", *refusals[-1:], sep="\n", soft_wrap=True)
    return [cli.check("checkpoint: damaged files that were loaded, of 200", 200 - len(refusals), "==", 0)]


def compare_top_k(config: Config) -> list[cli.Check]:
    """Compare with scikit-learn on random scores; of two equal scores, ours ranks the lower class first, as argmax."""
    rng, gaps = generator(config.seed), []
    for _ in range(100):
        scores, target = torch.randn(50, 10, generator=rng), torch.randint(10, (50,), generator=rng)
        k = int(torch.randint(1, 10, (), generator=rng))
        reference = top_k_accuracy_score(target, scores, k=k, labels=range(10))
        gaps.append(abs(float(top_k_accuracy(scores, target, k)) - reference))
    first = sum(float(top_k_accuracy(torch.zeros(1, 10), torch.tensor([c]), k=3)) for c in range(10))
    return [
        cli.check("top-k: largest difference from scikit-learn's in 100 sets", largest(gaps), "<=", 1e-6),
        cli.check("top-k: of ten equal scores, classes among the first 3", first, "==", 3),
    ]


def accumulate(config: Config, device: torch.device) -> list[cli.Check]:
    """Compare a step of AdamW on a batch of 64 with the step on its parts of 32, 16 and 8, accumulated."""
    split = cli.load("digits", device).train
    x, y = split.images[:64].double(), split.labels[:64]
    model, optimizer = mlp((1, 8, 8), 10), adamw(lr=1e-2)
    params = tree.to(model.init(generator(config.seed))[0], device, torch.float64)
    ts = TrainState(params, {}, optimizer.init(params))
    key = run_key(config.seed)
    whole, _ = classifier_step(model, optimizer)(ts, x, y, key=key)
    in_parts = classifier_step(model, optimizer, step=accumulated_step)
    gaps = [relative_error(in_parts(ts, x, y, key=key, parts=n)[0].params, whole.params) for n in (2, 4, 8)]
    return [cli.check("accumulation: relative gap to the large batch, in float64", largest(gaps), "<=", 1e-10)]


if __name__ == "__main__":
    cli.run(Config, main)
