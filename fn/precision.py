"""Half precision: an op computes in float32 what fp16 and bf16 cannot hold on the way, and rounds its result once.

In bf16 a running sum of ones stops at 256, as 257 is no number there. In fp16 the square of 300 is infinite. Matrix
products and convolutions need nothing of this: torch's kernels add up in float32 anyway.
"""

from collections.abc import Callable, Iterable
from functools import reduce, wraps
from inspect import signature
from typing import Any, TypeVar, no_type_check

import torch
from torch import Tensor

from fn import tree

Op = TypeVar("Op", bound=Callable)
HALVES = (torch.float16, torch.bfloat16)


@no_type_check  # it runs in every op, and a shape check would cost more than its work
def upcast(x: Any) -> Any:
    """Return a tensor of fp16 or bf16 in float32, and anything else as it is.

    >>> upcast(torch.ones(2, dtype=torch.bfloat16)), upcast(torch.tensor(3)), upcast(None)
    (tensor([1., 1.]), tensor(3), None)
    """
    return x.float() if isinstance(x, Tensor) and x.dtype in HALVES else x


def common_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the smallest dtype that holds the numbers of all tensors.

    >>> half = torch.ones(2, dtype=torch.float16)
    >>> common_dtype([half, half]), common_dtype([half, torch.ones(2)])
    (torch.float16, torch.float32)
    """
    return reduce(torch.promote_types, (x.dtype for x in tensors))


def half_in_float32(*like: str) -> Callable[[Op], Op]:
    """Decorate an op: given any half, it computes in float32 and returns the common dtype of the arguments `like`.

    If the op takes a `dtype` and one is given, that is the result's.
    Its gradients are computed in float32 too, and each is rounded once to the dtype of its argument.

    >>> root_of_square = half_in_float32("x")(lambda x: x.square().sqrt())
    >>> root_of_square(torch.full((3,), 300, dtype=torch.float16))  # 300² is beyond fp16
    tensor([300., 300., 300.], dtype=torch.float16)
    """

    def decorate(op: Op) -> Op:
        places = [(list(signature(op).parameters).index(name), name) for name in like]

        @wraps(op)
        @no_type_check
        def in_float32(*args, **kwargs):
            if not any(isinstance(x, Tensor) and x.dtype in HALVES for x in (*args, *kwargs.values())):
                return op(*args, **kwargs)
            result = op(*map(upcast, args), **{name: upcast(x) for name, x in kwargs.items()})
            dtype = kwargs.get("dtype") or common_dtype(
                args[i] if i < len(args) else kwargs[name] for i, name in places
            )
            return tree.map(lambda y: y.to(dtype), result)

        return in_float32  # pyright: ignore[reportReturnType]

    return decorate


def norm_in_float32(norm: Op) -> Op:
    """Decorate a norm that returns (y, new statistics): of halves it computes in float32.

    y has the dtype of the first argument, and each of the statistics that of the argument of its name.

    >>> double = norm_in_float32(lambda x, mean: (2 * x, {"mean": mean + 1}))
    >>> double(torch.ones(1, dtype=torch.float16), mean=torch.ones(1, dtype=torch.bfloat16))
    (tensor([2.], dtype=torch.float16), {'mean': tensor([2.], dtype=torch.bfloat16)})
    """
    names = list(signature(norm).parameters)

    @wraps(norm)
    @no_type_check
    def in_float32(*args, **kwargs):
        given = dict(zip(names, args, strict=False)) | kwargs
        y, statistics = norm(**{name: upcast(x) for name, x in given.items()})
        return y.to(given[names[0]].dtype), {name: s.to(given[name].dtype) for name, s in statistics.items()}

    return in_float32  # pyright: ignore[reportReturnType]


def halves_by(kernel: Callable) -> Callable[[Op], Op]:
    """Decorate an op: given halves alone, torch's own kernel computes it, which rounds its result once.

    >>> x, weight = torch.tensor([[257.0, 0.0]]).bfloat16(), torch.tensor([[1.0, 0.0]]).bfloat16()
    >>> halves_by(torch.nn.functional.linear)(lambda x, weight: x @ weight.T)(x, weight)
    tensor([[256.]], dtype=torch.bfloat16)
    """

    def decorate(op: Op) -> Op:
        @wraps(op)
        @no_type_check
        def by_kernel(x, *args, **kwargs):
            halves = all(t.dtype in HALVES for t in (x, *args, *kwargs.values()) if isinstance(t, Tensor))
            return (kernel if halves else op)(x, *args, **kwargs)

        return by_kernel  # pyright: ignore[reportReturnType]

    return decorate
