"""One training step, written every way that `experiments.bench` compares, and the process that times one of them.

    python -m experiments.bench_variants mlp jit

builds, compiles and warms up, then answers on stdout, a line of JSON each, what it is asked on stdin: `time SECONDS`,
`memory`, `quit`. Every way starts from our initial parameters and does the same arithmetic; a test compares them.
"""

import gc
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.func import grad
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from experiments.bench import SIDE, WORKLOADS, Workload
from experiments.registry import resolve
from fn import tree
from fn.conv import conv2d, conv2d_init, conv2d_unfold
from fn.data.datasets import Split, digits
from fn.data.loader import batches, epoch_order
from fn.jit import jit
from fn.models import Model
from fn.optim import adam_init, adamw
from fn.rng import generator
from fn.trace import trace
from fn.train import TrainState, classifier_step, init, run_key
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
    model: Model
    ts: TrainState
    x: Tensor
    y: Tensor


class Variant(NamedTuple):
    advance: Callable[[Any], Any]
    """one step: what it carries -> what it carries on"""
    carry: Any = None
    parameters: Callable[[Any], Iterable[Any]] = lambda carry: ()
    wait: Callable[[Any], object] = lambda carry: None
    """until the step is done, where it only has been started"""


def begin(task: Task) -> Start:
    row = WORKLOADS[task.workload]
    sizes = [round(size * task.scale) for size in row.sizes]
    x, y = resolve(row.data)(task.batch or row.batch, task.seed)
    model = resolve(row.model)(x.shape[1:], 10, **{row.option: sizes})
    return Start(row, model, init(model, adam_init, seed=task.seed, device=task.device), *_to(task.device, x, y))


def _to(device: str, *tensors: Tensor) -> list[Tensor]:
    return [x.to(device) for x in tensors]


def digits_batch(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    return next(batches(digits().train, batch, seed=seed))


def random_mnist(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = generator(seed)
    return torch.randn(batch, 1, 28, 28, generator=rng), torch.randint(10, (batch,), generator=rng)


def flop(start: Start) -> int:
    """What the products of a step cost, a multiply-add as two: those of the forward pass, as many again for the
    gradient of every weight, and for that of every layer's input but the first."""
    _, calls = trace(start.ts.params, start.model.apply, start.ts.params, start.ts.state, start.x, train=True)
    products = [call.multiply_adds for call in calls if call.multiply_adds]
    return 2 * (3 * sum(products) - products[0])


def ours(start: Start, *, wrap: Callable[[Callable], Callable] = lambda step: step) -> Variant:
    _, model, ts, x, y = start
    step = classifier_step(model, partial(adamw, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY))
    step = partial(wrap(step), x=x, y=y, key=run_key(0))
    return Variant(lambda ts: step(ts)[0], ts, lambda ts: tree.leaves(ts.params))


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
    network = resolve(row.module)(ts.params).to(x.device, x.dtype)
    network.load_state_dict(tree.flatten(ts.params), strict=False)
    network.to(memory_format=memory_format)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=fused or None
    )
    forward = torch.compile(network) if compile == "model" else network

    def step() -> None:
        F.cross_entropy(forward(x), y).backward()
        optimizer.step()

    update = torch.compile(step) if compile == "step" else step

    def advance(carry: None) -> None:
        update()
        optimizer.zero_grad()

    return Variant(advance, None, lambda carry: network.parameters())


def plain_jax(start: Start) -> Variant:
    """Functions, `jax.tree.map` for AdamW, and `jax.jit`."""
    import jax  # here, not above: only two variants need it, and it may be missing
    import jax.numpy as jnp

    params, state, x, y = _for_jax(start)
    loss = partial(_jax_loss, apply=resolve(start.row.jax))

    @jax.jit
    def step(carry: tuple, x: Any, y: Any) -> tuple:
        params, state, mean, square, t = carry
        grads, state = jax.grad(loss, has_aux=True)(params, state, x, y)
        params, mean, square = _jax_adamw(params, grads, mean, square, t + 1)
        return params, state, mean, square, t + 1

    zeros = jax.tree.map(jnp.zeros_like, params)
    return Variant(
        lambda carry: step(carry, x, y),
        (params, state, zeros, zeros, jnp.zeros((), x.dtype)),
        lambda carry: jax.tree.leaves(carry[0]),
        lambda carry: jax.block_until_ready(carry[-1]),  # one program makes it all
    )


def _for_jax(start: Start) -> tuple[dict, dict, Any, Any]:
    """(params, state, x, y) laid out as XLA likes them: images and kernels channels last, matrices (d_in, d_out)."""
    laid, channels = {}, 0
    for layer, tensors in start.ts.params.items():
        weight = tensors["weight"]
        if weight.ndim == 4:
            weight, channels = weight.permute(2, 3, 1, 0), len(weight)
        elif weight.ndim == 2:
            # what was flattened was an image, and is now in another order
            weight = weight.unflatten(1, (channels or 1, -1)).transpose(1, 2).flatten(1).T
            channels = 0
        laid[layer] = tensors | {"weight": weight}
    x = start.x.permute(0, 2, 3, 1) if start.row.images else start.x
    return _as_jax(laid), _as_jax(start.ts.state), _as_jax(x), _as_jax(start.y)


def _as_jax(tensors: Any) -> Any:
    import jax.numpy as jnp

    return tree.map(lambda t: jnp.asarray(t.cpu().contiguous().numpy()), tensors)


def _jax_loss(params: dict, state: dict, x: Any, y: Any, *, apply: Callable) -> tuple[Any, dict]:
    import jax
    import jax.numpy as jnp

    logits, state = apply(params, state, x)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean(), state


def _jax_adamw(params: dict, grads: dict, mean: dict, square: dict, t: Any) -> tuple[dict, dict, dict]:
    import jax
    import jax.numpy as jnp

    beta1, beta2 = BETAS
    mean = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, mean, grads)
    square = jax.tree.map(lambda s, g: beta2 * s + (1 - beta2) * g * g, square, grads)
    step = jax.tree.map(lambda m, s: LR * (m / (1 - beta1**t)) / (jnp.sqrt(s / (1 - beta2**t)) + EPS), mean, square)
    return jax.tree.map(lambda p, d: (1 - LR * WEIGHT_DECAY) * p - d, params, step), mean, square


def jax_mlp(params: dict, state: dict, x: Any) -> tuple[Any, dict]:
    import jax

    x = x.reshape(len(x), -1)
    for i in range(1, len(params)):
        x = jax.nn.relu(x @ params[f"fc{i}"]["weight"] + params[f"fc{i}"]["bias"])
    last = params[f"fc{len(params)}"]
    return x @ last["weight"] + last["bias"], state


def jax_cnn(params: dict, state: dict, x: Any) -> tuple[Any, dict]:
    import jax

    new_state = {}
    for i in range(1, len(state) + 1):
        kernel, norm, old = params[f"conv{i}"]["weight"], params[f"bn{i}"], state[f"bn{i}"]
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        if i < len(state):
            x = jax.lax.reduce_window(x, -float("inf"), jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        n, mean, var = x.size // x.shape[-1], x.mean((0, 1, 2)), x.var((0, 1, 2))
        now = {"running_mean": mean, "running_var": var * n / (n - 1)}
        new_state[f"bn{i}"] = {name: 0.9 * old[name] + 0.1 * now[name] for name in now}
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5) * norm["weight"] + norm["bias"])
    return x.reshape(len(x), -1) @ params["fc"]["weight"] + params["fc"]["bias"], new_state


def equinox_optax(start: Start) -> Variant:
    """A module of Equinox, an optimizer of optax, `eqx.filter_jit`."""
    import equinox as eqx
    import jax
    import optax

    layers = resolve(start.row.equinox)({name: _as_jax(layer) for name, layer in start.ts.params.items()})
    model, state = eqx.nn.make_with_state(eqx.nn.Sequential)(layers)
    x, y = _as_jax(start.x), _as_jax(start.y)
    optimizer = optax.adamw(LR, *BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)

    def loss(model: Any, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        logits, state = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    @eqx.filter_jit
    def step(carry: tuple, x: Any, y: Any) -> tuple:
        model, state, moments = carry
        grads, state = eqx.filter_grad(loss, has_aux=True)(model, state, x, y)
        updates, moments = optimizer.update(grads, moments, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, moments

    return Variant(
        lambda carry: step(carry, x, y),
        (model, state, optimizer.init(eqx.filter(model, eqx.is_inexact_array))),
        lambda carry: jax.tree.leaves(eqx.filter(carry[0], eqx.is_inexact_array)),
        lambda carry: jax.block_until_ready(carry[2][0].count),
    )


def equinox_mlp(params: Params) -> list[Any]:
    import jax
    from equinox import nn

    key, layers = jax.random.key(0), [nn.Lambda(lambda x: x.ravel())]
    for i in range(1, len(params) + 1):
        d_out, d_in = params[f"fc{i}"]["weight"].shape
        layers += [_filled(nn.Linear(d_in, d_out, key=key), params[f"fc{i}"]), nn.Lambda(jax.nn.relu)]
    return layers[:-1]


def equinox_cnn(params: Params) -> list[Any]:
    import jax
    from equinox import nn

    key, layers = jax.random.key(0), []
    blocks = len(params) // 2
    for i in range(1, blocks + 1):
        out_channels, channels, *kernel = params[f"conv{i}"]["weight"].shape
        conv = nn.Conv2d(channels, out_channels, kernel, padding=1, use_bias=False, key=key)
        pool = [nn.MaxPool2d(2, 2)] if i < blocks else []
        norm = nn.BatchNorm(out_channels, "batch", mode="batch")
        layers += [_filled(conv, params[f"conv{i}"]), *pool, _filled(norm, params[f"bn{i}"]), nn.Lambda(jax.nn.relu)]
    classes, d_in = params["fc"]["weight"].shape
    return [*layers, nn.Lambda(lambda x: x.ravel()), _filled(nn.Linear(d_in, classes, key=key), params["fc"])]


def _filled(layer: Any, tensors: dict[str, Any]) -> Any:
    """The layer with these parameters in place of those that it drew."""
    import equinox as eqx

    return eqx.tree_at(lambda layer: [getattr(layer, name) for name in tensors], layer, list(tensors.values()))


VARIANTS: dict[str, Callable[[Start], Variant]] = {
    "eager": ours,
    "eager, unchecked": ours,
    "jit": partial(ours, wrap=jit),
    "jit, unchecked": partial(ours, wrap=jit),
    "jit, donated": partial(ours, wrap=partial(jit, donate=True)),
    "nn.Module": module,
    "nn.Module, fused": partial(module, fused=True),
    "nn.Module, fused, NHWC": partial(module, fused=True, memory_format=torch.channels_last),
    "nn.Module, compiled": partial(module, fused=True, compile="model"),
    "nn.Module, compiled, NHWC": partial(module, fused=True, compile="model", memory_format=torch.channels_last),
    "nn.Module, step compiled": partial(module, compile="step"),
    "nn.Module, step compiled, NHWC": partial(module, compile="step", memory_format=torch.channels_last),
    "jax.jit": plain_jax,
    "Equinox, optax": equinox_optax,
}


def tasks(workload: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(what there is to time, the libraries that are missing for the rest); NHWC, channels last, is for images only."""
    missing = [library for library in ("jax", "equinox", "optax") if not find_spec(library)]
    absent = {"jax.jit"} if "jax" in missing else set()
    absent |= {"Equinox, optax"} if missing else set()
    if not WORKLOADS[workload].images:
        absent |= {name for name in VARIANTS if "NHWC" in name}
    return [(workload, name) for name in VARIANTS if name not in absent], missing


def convolution(task: Task, *, way: Callable) -> Variant:
    """The convolution of Lab 1, forward and backward"""
    rng = generator(task.seed)
    inputs = {"x": torch.randn(32, 32, 14, 14, generator=rng), **conv2d_init(rng, 32, 64, 3)}
    inputs = tree.to(inputs, task.device)
    weights = torch.randn(32, 64, 14, 14, generator=rng).to(task.device)
    return Variant(lambda carry: grad(lambda inputs: (way(**inputs, padding="same") * weights).sum())(inputs))


def loader(task: Task, *, by_batch: bool) -> Variant:
    """An epoch of 5,120 images of 28×28 in random order, batches of 128"""
    split = Split(*random_mnist(5120, task.seed))
    order = epoch_order(5120, seed=task.seed, epoch=0).tolist()
    by_example = DataLoader(TensorDataset(*split), 128, sampler=order)
    return Variant(lambda carry: deque(batches(split, 128, seed=task.seed) if by_batch else by_example, maxlen=0))


def matrix_product(task: Task) -> Variant:
    a, b = torch.randn(2, SIDE, SIDE, generator=generator(task.seed)).to(task.device)
    return Variant(lambda carry: a @ b)


OPS: dict[str, dict[str, Callable[[Task], Variant]]] = {
    "convolution": {"native": partial(convolution, way=conv2d), "unfold": partial(convolution, way=conv2d_unfold)},
    "loader": {"by batch": partial(loader, by_batch=True), "DataLoader": partial(loader, by_batch=False)},
    "matrix product": {"float32": matrix_product},
}


def build(task: Task) -> tuple[Variant, float]:
    """(the variant after its first steps, the seconds that it took to build it and make them)"""
    make, given = (OPS[task.workload], task) if task.workload in OPS else (VARIANTS, begin(task))
    began = time.perf_counter()
    variant = make[task.variant](given)  # pyright: ignore
    if task.device == "cuda":
        variant = variant._replace(wait=lambda carry: torch.cuda.synchronize())
    for _ in range(3):
        variant, _ = run(variant, 0)
    return variant, time.perf_counter() - began


def run(variant: Variant, seconds: float) -> tuple[Variant, float]:
    """(the variant after as many steps as are begun in so many seconds, at least one; seconds per step)"""
    advance, carry, _, wait = variant
    steps, began = 0, time.perf_counter()
    while True:
        carry = advance(carry)
        wait(carry)
        steps, now = steps + 1, time.perf_counter()
        if now - began >= seconds:
            return variant._replace(carry=carry), (now - began) / steps


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """The most bytes that tensors hold at once during a step, those that were there before it included."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        result = step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    tensors = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
    held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    del tensors
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = step()
    del result
    events: list[Any] = sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns())  # pyright: ignore
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return held + max(accumulate(changes), default=0)


def serve(task: Task) -> None:
    """Build, say so, and then do as told until told to quit."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    variant, ready = build(task)
    variant, _ = run(variant, 0.5)
    versions = {name: version(name) for name in ("torch", "jax", "equinox", "optax") if name in sys.modules}
    print(json.dumps({"ready": ready, "versions": versions}), file=replies)
    for line in sys.stdin:
        match line.split():
            case ["time", seconds]:
                variant, _ = run(variant, float(seconds) / 10)  # others have had the caches since
                variant, each = run(variant, float(seconds))
                print(json.dumps(each), file=replies)
            case ["memory"]:
                print(json.dumps(peak_bytes(partial(variant.advance, variant.carry), task.device)), file=replies)
            case _:
                break


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        serve(tyro.cli(Task))
