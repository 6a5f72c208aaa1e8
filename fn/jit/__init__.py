"""Trace a step once with every check on, then run it compiled, without checks.

A step is a pure function of trees of tensors. So one run on shapes alone, with all shape checks on, determines what it
does for every input of these shapes. `fn.jit.compiler` records that run (forward, gradient, optimizer) as one graph
and compiles it. After that, no line of the step's Python runs, and in the next process not even that run is made:
`fn.jit.disk` keeps what was compiled, under a key that `fn.jit.fingerprint` makes of all that the step can reach.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import no_type_check

import torch

from fn.jit.compiler import Program, compile_step, flatten_call, lay, rebuild
from fn.jit.contents import JitError

MANY = 8


def jit(step: Callable, *, donate: bool = False) -> Callable:
    """Compile `step` once for each signature: tree, shapes, dtypes, devices, and the values that are no tensors.

    An object counts by all that it holds (fn.jit.contents). What the step reads beside its arguments stays what it was
    at the first call, as under jax.jit.

    The next process with the same code, shapes, versions and settings runs what this one compiled, at once. A step of
    which it cannot be told whether it is the same, as one that prints or reads a file, is traced in every process, and
    compiled if its graph is a new one.

    Whatever a new signature violates surfaces as it would without `jit`, as the same TypeCheckError. Where there is a
    convolution on a CPU, images and kernels are laid out channels last. Under `grad`, `vmap` or another `jit` the
    step itself runs.

    Inputs are never written to, unless `donate` gives up the first argument, as donate_argnums=0 does for jax.jit: the
    first result, of the same tree and shapes, takes the memory of its tensors, so that old and new are never both held.
    The process keeps the memory that it then frees, where that is up to glibc. Modes such as autocast are those of the
    first call. An index that is no row, such as a target that is no class, is the same ValueError as without `jit`, but
    after the step: what was donated is lost then.

    JitError for a step that needs the value of a tensor while being traced (`.item()`, `if tensor:`), that writes to an
    argument, or that uses a tensor which is not among them, as that would be frozen at what it holds now. Without a C++
    compiler: one warning, and the step runs as it is.
    """
    programs: dict[tuple, Program] = {}

    @wraps(step)
    @no_type_check
    def jitted(*args, **kwargs):
        if torch._C._functorch.peek_interpreter_stack() or torch._C._len_torch_dispatch_stack():
            return step(*args, **kwargs)
        leaves, signature = [], []
        flatten_call((args, kwargs), leaves, signature)
        program = programs.get(key := tuple(signature))
        if program is None:
            program = programs[key] = compile_step(step, args, kwargs, donate=donate)
            if len(programs) == MANY:
                warnings.warn(
                    f"jit: {MANY} signatures of {getattr(step, '__name__', step)}; a number that changes from call to "
                    "call should be a tensor, and batches should have one size",
                    stacklevel=1,
                )
        if program.run is None:
            return step(*args, **kwargs)
        laid = [t if t.stride() == s else lay(t, s) for t, s in zip(leaves, program.strides, strict=True)]
        donated = laid[: program.donated]
        if donated:
            _require_apart(donated, laid)
        results = program.run(*laid)
        if program.has_indices and results[-1]:
            step(*args, **kwargs)  # it raises: an index is no row, and the step itself says which
            raise ValueError("an index of the compiled step is no row")
        return rebuild(program.output, iter([*donated, *results]))

    return jitted


@no_type_check
def _require_apart(donated, leaves):
    """Raise JitError if two of the tensors share memory and one of them is donated."""
    memory = [t.untyped_storage().data_ptr() for t in leaves if t.numel()]
    given = set(memory[: sum(t.numel() > 0 for t in donated)])
    if len(given) + sum(pointer not in given for pointer in memory) < len(memory):
        raise JitError("donate: a tensor of the first argument shares its memory with another tensor")
