"""The process that times one way to train.

    python -m experiments.bench.worker mlp jit

builds, compiles and warms up. It then reads questions on stdin (`time SECONDS`, `memory`, `quit`) and answers each on
stdout with a line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import torch
import tyro

from experiments.bench.jax_steps import equinox_optax, plain_jax
from experiments.bench.memory import peak_bytes
from experiments.bench.ops import OPS
from experiments.bench.torch_steps import Start, Task, Variant, begin, find, module, ours
from fn.jit import jit

FOUR_STEPS = "jit, four steps a call"
VARIANTS: dict[str, Callable[[Start], Variant]] = {
    "eager": ours,
    "eager, unchecked": ours,
    "jit": partial(ours, wrap=jit),
    "jit, unchecked": partial(ours, wrap=jit),
    "jit, donated": partial(ours, wrap=partial(jit, donate=True)),
    FOUR_STEPS: partial(ours, wrap=jit, steps=4),
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
    """Return (the tasks of a workload that can be timed here, the libraries that are missing for the others).

    NHWC, channels last, is for images only; several steps a call are for steps so short that the call itself counts.
    """
    missing = [library for library in ("jax", "equinox", "optax") if not find_spec(library)]
    absent = {"jax.jit"} if "jax" in missing else set()
    absent |= {"Equinox, optax"} if missing else set()
    row = find(workload)
    absent |= set() if row.equinox else {"Equinox, optax"}
    absent |= set() if row.short else {FOUR_STEPS}
    absent |= set() if row.images else {name for name in VARIANTS if "NHWC" in name}
    return [(workload, name) for name in VARIANTS if name not in absent], missing


def build(task: Task) -> tuple[Variant, float]:
    """Return (the variant after its first steps, the seconds to build it and take them)"""
    start = None if task.workload in OPS else begin(task)
    began = time.perf_counter()
    variant = VARIANTS[task.variant](start) if start else OPS[task.workload][task.variant](task)
    if task.device == "cuda":
        variant = variant._replace(wait=lambda carry: torch.cuda.synchronize())
    for _ in range(3):
        variant, _ = run(variant, 0)
    return variant, time.perf_counter() - began


def run(variant: Variant, seconds: float) -> tuple[Variant, float]:
    """Return (the variant after the steps begun within `seconds`, at least one; seconds per step)"""
    advance, carry, _, wait, steps_per_call = variant
    steps, began = 0, time.perf_counter()
    while True:
        carry = advance(carry)
        wait(carry)
        steps, now = steps + steps_per_call, time.perf_counter()
        if now - began >= seconds:
            return variant._replace(carry=carry), (now - began) / steps


def serve(task: Task) -> None:
    """Build, announce it, and answer questions until `quit` or the end of stdin."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the output of libraries must not mix with the replies
    variant, ready = build(task)
    variant, _ = run(variant, 0.5)
    versions = {name: version(name) for name in ("torch", "jax", "equinox", "optax") if name in sys.modules}
    print(json.dumps({"ready": ready, "versions": versions}), file=replies)
    for line in sys.stdin:
        match line.split():
            case ["time", seconds]:
                variant, _ = run(variant, float(seconds) / 10)  # other processes have used the caches since
                variant, per_step = run(variant, float(seconds))
                print(json.dumps(per_step), file=replies)
            case ["memory"]:
                print(json.dumps(peak_bytes(partial(variant.advance, variant.carry), task.device)), file=replies)
            case _:
                break


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        serve(tyro.cli(Task))
