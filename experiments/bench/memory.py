"""The memory that a step takes, in bytes of tensors."""

import gc
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """Return the most bytes that tensors hold at once during a call of `step`, those from before it included."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    tensors = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided]
    held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    del tensors
    return held + peak_growth(step)


def peak_growth(step: Callable[[], object]) -> int:
    """Return the most bytes that tensors on the CPU hold at once during a call of `step`, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = step()
    del result
    events: list[Any] = sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns())  # pyright: ignore
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(changes), default=0)
