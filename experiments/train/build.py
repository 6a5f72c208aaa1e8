"""The parts of a run, built from its config: data, model, optimizer, step."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.shared import cli
from experiments.shared.registry import AUGMENTS, MODELS, OPTIMIZERS, SCHEDULES, resolve
from experiments.train.config import Config
from experiments.train.first_batch import try_augment, try_model, try_schedule
from fn import train
from fn.data.datasets import Dataset, Split
from fn.data.loader import epoch_order
from fn.data.stored import Images, Stored
from fn.data.transforms import compose
from fn.distributed import data_parallel_step, place, sharded
from fn.dtensors import split_step
from fn.jit import jit
from fn.metrics import Metric, count_targets, top_k_accuracy
from fn.models import Model
from fn.optim import Optimizer, clip_by_global_norm, warmup_schedule
from fn.train import ACCURACY, NamedMetrics, classification_loss
from fn.train_variants import accumulated_step, mixed_precision

IN_MEMORY = 2**30
"""the bytes of photographs that are held in memory; of more, a batch at a time is read"""
VALIDATION_EPOCH = 2**62
"""the epoch whose order draws the validation examples; no run trains that long"""


class Parts(NamedTuple):
    model: Model
    optimizer: Optimizer
    """whose state a checkpoint holds, whole though processes share it"""
    step: Callable
    """step(ts, x, y, *, key) -> (ts, metrics)"""
    schedule: Callable[[int | Tensor], Tensor]
    """the learning rate of a step"""
    metrics: NamedMetrics
    augment: Callable | None
    data: Mapping[str, Split]
    """train, validation and test"""
    digest: str
    """of all the data: a run is not resumed on other images"""
    total_steps: int


def build(config: Config, device: torch.device) -> Parts:
    """Build the data, model, optimizer and step of a run; UsageError for parts that do not fit together."""
    data_device = None if config.workers else device  # worker processes want it on the CPU
    most_bytes = IN_MEMORY if config.dataset == "folder" else None
    options = {"root": config.root, "image_size": config.image_size, "most_bytes": most_bytes}
    dataset = cli.load(config.dataset, data_device, **options)
    data = split_data(config, dataset)
    examples = len(data["train"].labels)
    model = build_model(config, dataset, examples)
    total_steps = train.count_steps(examples, epochs=config.epochs, batch_size=config.batch_size)
    schedule = build_schedule(config, total_steps)
    top_5 = Metric(partial(top_k_accuracy, k=5), count_targets)
    transforms = [resolve(AUGMENTS[name]) for name in config.augment]
    try_schedule(schedule, name=config.schedule)
    for name, transform in zip(config.augment, transforms, strict=True):
        try_augment(transform, dataset.shape, name=name)
    return Parts(
        model=model,
        optimizer=build_optimizer(config, schedule),
        step=build_step(config, model, schedule),
        schedule=schedule,
        metrics=ACCURACY | ({"top_5_accuracy": top_5} if len(dataset.classes) > 5 else {}),
        augment=partial(compose, transforms=transforms) if transforms else None,
        data=data,
        digest=_digest(data),
        total_steps=total_steps,
    )


def split_data(config: Config, dataset: Dataset) -> dict[str, Split]:
    """Return train, validation and test: a random share of the training examples is held out for validation."""
    whole, test = (_thin(split, config.limit) for split in (dataset.train, dataset.test))
    order = epoch_order(len(whole.labels), seed=config.seed, epoch=VALIDATION_EPOCH)
    held_out, kept = order.tensor_split([round(config.validation * len(order))])
    if not len(kept):
        raise cli.UsageError(f"--limit {config.limit} and --validation {config.validation} leave nothing to train on")
    if config.patience and not len(held_out):
        raise cli.UsageError(f"--patience: --validation {config.validation} leaves no loss to watch")
    parts = {name: Split(*(x[index] for x in whole)) for name, index in (("train", kept), ("validation", held_out))}
    return parts | {"test": test}


def _thin(split: Split, limit: int | None) -> Split:
    """Return at most `limit` examples, evenly spaced, as some sets are sorted by class."""
    n = len(split.labels)
    return split if limit is None or limit >= n else Split(*(x[torch.arange(limit) * n // limit] for x in split))


def _digest(data: Mapping[str, Split]) -> str:
    digest = hashlib.sha256()
    for split in data.values():
        for x in split:
            for part in _content(x):
                digest.update(part)
    return digest.hexdigest()


def _content(x: Images) -> Iterator[bytes]:
    """Yield what tells the data from other data: the name of a file of images on the disk holds their digest."""
    if isinstance(x, Stored):
        yield x.file.name.encode()
    tensors = (x.rows, x.mean, x.std) if isinstance(x, Stored) else (x,)
    yield from (tensor.cpu().numpy().tobytes() for tensor in tensors)


def build_model(config: Config, dataset: Dataset, examples: int) -> Model:
    """Return the model, tried on the smallest part of a batch that it will meet.

    Batch norm wants two values per channel.
    """
    sizes = [min(config.batch_size, examples), examples % config.batch_size or config.batch_size]
    parts = [part for size in sizes for part in torch.empty(size).tensor_split(config.parts or 1) if len(part)]
    smallest = min(len(piece) for part in parts for piece in part.chunk(config.accumulate))
    names = ("hidden", "widths", "depth", "d_model", "layers", "heads", "patch_size", "dropout_p")
    factory = cli.by_name(MODELS, config.model, **{name: getattr(config, name) for name in names})
    model = try_model(
        factory,
        dataset.shape,
        len(dataset.classes),
        name=config.model,
        dataset=config.dataset,
        batch_size=smallest,
        seed=config.seed,
    )
    if config.precision == "bf16":
        model = model._replace(apply=mixed_precision(model.apply, torch.bfloat16))
    return model


def build_schedule(config: Config, total_steps: int) -> Callable[[int | Tensor], Tensor]:
    schedule = partial(resolve(SCHEDULES[config.schedule]), lr=config.lr, total_steps=total_steps)
    return partial(_warmed_up, schedule=schedule, warmup_steps=config.warmup_steps) if config.warmup_steps else schedule


def _warmed_up(step: int | Tensor, *, schedule: Callable, warmup_steps: int) -> Tensor:
    return warmup_schedule(step, lr=schedule(step), warmup_steps=warmup_steps)


def build_optimizer(config: Config, schedule: Callable, *, shard: bool = False, compiled: bool = False) -> Optimizer:
    factory = cli.by_name(OPTIMIZERS, config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay)
    optimizer = factory(lr=schedule)
    if compiled:
        optimizer = optimizer._replace(update=jit(optimizer.update))
    if shard:
        optimizer = sharded(optimizer)
    return optimizer if config.clip_norm is None else clip_by_global_norm(optimizer, config.clip_norm)


def build_step(config: Config, model: Model, schedule: Callable) -> Callable:
    """Return the step: of one process with the whole batch, or of any number of them that share its parts."""
    objective = partial(classification_loss, apply=model.apply, label_smoothing=config.label_smoothing)
    if config.shard == "params":
        return partial(split_step, objective=objective, optimizer=build_optimizer(config, schedule))
    shard, accumulate, batch_size = config.shard == "optimizer", config.accumulate, config.batch_size
    if config.parts in (None, 1) and place()[1] == 1:
        optimizer = build_optimizer(config, schedule, shard=shard)
        run = train.train_step if accumulate == 1 else partial(accumulated_step, parts=accumulate)
        return cli.compiled(config, partial(run, objective=objective, optimizer=optimizer), batch_size)
    optimizer = build_optimizer(config, schedule, shard=shard, compiled=config.compile)
    compile_for = batch_size if config.compile else 0
    return data_parallel_step(
        objective, optimizer, parts=config.parts or 1, accumulate=accumulate, compile_for=compile_for
    )
