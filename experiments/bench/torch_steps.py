"""One training step in torch: ours, and the ways to write it with nn.Module. All start from our initial parameters."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from experiments.bench.workloads import WORKLOADS, Workload
from experiments.shared.registry import resolve
from fn import tree
from fn.data.datasets import digits
from fn.data.loader import batches
from fn.models import Detector, Model
from fn.optim import adamw
from fn.rng import generator
from fn.trace import trace
from fn.train import TrainState, init_train_state, run_key, several_steps
from fn.tree import Params

LR, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.999), 1e-8, 1e-2


@dataclass(frozen=True)
class Task:
    workload: tyro.conf.Positional[str]
    variant: tyro.conf.Positional[str]
    device: str = "cpu"
    seed: int = 0
    batch: int = 0
    """examples; 0 for the workload's own"""
    scale: float = 1.0
    """times the workload's own sizes"""


class Start(NamedTuple):
    """From where every variant of a workload sets out."""

    row: Workload
    made: Model | Detector
    ts: TrainState
    x: Tensor
    y: Tensor

    @property
    def model(self) -> Model:
        return self.made.model if isinstance(self.made, Detector) else self.made


class Variant(NamedTuple):
    advance: Callable[[Any], Any]
    """what it carries -> what it carries on"""
    carry: Any = None
    parameters: Callable[[Any], Iterable[Any]] = lambda carry: ()
    wait: Callable[[Any], object] = lambda carry: None
    """until the step is done, where it only has been started"""
    steps: int = 1
    """that one `advance` makes"""


def begin(task: Task) -> Start:
    row = WORKLOADS[task.workload]
    sizes = [round(size * task.scale) for size in row.sizes]
    x, y = resolve(row.data)(task.batch or row.batch, task.seed)
    made = resolve(row.model)(x.shape[1:], row.classes, **{row.option: sizes})
    start = Start(row, made, TrainState({}, {}, {}), *_to(task.device, x, y))
    return start._replace(ts=init_train_state(start.model, adamw(lr=LR), seed=task.seed, device=task.device))


def _to(device: str, *tensors: Tensor) -> list[Tensor]:
    return [x.to(device) for x in tensors]


def digits_batch(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    return next(batches(digits().train, batch, seed=seed))


def random_images(batch: int, seed: int, *, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    rng = generator(seed)
    return torch.randn(batch, *shape, generator=rng), torch.randint(10, (batch,), generator=rng)


random_mnist = partial(random_images, shape=(1, 28, 28))
random_cifar = partial(random_images, shape=(3, 32, 32))


def flop(start: Start) -> int:
    """What the products of a step cost, a multiply-add as two: those of the forward pass, as many again for the
    gradient of every weight, and for that of every layer's input but the first, unless an embedding made it."""
    _, calls = trace(start.ts.params, start.model.apply, start.ts.params, start.ts.state, start.x, train=True)
    products = [call.multiply_adds for call in calls if call.multiply_adds]
    return 2 * (3 * sum(products) - products[0] * start.x.is_floating_point())


def ours(start: Start, *, wrap: Callable[[Callable], Callable] = lambda step: step, steps: int = 1) -> Variant:
    row, made, ts, x, y = start
    step = resolve(row.step)(made, adamw(lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY))
    if steps > 1:
        step, x, y = partial(several_steps, step=step), torch.stack([x] * steps), torch.stack([y] * steps)
    step = partial(wrap(step), x=x, y=y, key=run_key(0))
    return Variant(lambda ts: step(ts)[0], ts, lambda ts: tree.leaves(ts.params), steps=steps)


def mlp_module(params: Params) -> nn.Module:
    sizes = [params["fc1"]["weight"].shape[1], *(layer["bias"].numel() for layer in params.values())]
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for i, (d_in, d_out) in enumerate(pairwise(sizes), start=1):
        layers |= {f"fc{i}": nn.Linear(d_in, d_out), f"relu{i}": nn.ReLU()}
    layers.popitem()
    return _sequential(layers)


def cnn_module(params: Params) -> nn.Module:
    layers: dict[str, nn.Module] = {}
    blocks = len(params) // 2
    for i in range(1, blocks + 1):
        out_channels, channels, height, width = params[f"conv{i}"]["weight"].shape
        layers[f"conv{i}"] = nn.Conv2d(channels, out_channels, (height, width), padding=1, bias=False)
        if i < blocks:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        layers |= {f"bn{i}": nn.BatchNorm2d(out_channels), f"relu{i}": nn.ReLU()}
    classes, d_in = params["fc"]["weight"].shape
    return _sequential(layers | {"flatten": nn.Flatten(), "fc": nn.Linear(d_in, classes)})


class Residual(nn.Module):
    """A block of two convolutions; where it changes the shape, zeros fill the shortcut's new channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride = 1 if channels == out_channels else 2
        self.zeros = (out_channels - channels) // 2
        self.conv1 = nn.Conv2d(channels, out_channels, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.zeros:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros))
        return F.relu(x + y)


def resnet_module(params: Params) -> nn.Module:
    out_channels, channels, *_ = params["conv1"]["weight"].shape
    conv = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    layers: dict[str, nn.Module] = {"conv1": conv, "bn1": nn.BatchNorm2d(out_channels), "relu": nn.ReLU()}
    for stage in [name for name in params if name.startswith("layer")]:
        blocks = [params[stage][str(i)]["conv1"]["weight"].shape[:2] for i in range(len(params[stage]))]
        layers[stage] = nn.Sequential(*[Residual(channels, out_channels) for out_channels, channels in blocks])
    classes, d_in = params["fc"]["weight"].shape
    return _sequential(
        layers | {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(d_in, classes)}
    )


def _sequential(layers: dict[str, nn.Module]) -> nn.Module:
    module = nn.Sequential()
    for name, layer in layers.items():
        module.add_module(name, layer)
    return module


def module(
    start: Start,
    *,
    fused: bool = False,
    memory_format: torch.memory_format = torch.contiguous_format,
    compile: str = "",
) -> Variant:
    """The usual loop. `compile`: the model, or the whole step."""
    row, _, ts, x, y = start
    x = x.to(memory_format=memory_format)
    network = resolve(row.module)(ts.params).to(x.device, tree.leaves(ts.params)[0].dtype)
    network.load_state_dict(tree.flatten(ts.params), strict=False)
    network.to(memory_format=memory_format)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=fused or None
    )
    loss = resolve(row.loss)
    forward = torch.compile(network) if compile == "model" else network

    def step() -> None:
        loss(forward(x), y).backward()
        optimizer.step()

    update = torch.compile(step) if compile == "step" else step

    def advance(carry: None) -> None:
        update()
        optimizer.zero_grad()

    return Variant(advance, None, lambda carry: network.parameters())
