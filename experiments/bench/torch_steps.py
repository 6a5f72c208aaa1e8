"""The training step in torch: ours, and the ways to write it with nn.Module. All start from our initial parameters."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from experiments.bench import grid
from experiments.bench.workloads import GRID, WORKLOADS, Workload
from experiments.shared.registry import resolve
from fn import tree
from fn.data.datasets import digits
from fn.data.loader import batches
from fn.models import Detector, Model
from fn.optim import adamw
from fn.rng import generator
from fn.train import TrainState, init_train_state, run_key
from fn.train_variants import several_steps

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
    """factor of the workload's own sizes"""


class Start(NamedTuple):
    """The common start of all variants of a workload."""

    workload: Workload
    network: Model | Detector
    ts: TrainState
    x: Tensor
    y: Tensor

    @property
    def model(self) -> Model:
        return self.network.model if isinstance(self.network, Detector) else self.network


class Variant(NamedTuple):
    advance: Callable[[Any], Any]
    """advance(carry) -> the carry after the step"""
    carry: Any = None
    parameters: Callable[[Any], Iterable[Any]] = lambda carry: ()
    """parameters(carry) -> the parameters that it holds"""
    wait: Callable[[Any], object] = lambda carry: None
    """wait(carry) returns when the step is done, which `advance` may only have started"""
    steps: int = 1
    """training steps of one `advance`"""


def find(name: str) -> Workload:
    """Return a row of WORKLOADS, or a network of the grid."""
    return grid.workload(name) if name.startswith(GRID) else WORKLOADS[name]


def part(place: str | Callable) -> Callable:
    """Return a function of a workload, which its row names or holds."""
    return place if callable(place) else resolve(place)


def begin(task: Task) -> Start:
    """Load a batch and initialise the network."""
    workload = find(task.workload)
    sizes = [round(size * task.scale) for size in workload.sizes]
    x, y = part(workload.data)(task.batch or workload.batch, task.seed)
    network = part(workload.model)(x.shape[1:], workload.classes, **({workload.option: sizes} if sizes else {}))
    start = Start(workload, network, TrainState({}, {}, {}), x.to(task.device), y.to(task.device))
    ts = init_train_state(start.model, adamw(lr=LR), seed=task.seed, device=task.device)
    return start._replace(ts=ts)


def digits_batch(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the first batch of digits in the order of the seed."""
    return next(batches(digits().train, batch, seed=seed))


def random_images(batch: int, seed: int, *, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return images of noise and random labels of ten classes."""
    rng = generator(seed)
    return torch.randn(batch, *shape, generator=rng), torch.randint(10, (batch,), generator=rng)


random_mnist = partial(random_images, shape=(1, 28, 28))
random_cifar = partial(random_images, shape=(3, 32, 32))


def flop(start: Start) -> int:
    """Return the floating-point operations of the products in a step, a multiply-add being two, as torch counts them.

    The backward pass of torch's attention kernel counts as four products, those of the gradients. The fifth, the scores
    computed again to save memory, is the kernel's own choice: with it the gpt takes 4,014,538,752, not 3,964,207,104.
    """
    step = ours(start)
    with FlopCounterMode(display=False, custom_mapping={ATTENTION_BACKWARD: _attention_backward_flop}) as counter:
        step.advance(step.carry)
    return counter.get_total_flops()


ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _attention_backward_flop(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return 2 * sdpa_flop_count(query, key, value)


def ours(start: Start, *, wrap: Callable[[Callable], Callable] = lambda step: step, steps: int = 1) -> Variant:
    """Return our step, `wrap`ped by `jit` for instance; `steps` of them in a call."""
    workload, network, ts, x, y = start
    step = resolve(workload.step)(network, adamw(lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY))
    if steps > 1:
        step, x, y = partial(several_steps, step=step), torch.stack([x] * steps), torch.stack([y] * steps)
    step = partial(wrap(step), x=x, y=y, key=run_key(0))
    return Variant(lambda ts: step(ts)[0], ts, lambda ts: tree.leaves(ts.params), steps=steps)


def module(
    start: Start,
    *,
    fused: bool = False,
    memory_format: torch.memory_format = torch.contiguous_format,
    compile: str = "",
) -> Variant:
    """Return the usual step of nn.Module. `compile`: "model", or the whole "step"."""
    workload, _, ts, x, y = start
    x = x.to(memory_format=memory_format)
    network = part(workload.module)(ts.params).to(x.device, tree.leaves(ts.params)[0].dtype)
    network.load_state_dict(tree.flatten(ts.params), strict=False)
    network.to(memory_format=memory_format)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=fused or None
    )
    loss = resolve(workload.loss)
    forward = torch.compile(network) if compile == "model" else network

    def step() -> None:
        loss(forward(x), y).backward()
        optimizer.step()

    update = torch.compile(step) if compile == "step" else step

    def advance(carry: None) -> None:
        update()
        optimizer.zero_grad()

    return Variant(advance, None, lambda carry: network.parameters())
