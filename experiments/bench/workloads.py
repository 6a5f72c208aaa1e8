"""What `just bench` trains: a row per workload, which names where its parts live. No torch is needed to read it."""

from typing import NamedTuple


class Workload(NamedTuple):
    """What is trained, and on what. Text as in experiments.shared.registry: where a function lives."""

    model: str
    """f(shape, classes, *, option=sizes) -> Model"""
    module: str
    """f(params) -> the same as an nn.Module, its parameters named alike"""
    jax: str
    """f(params, state, x) -> (what its loss takes, state)"""
    equinox: str
    """f(params) -> the layers of an equinox.nn.Sequential; empty where there are none"""
    data: str
    """f(batch, seed) -> (x, y)"""
    batch: int
    option: str
    """of the model, which takes the sizes"""
    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    """times the sizes, for --growth"""
    images: bool
    """whether it makes a difference that channels come last"""
    module_target: float
    """the least time of the fastest nn.Module, as a multiple of ours"""
    jax_target: float
    """the least time of jax.jit, as a multiple of ours"""
    classes: int = 10
    short: bool = False
    """whether a step is so short that the call itself counts, and several are made at once"""
    step: str = "fn.train:classifier_step"
    """f(model, optimizer) -> step"""
    loss: str = "torch.nn.functional:cross_entropy"
    """f(what the module returns, y)"""
    jax_loss: str = "experiments.bench.jax_steps:jax_cross_entropy"
    """likewise"""


TORCH, JAX = "experiments.bench.torch_steps", "experiments.bench.jax_steps"
GPT, DETECTORS = "experiments.bench.gpt", "experiments.bench.detector_steps"
JAX_DETECTORS = "experiments.bench.jax_detectors"
WORKLOADS = {
    "mlp": Workload(
        "fn.models.mlp:mlp",
        f"{TORCH}:mlp_module",
        f"{JAX}:jax_mlp",
        f"{JAX}:equinox_mlp",
        f"{TORCH}:digits_batch",
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
        f"{JAX}:equinox_cnn",
        f"{TORCH}:random_mnist",
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
        f"{JAX}:equinox_resnet",
        f"{TORCH}:random_cifar",
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
SIDE = 2048  # of the matrices whose product is the peak
PEAK = ("matrix product", "float32")
TaskName = tuple[str, ...]  # what is trained, how, and further flags
