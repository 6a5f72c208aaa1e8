"""The models, data sets and so on that a flag names. Each row says where a function lives; `resolve` fetches it.

Rows are text, so that `--help` can list the names without importing fn and torch, which takes seconds. The contracts:

    MODELS      f(shape, classes, *, options…) -> Model(init, apply)           see fn.models
    DETECTORS   f(shape, classes, *, options…) -> Detector(model, loss, detect) see fn.models
    DATASETS    f(options…) -> Dataset                                         see fn.data.datasets
    OPTIMIZERS  f(*, lr, options…) -> Optimizer(init, update), lr a number or a schedule    see fn.optim
    SCHEDULES   f(step, *, lr, total_steps) -> the rate of that step
    AUGMENTS    f(x, key) -> x, a key per image                                see fn.data.transforms
"""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from experiments.shared.flags import UsageError

MODELS = {
    "mlp": "fn.models.mlp:mlp",
    "cnn": "fn.models.cnn:cnn",
    "transformer": "fn.models.transformer:transformer",
    "resnet": "fn.models.resnet:resnet",
}
DETECTORS = {
    "ssd": "fn.models.ssd:ssd",
    "centernet": "fn.models.centernet:centernet",
}
DATASETS = {
    "digits": "fn.data.datasets:digits",
    "mnist": "fn.data.datasets:mnist",
    "fashion_mnist": "fn.data.datasets:fashion_mnist",
    "cifar10": "fn.data.datasets:cifar10",
    "folder": "fn.data.datasets:folder",
}
OPTIMIZERS = {
    "sgd": "fn.optim:sgd",
    "adam": "fn.optim:adam",
    "adamw": "fn.optim:adamw",
}
SCHEDULES = {
    "constant": "fn.optim:constant_schedule",
    "cosine": "fn.optim:cosine_schedule",
    "one_cycle": "fn.optim:one_cycle_schedule",
}
AUGMENTS = {
    "crop": "fn.data.transforms:random_crop",
    "resized_crop": "fn.data.transforms:random_resized_crop",
    "flip": "fn.data.transforms:random_horizontal_flip",
    "affine": "fn.data.transforms:random_affine",
    "cutout": "fn.data.transforms:random_cutout",
}

if TYPE_CHECKING:
    ModelName: TypeAlias = str
    DatasetName: TypeAlias = str
    RootlessName: TypeAlias = str
    OptimizerName: TypeAlias = str
    ScheduleName: TypeAlias = str
    AugmentName: TypeAlias = str
    FamilyName: TypeAlias = str
else:  # so that --help lists the names, and another one is refused
    ModelName, DatasetName = Literal[tuple(MODELS)], Literal[tuple(DATASETS)]
    RootlessName = Literal[tuple(name for name in DATASETS if name != "folder")]  # needs no --root
    OptimizerName, ScheduleName = Literal[tuple(OPTIMIZERS)], Literal[tuple(SCHEDULES)]
    AugmentName, FamilyName = Literal[tuple(AUGMENTS)], Literal[("all", *MODELS, *DETECTORS)]


def resolve(where: str) -> Callable[..., Any]:
    """Return the function that a row names: resolve(MODELS["cnn"]). UsageError if there is none."""
    try:
        return resolve_name(where)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"a row of experiments/shared/registry.py names {where!r}: {error}") from error
