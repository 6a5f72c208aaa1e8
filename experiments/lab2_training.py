"""Lab 2: one trainer for every model and data set, and its promises as checks.

Swap the parts, interrupt a run and kill one, read the log with suspicion, flip bits in a checkpoint.
"""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from sklearn.metrics import top_k_accuracy_score

from experiments.shared import cli, show
from experiments.shared.registry import MODELS, DatasetName
from experiments.train import config as train
from experiments.train import run as training
from fn import checkpoint, tree
from fn.checkpoint import CheckpointError
from fn.gradcheck import relative_error
from fn.metrics import top_k_accuracy
from fn.models.mlp import mlp
from fn.optim import adamw, adamw_init
from fn.rng import generator
from fn.rng import key as rng_key
from fn.train import TrainState, classification_loss, train_step


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/lab2")
    """the folder for the runs, pictures and summary.json"""
    datasets: tuple[DatasetName, ...] = ("digits",)
    """what every model is trained on for an epoch"""


def main(config: Config, device: torch.device) -> list[cli.Check]:
    settings = train.Config(
        model="mlp",
        epochs=10,
        dropout_p=0.2,
        augment=("affine",),
        workers=2,
        seed=config.seed,
        device=config.device,
        compile=config.compile,
        overwrite=True,
    )
    whole = training.fit(dataclasses.replace(settings, out=config.out / "whole"), device)
    return [
        *swap(config, device),
        *interrupt(config, settings, whole, device),
        *read_the_log(whole),
        *flip_bits(config, whole),
        *count_top_k(config),
        *accumulate(config, device),
    ]


def swap(config: Config, device: torch.device) -> list[cli.Check]:
    """Every model on every data set, each judged against always naming the commonest class."""
    rows, better = [], 0
    for dataset in config.datasets:
        for model in MODELS:
            began = time.perf_counter()
            settings = train.Config(
                model=model,
                dataset=dataset,
                epochs=1,
                seed=config.seed,
                device=config.device,
                compile=config.compile,
            )
            out = config.out / f"{model}-{dataset}"
            run = training.fit(dataclasses.replace(settings, out=out, overwrite=True), device)
            test = run.history[-1]["test"]
            commonest = float(run.parts.data["test"].labels.bincount().max() / len(run.parts.data["test"].labels))
            better += test["accuracy"] > commonest
            seconds = f"{time.perf_counter() - began:.1f}"
            rows.append((model, dataset, f"{test['accuracy']:.2%}", f"{commonest:.2%}", seconds))
    show.table("One epoch of each pair", ("model", "dataset", "test accuracy", "commonest class", "seconds"), rows)
    return [cli.check("swap: pairs that beat the commonest class", better, "==", len(rows))]


def gap(run: training.Run, whole: training.Run) -> float:
    """The largest difference between their parameters and optimizer states; infinity if their logs differ."""
    if run.log_file.read_bytes() != whole.log_file.read_bytes():
        return float("inf")
    gaps = tree.map(lambda a, b: (a.double() - b.double()).abs().max(), run.ts._asdict(), whole.ts._asdict())
    return float(max(tree.leaves(gaps)))


def interrupt(config: Config, settings: train.Config, whole: training.Run, device: torch.device) -> list[cli.Check]:
    """The same run twice more, in processes of their own: one hears Ctrl-C, one is killed outright; each is resumed."""
    rng, flags = random.Random(config.seed), cli.as_flags(train.Config, whole.config.out / "config.json")
    waiting, stopped = {}, {}
    for ending in (signal.SIGINT, signal.SIGKILL):
        out = config.out / ending.name
        (out / "metrics.jsonl").unlink(missing_ok=True)
        command = [sys.executable, "-m", "experiments.train", *flags, "--out", str(out), "--overwrite"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        waiting[ending] = (process, out / "metrics.jsonl", rng.randint(1, whole.progress.step // 2))
    while waiting:
        for ending, (process, log, instant) in list(waiting.items()):
            if process.poll() is not None or _lines(log) >= instant:
                process.send_signal(ending)
                stopped[ending] = (process.wait(), _lines(log))
                del waiting[ending]
        time.sleep(0.001)

    rows, checks = [], []
    for ending, (status, lines) in stopped.items():
        out = config.out / ending.name
        difference = gap(training.fit(dataclasses.replace(settings, out=out, resume=out), device), whole)
        rows.append((ending.name, f"{status}", f"{lines} of {len(whole.history)}", f"{difference:g}"))
        checks.append(cli.check(f"resume after {ending.name}: largest difference", difference, "==", 0))
    show.table(
        f"Stopped, resumed, and compared with {whole.progress.step} steps in one go",
        ("signal", "exit status", "lines logged by then", "largest difference at the end"),
        rows,
    )
    before = sum(status in (130, -signal.SIGKILL) for status, _ in stopped.values())
    return [cli.check("resume: runs that were stopped before their end", before, "==", 2), *checks]


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def read_the_log(whole: training.Run) -> list[cli.Check]:
    """The epoch's training loss from the steps' own, weighted by examples and not; a validation loss made once more."""
    epochs = [entry for entry in whole.history if entry["event"] == "epoch"]
    rows, gaps, steps = [], [], []
    for entry in epochs:
        steps = [s for s in whole.history if s["event"] == "step" and s["epoch"] == entry["epoch"]]
        examples = sum(s["examples"] for s in steps)
        weighted = sum(s["loss"] * s["examples"] for s in steps) / examples
        unweighted, logged = mean(s["loss"] for s in steps), entry["train"]["loss"]
        gaps.append(abs(weighted - logged))
        rows.append((f"{entry['epoch']}", f"{logged:.6f}", f"{weighted:.6f}", f"{unweighted:.6f}"))
    show.table(
        f"Training loss of an epoch of {len(steps)} batches, the last with {steps[-1]['examples']} examples",
        ("epoch", "logged", "mean over examples", "mean over batches"),
        rows,
    )
    tensors, _ = checkpoint.load_newest(whole.checkpoints, whole.ts._asdict())
    images, labels = whole.parts.data["validation"]
    logits, _ = whole.parts.model.apply(tensors["params"], tensors["state"], images.to(whole.device), train=False)
    validation = float(torch.nn.functional.cross_entropy(logits, labels.to(whole.device)))
    written = [json.loads(line) for line in whole.log_file.read_text().splitlines()]
    seen = sum(entry["examples"] for entry in written if entry["event"] == "step")
    unseen = len(epochs) * len(whole.parts.data["train"].labels) - seen
    return [
        cli.check("log: examples that no line accounts for", unseen, "==", 0),
        cli.check("log: epoch's loss against the mean over examples", max(gaps), "<=", 1e-12),
        cli.check(
            "log: last validation loss against torch's, of the saved weights",
            abs(validation - epochs[-1]["validation"]["loss"]),
            "<=",
            1e-5,
        ),
    ]


def flip_bits(config: Config, whole: training.Run) -> list[cli.Check]:
    """A checkpoint with one bit flipped, a hundred times over; and cut off, a hundred times over."""
    newest, like = checkpoint.find(whole.checkpoints)[-1], whole.ts._asdict()
    content, rng, loaded, said = newest.read_bytes(), random.Random(config.seed), 0, ""
    damaged = config.out / "damaged" / newest.name
    damaged.parent.mkdir(exist_ok=True)
    for _ in range(100):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        for bad in (bytes(flipped), content[: rng.randrange(len(content))]):
            damaged.write_bytes(bad)
            try:
                checkpoint.load(damaged, like)
                loaded += 1
            except CheckpointError as error:
                said = str(error)
    damaged.unlink()
    show.console.print(f"\n{said}", soft_wrap=True)
    return [cli.check("checkpoint: damaged files that were loaded, of 200", loaded, "==", 0)]


def count_top_k(config: Config) -> list[cli.Check]:
    """Against scikit-learn on random scores; where two are equal, ours ranks the lower class first, as argmax does."""
    rng, gaps = generator(config.seed), []
    for _ in range(100):
        scores, target = torch.randn(50, 10, generator=rng), torch.randint(10, (50,), generator=rng)
        k = int(torch.randint(1, 10, (), generator=rng))
        theirs = top_k_accuracy_score(target, scores, k=k, labels=range(10))
        gaps.append(abs(float(top_k_accuracy(scores, target, k)) - theirs))
    first = sum(float(top_k_accuracy(torch.zeros(1, 10), torch.tensor([c]), k=3)) for c in range(10))
    return [
        cli.check("top-k: largest difference from scikit-learn's in 100 sets", max(gaps), "<=", 1e-6),
        cli.check("top-k: of ten equal scores, classes among the first 3", first, "==", 3),
    ]


def accumulate(config: Config, device: torch.device) -> list[cli.Check]:
    """A batch of 64 in one go and in parts of 32, 16, 8: the same step of AdamW."""
    split = cli.load("digits", device).train
    x, y = split.images[:64].double(), split.labels[:64]
    model = mlp((1, 8, 8), 10)
    params, state = model.init(generator(config.seed))
    params = tree.to(params, device, torch.float64)
    ts = TrainState(params, state, adamw_init(params))
    step = partial(
        train_step,
        objective=partial(classification_loss, apply=model.apply),
        optimizer=partial(adamw, lr=1e-2),
        key=rng_key(config.seed),
    )
    whole, _ = step(ts, x, y)
    gaps = [relative_error(step(ts, x, y, accumulate=parts)[0].params, whole.params) for parts in (2, 4, 8)]
    return [cli.check("accumulation: relative gap to the large batch, in float64", max(gaps), "<=", 1e-10)]


if __name__ == "__main__":
    cli.run(Config, main)
