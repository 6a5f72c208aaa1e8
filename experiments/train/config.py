"""Train any model on any data set: one script, whose runs can be repeated, interrupted and resumed bit for bit.

A run is a folder: config.json, metrics.jsonl, checkpoints, curves.png, summary.json.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from experiments.shared import cli, ranks
from experiments.shared.registry import AugmentName, DatasetName, ModelName, OptimizerName, ScheduleName

BESIDE_RESUME = ("device", "traceback", "processes", "max_restarts")
"""flags that belong to one start of a run, not to the run"""
DIVISIBLE = ("mlp", "transformer")
"""models whose parameters DTensor can divide: it has no rule for the windows of a convolution as ours are cut"""


@dataclass(frozen=True)
class Config(cli.Compiled):
    out: Path = Path("runs/train")
    """the folder of the run"""
    resume: cli.MaybePath = None
    """a run's folder, or one of its checkpoints, to continue; needs no other flag"""
    config: cli.MaybePath = None
    """a config.json to repeat; flags beside it win"""
    overwrite: bool = False
    """start anew in a folder that holds a run"""

    model: ModelName = "cnn"
    """the family of models"""
    hidden: cli.MaybeSizes = None
    """sizes of the hidden layers of an mlp (128)"""
    widths: cli.MaybeSizes = None
    """channels of the blocks of a cnn (32 64 64), of the stages of a resnet (16 32 64)"""
    depth: Annotated[cli.MaybeInt, cli.Between(1, 10**4)] = None
    """layers of a resnet (8)"""
    d_model: cli.MaybeSize = None
    """width of a transformer (64)"""
    layers: Annotated[cli.MaybeInt, cli.Between(1, 1000)] = None
    """of a transformer (2)"""
    heads: cli.MaybeSize = None
    """of each layer of a transformer (4)"""
    patch_size: Annotated[cli.MaybeInt, cli.Between(1, 4096)] = None
    """height and width of a transformer's patches (the smallest of which there are at most 64)"""
    dropout_p: cli.MaybeShare = None
    """the share of activations dropped in training (0)"""

    dataset: DatasetName = "digits"
    """what it learns"""
    root: cli.MaybePath = None
    """the directory of photographs, a sub-directory per class, of --dataset folder"""
    image_size: Annotated[cli.MaybeInt, cli.Between(1, 4096)] = None
    """height and width that the photographs of --dataset folder are cut to (64)"""
    limit: cli.MaybeCount = None
    """only so many examples of each split, evenly spaced"""
    validation: Annotated[float, cli.Between(0.0, 0.9)] = 0.1
    """the share of the training examples held out to choose the best epoch by"""
    augment: tuple[AugmentName, ...] = ()
    """random variations of the training images, one after the other"""
    workers: Annotated[int, cli.Between(0, 256)] = 0
    """processes that prepare batches ahead; they change no value"""

    epochs: cli.Count = 10
    """passes over the training examples"""
    batch_size: cli.Count = 64
    """examples per update"""
    accumulate: cli.Count = 1
    """parts that a batch is done in, to need less memory; batch norm sees the parts"""
    optimizer: OptimizerName = "adamw"
    """the rule of the update"""
    lr: cli.Rate = 5e-3
    """the highest learning rate"""
    schedule: ScheduleName = "one_cycle"
    """how the rate moves from first step to last"""
    warmup_steps: Annotated[int, cli.Between(0, 10**9)] = 0
    """steps over which the rate, whatever its schedule, rises from 0"""
    momentum: cli.MaybeShare = None
    """of sgd (0)"""
    weight_decay: cli.MaybeRate = None
    """the optimizer's own unless given"""
    clip_norm: Annotated[cli.MaybeFloat, cli.Between(1e-9, 1e9)] = None
    """the largest gradient norm; larger ones are scaled down to it"""
    label_smoothing: cli.Share = 0.0
    """the share of the target's probability spread over all classes"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of the products; parameters and sums stay in fp32"""
    patience: cli.MaybeCount = None
    """stop after so many epochs without a better validation loss"""

    parts: cli.MaybeCount = None
    """pieces that a batch is cut into for processes to share (8 where there are processes, else 1)"""
    threads: cli.MaybeCount = None
    """of each process, as their number changes how sums are rounded (1 where there are parts, else one per core)"""
    processes: Annotated[cli.MaybeInt, cli.Between(1, 1024)] = None
    """processes on this machine, or torchrun starts them; their number changes no value"""
    max_restarts: Annotated[int, cli.Between(0, 1000)] = 0
    """how often a process that is lost is replaced"""
    shard: Literal["nothing", "optimizer", "params"] = "nothing"
    """what the processes divide among them, to need less memory: the optimizer's state (ZeRO-1), parameters too"""

    checkpoint_every: cli.MaybeCount = None
    """steps between checkpoints, besides the one after each epoch"""
    keep: cli.Count = 3
    """how many of the last checkpoints to keep, besides the best"""
    deterministic: bool = False
    """refuse operations that may differ from run to run"""
    tensorboard: bool = False
    """log for TensorBoard too (needs the extra: uv run --extra tensorboard …)"""
    target_accuracy: cli.MaybeShare = None
    """exit 1 if the test accuracy stays below; unless given, only a test loss that is not finite fails the run"""

    def compile_pays(self) -> bool:
        large = self.dataset not in ("digits", "folder") and (self.limit is None or self.limit >= 10_000)
        large = large and self.shard != "params"
        return large and self.epochs >= (7 if self.model == "mlp" else 2)  # where MNIST's two lines cross


def parse(config_type: type[Config], argv: Sequence[str]) -> Config:
    """Return the config from the flags, from the file that they name, or from the run that they resume."""
    config = cli.parse(config_type, argv)
    if resume := config.resume:
        beside = {name: getattr(config, name) for name in BESIDE_RESUME}
        if config != Config(resume=resume, **beside):
            raise cli.UsageError(
                "--resume takes the config of the run, and no flag beside it but --device, --processes"
            )
        if not resume.exists():
            raise cli.UsageError(f"--resume {resume}: there is no such folder or checkpoint")
        run = resume if resume.is_dir() else resume.absolute().parent.parent
        if not (run / "config.json").exists():
            raise cli.UsageError(f"--resume {resume}: {run} holds no run, as there is no config.json in it")
        device = [] if config.device == "auto" else ["--device", config.device]
        config = cli.parse(config_type, ["--parts", "1", *cli.as_flags(config_type, run / "config.json"), *device])
        config = dataclasses.replace(config, resume=resume, out=run, **beside)
    elif config.config:
        config = cli.parse(config_type, [*cli.as_flags(config_type, config.config), *argv])
    config = with_parts(config)
    require_valid(config)
    return config if config.root is None else dataclasses.replace(config, root=config.root.absolute())


def with_parts(config: Config) -> Config:
    """Return the config with the parts and threads that depend on whether there are processes."""
    many, divided = bool(config.processes or ranks.processes()), config.shard == "params"
    parts = config.parts or (8 if many and not divided else 1)
    threads = config.threads or (1 if parts > 1 or divided else None)
    return dataclasses.replace(config, parts=parts, threads=threads)


def require_valid(config: Config) -> None:
    """Raise UsageError for two values that do not go together."""
    if config.accumulate > config.batch_size:
        raise cli.UsageError(f"--accumulate {config.accumulate} cannot part a batch of {config.batch_size}")
    parts, processes = config.parts or 1, ranks.processes() or config.processes or 1
    if parts > config.batch_size:
        raise cli.UsageError(f"--parts {parts} cannot part a batch of {config.batch_size}")
    if config.shard == "params":
        require_divisible(config)
        return
    each, left = divmod(parts, processes)
    if processes > 1 and (left or each.bit_count() != 1):
        fixed = "; a run keeps its parts, so fewer processes must go on with this one" if config.resume else ""
        raise cli.UsageError(f"--parts {parts}: {processes} processes must get 1, 2, 4 or 8 … of them each{fixed}")


def require_divisible(config: Config) -> None:
    """Raise UsageError for a run whose parameters cannot be divided."""
    if config.model not in DIVISIBLE:
        models = " and ".join(DIVISIBLE)
        raise cli.UsageError(f"--shard params divides {models}, not {config.model}: --shard optimizer divides any")
    wrong = {"--parts": (config.parts or 1) > 1, "--accumulate": config.accumulate > 1, "--compile": config.compile}
    wrong["--precision bf16"] = config.precision == "bf16"
    for flag in (flag for flag, given in wrong.items() if given):
        raise cli.UsageError(f"--shard params does not go with {flag}: --shard optimizer does")
