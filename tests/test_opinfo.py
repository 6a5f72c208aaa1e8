"""torch's own samples, with which it tests each of its ops, given to ours: values, gradients, second gradients.

Where ours answers, the answer is torch's. Where it refuses, REFUSED says why. With -s the shares are printed.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fn import attention, conv, layers, losses
from fn.attention_tiled import tiled_attention
from fn.rng import key, uniform
from tests.strategies import close, cotangent, outputs

pytest.importorskip("expecttest", reason="torch.testing._internal imports it")
pytestmark = pytest.mark.filterwarnings(
    "ignore:Dropout mask should only be used for testing",
    "ignore:Using padding='same' with even kernel lengths",
)
KEY = key(0)


class Sample(NamedTuple):
    """op(*args, **options)"""

    args: tuple[Any, ...]
    options: dict[str, Any]

    def __str__(self) -> str:
        given = [shown(x) for x in self.args] + [f"{name}={shown(x)}" for name, x in self.options.items()]
        return f"({', '.join(given)})"


def shown(x: Any) -> str:
    """Return the kind and the shape of a tensor, f[2,3] or i[2]; of anything else its repr."""
    return (
        f"{'f' if x.is_floating_point() else 'i'}{list(x.shape)}".replace(" ", "") if isinstance(x, Tensor) else repr(x)
    )


# The two sides of an op where they cannot be called alike.


def torchs_dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Drop by the mask of our key; F.dropout draws its own from the global generator."""
    if not training or p == 0:
        return F.dropout(x, p, training)
    return torch.ops.aten.native_dropout_backward(x, uniform(KEY, x.shape) >= p, 1 / (1 - p) if p < 1 else 0.0)


def torchs_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **options: Any
) -> Tensor:
    """Return attend by torch's own equation, which it can differentiate twice, and drop by the mask of our key."""
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    kept = uniform(KEY, (*batch, query.shape[-2], key.shape[-2])) >= dropout_p if dropout_p else None
    math = torch._scaled_dot_product_attention_math  # pyright: ignore[reportPrivateImportUsage]
    return math(query, key, value, attn_mask, dropout_p, dropout_mask=kept, **options)[0]


def torchs_batch_norm(x: Tensor, mean: Tensor | None, var: Tensor | None, *affine: Any, **options: Any) -> Any:
    """torch moves the statistics in place; ours returns them."""
    mean, var = (None if t is None else t.detach().clone() for t in (mean, var))
    return F.batch_norm(x, mean, var, *affine, **options), mean, var


def our_batch_norm(x: Tensor, mean: Any, var: Any, *affine: Any, **options: Any) -> Any:
    mean, var = (None if t is None else t.detach() for t in (mean, var))
    y, statistics = layers.batch_norm(x, mean, var, *affine, **options)
    return y, statistics["running_mean"], statistics["running_var"]


def our_embedding(weight: Tensor, x: Tensor, **options: Any) -> Tensor:
    return layers.embedding(x, weight, **options)


def torchs_embedding(weight: Tensor, x: Tensor, **options: Any) -> Tensor:
    return F.embedding(x, weight, **options)


def without_indices(sample: Sample) -> Sample | None:
    """Return the sample of F.max_pool2d; None where it asks for indices, which is another op."""
    rest = {name: x for name, x in sample.options.items() if name != "return_indices"}
    return None if sample.options["return_indices"] else Sample(sample.args, rest)


def without_dropout(sample: Sample) -> Sample | None:
    return None if sample.options["dropout_p"] else sample


class Row(NamedTuple):
    ours: Callable
    torchs: Callable
    samples: tuple[str, str]
    """their name in torch's list, and the variant"""
    adapt: Callable[[Sample], Sample | None] = lambda sample: sample
    """returns None for a sample of another op"""
    every: int = 1
    """one of so many samples is run"""
    orders: int = 2
    """of the derivatives that are compared"""


def row(ours: Callable, variant: str = "", name: str = "", **options: Any) -> Row:
    name = name or ours.__name__
    functional = name not in ("softmax", "log_softmax")
    return Row(ours, getattr(F, name), ("nn.functional." * functional + name, variant), **options)


ATTENTION = ("nn.functional.scaled_dot_product_attention", "")
OPS = {
    "linear": row(layers.linear),
    "embedding": Row(our_embedding, torchs_embedding, ("nn.functional.embedding", "")),
    "relu": row(layers.relu),
    "gelu": row(layers.gelu),
    "softmax": row(layers.softmax),
    "softmax, dtype": row(layers.softmax, "with_dtype"),
    "log_softmax": row(layers.log_softmax),
    "log_softmax, dtype": row(layers.log_softmax, "with_dtype"),
    "dropout": Row(partial(layers.dropout, key=KEY), torchs_dropout, ("nn.functional.dropout", "")),
    "layer_norm": row(layers.layer_norm),
    "batch_norm": Row(our_batch_norm, torchs_batch_norm, ("nn.functional.batch_norm", "")),
    "conv2d": row(conv.conv2d),
    "conv2d_naive": row(conv.conv2d_naive, name="conv2d"),
    "conv2d_unfold": row(conv.conv2d_unfold, name="conv2d"),
    "max_pool2d": row(conv.max_pool2d, adapt=without_indices, every=24),
    "avg_pool2d": row(conv.avg_pool2d),
    "adaptive_avg_pool2d": row(conv.adaptive_avg_pool2d),
    "cross_entropy": row(losses.cross_entropy),
    "mse_loss": row(losses.mse_loss),
    "smooth_l1_loss": row(losses.smooth_l1_loss),
    "attention": Row(partial(attention.scaled_dot_product_attention, dropout_key=KEY), torchs_attention, ATTENTION),
    "attention, native": Row(attention.native_attention, torchs_attention, ATTENTION, without_dropout, orders=1),
    "attention, tiled": Row(partial(tiled_attention, block_size=2), torchs_attention, ATTENTION, without_dropout),
}
NO_CHANNELS = "there is no axis of channels"
REFUSED = {
    "avg_pool2d": {"(f[1,1,4,4], (2, 2), (), (0,), False, True, -2)": "no stride is None, not ()"},
    "batch_norm": {
        "(f[0], f[0], f[0], None, None, training=True)": NO_CHANNELS,
        "(f[0], f[0], f[0], None, None, training=False)": NO_CHANNELS,
        "(f[1,2,3], None, None, None, None, training=True)": "statistics are returned, so they are always there",
    },
    "layer_norm": {"(f[2,2,3], (2, 3), f[2,3], f[2,3], eps=-0.5)": "a variance below 0.5 has no root then"},
}
"""by op and sample, why ours gives no answer; all else must be torch's"""


@cache
def torchs_samples() -> dict[tuple[str, str], Any]:
    """torch's list of its ops. Seconds to import."""
    with warnings.catch_warnings(action="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends, "disable_global_flags", lambda: None)  # our labs set some of the flags
        from torch.testing._internal.common_methods_invocations import op_db
    return {(op.name, op.variant_test_name): op for op in op_db}


def samples(row: Row, first: int = 0, every: int = 1) -> Iterator[Sample]:
    torch.manual_seed(0)
    found = torchs_samples()[row.samples].sample_inputs("cpu", torch.float64, requires_grad=True)
    adapted = (row.adapt(Sample((sample.input, *sample.args), sample.kwargs)) for sample in found)
    yield from islice((sample for sample in adapted if sample is not None), first, None, every)


def derivatives(f: Callable, sample: Sample, orders: int) -> list[list[Tensor]]:
    """Return the values, the gradients of Σ ⟨random cotangent, value⟩, and the gradients of the same sum of those."""
    given = [*sample.args, *sample.options.values()]
    given = [x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in given]
    leaves = [x for x in given if isinstance(x, Tensor) and x.requires_grad]
    count = len(sample.args)
    options = dict(zip(sample.options, given[count:], strict=True))
    found = [[y for y in outputs(lambda *args: f(*args, **options), given[:count]) if y is not None]]
    for order in range(orders):
        live = [y for y in found[-1] if y.requires_grad]
        cotangents, more = [cotangent(y) for y in live], order + 1 < orders
        grads = torch.autograd.grad(live, leaves, cotangents, create_graph=more, materialize_grads=True) if live else ()
        found.append(list(grads) or [torch.zeros_like(x) for x in leaves])
    return [[y.detach() for y in ys] for ys in found]


def outcome(row: Row, sample: Sample) -> str:
    """Return "agrees", "refused: …" or "wrong: …"."""
    expected = derivatives(row.torchs, sample, row.orders)
    try:
        found = derivatives(row.ours, sample, row.orders)
    except (TypeError, ValueError) as error:  # a TypeCheckError is a TypeError
        return f"refused: {str(error).splitlines()[0]}"
    try:
        for order, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            for a, b in zip(ours, theirs, strict=True):
                close(a, b, 1e-10, f"derivative {order}")
    except (AssertionError, ValueError) as error:
        return f"wrong: {error}"
    return "agrees"


def run(name: str, row: Row, *slicing: int) -> tuple[Counter[str], list[str]]:
    """Count the outcomes, and list what is neither torch's answer nor in REFUSED."""
    counts, failed = Counter(), []
    for sample in samples(row, *slicing):
        said = outcome(row, sample)
        kind = said.partition(":")[0]
        counts[kind] += 1
        if kind == "wrong" or (kind == "refused" and str(sample) not in REFUSED.get(name, {})):
            failed.append(f"{name}{sample} {said}")
    return counts, failed


@pytest.mark.slow
def test_ours_answers_torchs_own_samples_as_torch_does():
    """97 in 100 at the least, and none wrongly."""
    total, all_failed = Counter(), []
    for name, row in OPS.items():
        counts, failed = run(name, row, 0, row.every)
        print(f"{name:20} {counts['agrees']:4} of {counts.total():4} agree, {counts['refused']} refused")
        total += counts
        all_failed += failed
    print(f"{'all':20} {total['agrees']:4} of {total.total():4} agree, {total['refused']} refused")
    assert not all_failed, "\n".join(all_failed)
    assert total.total() > 300
    assert total["agrees"] >= 0.97 * total.total()


@pytest.mark.slow
def test_ours_pools_all_of_torchs_windows():
    row = OPS["max_pool2d"]
    counts, failed = run("max_pool2d", row)
    assert not failed, "\n".join(failed)
    assert counts["agrees"] == counts.total() == 720
