"""The workloads of `just bench`: a row each, which names where its parts live. This file needs no torch."""

from collections.abc import Callable
from typing import Any, NamedTuple

GRID = "grid "
"""how the names of networks drawn at random begin: see grid.py"""


class Workload(NamedTuple):
    """A model and its data. Text says where a function lives, as in experiments.shared.registry."""

    model: str | Callable[..., Any]
    """f(shape, classes, *, option=sizes) -> Model"""
    module: str | Callable[..., Any]
    """f(params) -> an nn.Module of the same sizes and parameter names"""
    jax: str | Callable[..., Any]
    """f(params, state, x) -> (the input of jax_loss, state)"""
    equinox: str
    """f(params) -> the layers of an equinox.nn.Sequential; empty for a workload without"""
    data: str | Callable[..., Any]
    """f(batch, seed) -> (x, y)"""
    batch: int
    option: str
    """the name of the model's argument that takes the sizes"""
    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    """factors of the sizes, for --growth"""
    images: bool
    """whether the input has channels, which may come last"""
    module_target: float
    """the least time of the fastest nn.Module, as a multiple of ours"""
    jax_target: float
    """the least time of jax.jit, as a multiple of ours"""
    classes: int = 10
    short: bool = False
    """whether a step is so short that several in one call are worth a row"""
    step: str = "fn.train:classifier_step"
    """f(model, optimizer) -> step"""
    loss: str = "torch.nn.functional:cross_entropy"
    """f(the module's output, y)"""
    jax_loss: str = "experiments.bench.jax_steps:jax_cross_entropy"
    """f(the output of `jax`, y)"""


DATA, TORCH, JAX = "experiments.bench.torch_steps", "experiments.bench.torch_models", "experiments.bench.jax_models"
EQUINOX = "experiments.bench.equinox_models"
GPT, DETECTORS = "experiments.bench.gpt", "experiments.bench.detector_steps"
JAX_DETECTORS = "experiments.bench.jax_detectors"
WORKLOADS = {
    "mlp": Workload(
        "fn.models.mlp:mlp",
        f"{TORCH}:mlp_module",
        f"{JAX}:jax_mlp",
        f"{EQUINOX}:equinox_mlp",
        f"{DATA}:digits_batch",
        batch=64,
        option="hidden",
        sizes=(128,),
        scales=(0.25, 1, 4, 8),
        images=False,
        module_target=1.5,
        jax_target=0.8,
        short=True,
    ),
    "gpt": Workload(
        f"{GPT}:model",
        f"{GPT}:module",
        f"{GPT}:jax_apply",
        f"{GPT}:equinox_layers",
        f"{GPT}:random_text",
        batch=12,
        option="d_model",
        sizes=(128,),
        scales=(0.25, 1, 2),
        images=False,
        module_target=1.1,
        jax_target=1.0,
        classes=65,
    ),
    "cnn": Workload(
        "fn.models.cnn:cnn",
        f"{TORCH}:cnn_module",
        f"{JAX}:jax_cnn",
        f"{EQUINOX}:equinox_cnn",
        f"{DATA}:random_mnist",
        batch=128,
        option="widths",
        sizes=(32, 64, 64),
        scales=(0.5, 1, 2),
        images=True,
        module_target=1.0,
        jax_target=1.0,
    ),
    "resnet20": Workload(
        "fn.models.resnet:resnet20",
        f"{TORCH}:resnet_module",
        f"{JAX}:jax_resnet",
        f"{EQUINOX}:equinox_resnet",
        f"{DATA}:random_cifar",
        batch=128,
        option="widths",
        sizes=(16, 32, 64),
        scales=(0.5, 1, 2),
        images=True,
        module_target=1.0,
        jax_target=1.0,
    ),
}
WORKLOADS |= {
    name: Workload(
        f"fn.models.{name}:{name}",
        f"{DETECTORS}:{name}_module",
        f"{JAX_DETECTORS}:jax_{name}",
        equinox="",
        data=f"{DETECTORS}:canvases",
        batch=32,
        option="widths",
        sizes=(16, 32, 64, 64, 96, 96),
        scales=(0.5, 1, 2),
        images=True,
        module_target=1.0,
        jax_target=1.0,
        step="fn.detection.train:detector_step",
        loss=f"{DETECTORS}:{name}_module_loss",
        jax_loss=f"{JAX_DETECTORS}:jax_{name}_loss",
    )
    for name in ("ssd", "centernet")
}
SIDE = 2048  # of the square matrices whose product is the peak
PEAK = ("matrix product", "float32")
TaskName = tuple[str, ...]  # workload, variant, further flags
