"""The process that times one way to train.

    python -m experiments.bench.worker mlp jit

builds, compiles and warms up, then answers on stdout, a line of JSON each, what it is asked on stdin: `time SECONDS`,
`memory`, `quit`.
"""

import gc
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.func import grad
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset
from torchvision import ops

from experiments.bench.jax_steps import equinox_optax, plain_jax
from experiments.bench.torch_steps import Start, Task, Variant, begin, module, ours, random_mnist
from experiments.bench.workloads import SIDE, WORKLOADS
from fn import tree
from fn.conv import conv2d, conv2d_init, conv2d_unfold
from fn.data.datasets import Split
from fn.data.loader import batches, epoch_order
from fn.detection.boxes import batched_nms, nms
from fn.jit import jit
from fn.rng import generator

FOUR = "jit, four steps a call"
VARIANTS: dict[str, Callable[[Start], Variant]] = {
    "eager": ours,
    "eager, unchecked": ours,
    "jit": partial(ours, wrap=jit),
    "jit, unchecked": partial(ours, wrap=jit),
    "jit, donated": partial(ours, wrap=partial(jit, donate=True)),
    FOUR: partial(ours, wrap=jit, steps=4),
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
    """(what there is to time, the libraries that are missing for the rest).

    NHWC, channels last, is for images only; several steps a call for what is so small that the call itself counts.
    """
    missing = [library for library in ("jax", "equinox", "optax") if not find_spec(library)]
    absent = {"jax.jit"} if "jax" in missing else set()
    absent |= {"Equinox, optax"} if missing else set()
    row = WORKLOADS[workload]
    absent |= set() if row.equinox else {"Equinox, optax"}
    absent |= set() if row.short else {FOUR}
    absent |= set() if row.images else {name for name in VARIANTS if "NHWC" in name}
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


def suppression(task: Task, *, way: Callable, classes: int = 0) -> Variant:
    """Non-maximum suppression among 5,000 boxes, of which 400 objects have a dozen each, on one thread"""
    torch.set_num_threads(1)  # torchvision's kernel has no more
    rng = generator(task.seed)
    objects = torch.rand(400, 4, generator=rng)
    boxes = objects[torch.randint(400, (5000,), generator=rng)] + 0.01 * torch.randn(5000, 4, generator=rng)
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + 0.05 + 0.1 * boxes[:, 2:].abs()], dim=1).to(task.device)
    scores = torch.rand(5000, generator=rng).to(task.device)
    given = (boxes, scores)
    if classes:
        given = (*given, torch.randint(classes, (5000,), generator=rng).to(task.device))
    return Variant(lambda carry: way(*given, 0.5))


def matrix_product(task: Task) -> Variant:
    a, b = torch.randn(2, SIDE, SIDE, generator=generator(task.seed)).to(task.device)
    return Variant(lambda carry: a @ b)


OPS: dict[str, dict[str, Callable[[Task], Variant]]] = {
    "convolution": {"native": partial(convolution, way=conv2d), "unfold": partial(convolution, way=conv2d_unfold)},
    "loader": {"by batch": partial(loader, by_batch=True), "DataLoader": partial(loader, by_batch=False)},
    "NMS": {"written out": partial(suppression, way=nms), "torchvision": partial(suppression, way=ops.nms)},
    "NMS of 10 classes": {
        "written out": partial(suppression, way=batched_nms, classes=10),
        "torchvision": partial(suppression, way=ops.batched_nms, classes=10),
    },
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
    advance, carry, _, wait, each = variant
    steps, began = 0, time.perf_counter()
    while True:
        carry = advance(carry)
        wait(carry)
        steps, now = steps + each, time.perf_counter()
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
