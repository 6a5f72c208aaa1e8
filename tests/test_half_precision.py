"""Ops in fp16 and bf16 beside torch's, and both beside float64: values and gradients, near zero and far from it.

The reference is torch's op in float64, on the same numbers. An op that computes in float32 rounds once, by half an ulp:
at most eps / 2 of the result. The bound is twice that, and 1e-4 of the largest entry, which float32 itself loses to
cancellation where numbers of 300 leave a result of 1. Except for TORCH_IS_FURTHER torch's own op keeps twice the
bound, so that the two agree.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

from fn import tree
from fn.attention import attention_weights, native_attention, scaled_dot_product_attention
from fn.attention_tiled import tiled_attention
from fn.conv import adaptive_avg_pool2d, avg_pool2d, conv2d_naive, conv2d_unfold, max_pool2d, windows
from fn.curvature import gradient_noise_scale
from fn.detection.anchors import decode, encode
from fn.detection.boxes import batched_nms, box_area, box_iou, generalized_box_iou, nms, nms_naive
from fn.detection.heatmaps import center_heatmap, gaussian_radius
from fn.jit import jit
from fn.layers import batch_norm, embedding, gelu, layer_norm, linear, log_softmax, relu, softmax
from fn.losses import cross_entropy, mse_loss, penalty_reduced_focal_loss, sigmoid_focal_loss, smooth_l1_loss
from fn.metrics import accuracy, top_k_accuracy
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.models.transformer import transformer
from fn.optim import adam, adamw, clip_by_global_norm, clip_grad_norm, cosine_schedule, global_norm, lr_by_prefix, sgd
from fn.positions import rotary_encoding
from fn.rng import generator
from fn.train import TrainState, classification_loss, run_key, train_step
from tests.strategies import cotangent, outputs

HALVES = [torch.bfloat16, torch.float16]
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["bf16", "fp16"])
RANGES = {"near zero": (1.0, 0.0), "far from zero": (1.0, 100.0), "wide": (150.0, 300.0)}
"""(standard deviation, mean) of the numbers"""


class Op(NamedTuple):
    ours: Callable[..., Any]
    torchs: Callable[..., Any]
    make: Callable[..., Iterable[Tensor | None]]
    """make(x, w): `x` draws numbers of the range, `w` of N(0, 1), by shape"""
    equation: Callable[..., Any] | None = None
    """the reference in float64, where ours calls torch's op and would be compared with itself"""


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y = x Wᵀ + b, as a sum of products."""
    return (x.unsqueeze(-2) * weight).sum(dim=-1) + bias


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = (query.unsqueeze(-2) * key.unsqueeze(-3)).sum(dim=-1) / math.sqrt(query.shape[-1]) + mask
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return (weights.unsqueeze(-1) * value.unsqueeze(-3)).sum(dim=-2)


def pair(ops: Iterable[Callable], make: Callable) -> Op:
    ours, torchs = ops
    return Op(ours, torchs, make)


def both(op: Callable, make: Callable, **options: Any) -> Op:
    torchs = getattr(F, op.__name__.removesuffix("_naive").removesuffix("_unfold"))
    return Op(partial(op, **options), partial(torchs, **options), make)


def statistics_too(x: Tensor, mean: Tensor, var: Tensor, *affine: Tensor, training: bool = True):
    y, state = batch_norm(x, mean.detach(), var.detach(), *affine, training=training)
    return y, state["running_mean"], state["running_var"]


def torchs_statistics(x: Tensor, mean: Tensor, var: Tensor, *affine: Tensor, training: bool = True):
    mean, var = mean.detach().clone(), var.detach().clone()
    return F.batch_norm(x, mean, var, *affine, training=training), mean, var


def normed(**options: Any) -> list[Any]:
    return [partial(f, **options) for f in (statistics_too, torchs_statistics)]


def over_last(op: Callable, x: Tensor, *affine: Tensor) -> Tensor:
    return op(x, x.shape[-1:], *affine)


def labels(input: Tensor) -> Tensor:
    return torch.arange(len(input)) % input.shape[1]


def classified(op: Callable, **options: Any) -> Callable:
    return lambda input: op(input, labels(input), **options)


def looked_up(op: Callable) -> Callable:
    """Row 0 twice in three: its gradient is a sum of 400."""
    return lambda weight: op(torch.arange(600) % 3 // 2, weight)


def queries(x: Callable, w: Callable) -> list[Tensor]:
    """Return as many keys as the sum of their weights would stop short of, in bf16."""
    return [w(2, 3, 4), w(2, 600, 4), x(2, 600, 5)]


IMAGES = lambda x, w: [x(2, 4, 9, 8)]  # noqa: E731
PAIRS = lambda x, w: [x(300), w(300)]  # noqa: E731
OPS = {
    "linear": both(linear, lambda x, w: [x(7, 30), w(5, 30), x(5)])._replace(equation=affine),
    "linear, the bias takes it back": Op(
        linear, F.linear, lambda x, w: (lambda x, w: [x, w, -(x @ w.T)[0]])(x(3, 30), w(5, 30)), affine
    ),
    "embedding": Op(looked_up(embedding), looked_up(F.embedding), lambda x, w: [x(2, 3)]),
    "relu": both(relu, lambda x, w: [x(50)]),
    "gelu": both(gelu, lambda x, w: [3 * w(500)]),
    "gelu, tanh": both(gelu, lambda x, w: [x(200)], approximate="tanh"),
    "gelu, tanh, tails": both(gelu, lambda x, w: [4 * w(500)], approximate="tanh"),
    "softmax": both(softmax, lambda x, w: [x(3, 17)], dim=1),
    "softmax of many": both(softmax, lambda x, w: [w(2, 5000)], dim=1),
    "log_softmax": both(log_softmax, lambda x, w: [x(3, 17)], dim=1),
    "log_softmax of many": both(log_softmax, lambda x, w: [w(2, 5000)], dim=1),
    "layer_norm": Op(partial(over_last, layer_norm), partial(over_last, F.layer_norm), lambda x, w: [x(5, 33)]),
    "layer_norm, affine": Op(
        partial(over_last, layer_norm), partial(over_last, F.layer_norm), lambda x, w: [x(500, 33), w(33), w(33)]
    ),
    "batch_norm": pair(normed(), lambda x, w: [x(600, 3), w(3), w(3).exp(), w(3), w(3)]),
    "batch_norm, images": pair(normed(), lambda x, w: [x(4, 3, 20, 20), w(3), w(3).exp(), w(3), w(3)]),
    "batch_norm, evaluated": pair(normed(training=False), lambda x, w: [x(4, 3), w(3), w(3).exp(), w(3), w(3)]),
    "conv2d_naive": both(conv2d_naive, lambda x, w: [x(2, 4, 9, 8), w(3, 4, 3, 3), w(3)], padding=1),
    "conv2d_unfold": both(conv2d_unfold, lambda x, w: [x(2, 4, 9, 8), w(3, 4, 3, 3), w(3)], padding=1),
    "max_pool2d": both(max_pool2d, IMAGES, kernel_size=5, stride=1, padding=2),
    "avg_pool2d": both(avg_pool2d, IMAGES, kernel_size=5, stride=1, padding=2),
    "avg_pool2d, counted": both(avg_pool2d, IMAGES, kernel_size=3, padding=1, count_include_pad=False),
    "adaptive_avg_pool2d": both(adaptive_avg_pool2d, IMAGES, output_size=(4, 3)),
    "adaptive_avg_pool2d, whole": both(adaptive_avg_pool2d, lambda x, w: [x(2, 3, 30, 30)], output_size=1),
    "windows": Op(
        partial(windows, kernel_size=3),
        lambda x: F.unfold(x, 3).reshape(*x.shape[:2], 9, x.shape[2] - 2, x.shape[3] - 2),
        IMAGES,
    ),
    "cross_entropy": Op(classified(cross_entropy), classified(F.cross_entropy), lambda x, w: [x(700, 5)]),
    "cross_entropy, smoothed": pair(
        [classified(op, label_smoothing=0.2, reduction="none") for op in (cross_entropy, F.cross_entropy)],
        lambda x, w: [x(9, 40)],
    ),
    "mse_loss": both(mse_loss, PAIRS),
    "mse_loss, none": both(mse_loss, PAIRS, reduction="none"),
    "smooth_l1_loss": both(smooth_l1_loss, PAIRS, beta=0.5),
    "smooth_l1_loss, sum": both(smooth_l1_loss, lambda x, w: [w(300), w(300)], reduction="sum"),
    "sigmoid_focal_loss": pair(
        [
            lambda x, op=op: op(x, (torch.arange(len(x)) % 2).to(x), reduction="mean")
            for op in (sigmoid_focal_loss, torchvision.ops.sigmoid_focal_loss)
        ],
        lambda x, w: [3 * w(400)],
    ),
    "attention": Op(scaled_dot_product_attention, F.scaled_dot_product_attention, queries),
    "attention in tiles": Op(partial(tiled_attention, block_size=64), F.scaled_dot_product_attention, queries),
    "attention, causal": pair(
        [partial(op, is_causal=True) for op in (scaled_dot_product_attention, F.scaled_dot_product_attention)],
        lambda x, w: [w(2, 40, 4), w(2, 40, 4), x(2, 40, 5)],
    ),
    "attention, masked": Op(
        scaled_dot_product_attention,
        F.scaled_dot_product_attention,
        lambda x, w: [w(2, 40, 4), w(2, 40, 4), x(2, 40, 5), 3 * w(40, 40)],
    ),
}

# without a counterpart in torch: beside themselves in float64
ALONE = {
    "attention_weights": (attention_weights, lambda x, w: [w(2, 3, 4), w(2, 600, 4)]),
    "rotary_encoding": (rotary_encoding, lambda x, w: [x(2, 50, 6)]),
    "penalty_reduced_focal_loss": (
        lambda x: penalty_reduced_focal_loss(x, (torch.arange(len(x)) % 2).to(x), reduction="mean"),
        lambda x, w: [3 * w(400)],
    ),
    "encode": (encode, lambda x, w: [boxes(x, w), boxes(x, w)]),
    "decode": (decode, lambda x, w: [w(9, 4), boxes(x, w)]),
    "gaussian_radius": (gaussian_radius, lambda x, w: [200 + 20 * w(9, 2)]),
    "center_heatmap": (
        lambda centres, sizes: center_heatmap(
            centres, sizes, torch.arange(3), torch.ones(3).bool(), classes=3, height=50, width=50
        ),
        lambda x, w: [25 + 5 * w(3, 2), 200 + 20 * w(3, 2)],
    ),
}
OPS |= {name: Op(f, f, make) for name, (f, make) in ALONE.items()}

# where torch 2.15 rounds on the way, on a CPU: in the gradient that it adds up, or in the square of a difference
TORCH_IS_FURTHER = {"embedding", "softmax", "log_softmax", "layer_norm", "layer_norm, affine", "batch_norm"}
TORCH_IS_FURTHER |= {"batch_norm, images", "conv2d_naive", "conv2d_unfold", "windows", "max_pool2d", "avg_pool2d"}
TORCH_IS_FURTHER |= {"adaptive_avg_pool2d", "cross_entropy", "cross_entropy, smoothed", "mse_loss", "mse_loss, none"}
TORCH_IS_FURTHER |= {"sigmoid_focal_loss"}


def boxes(x: Callable, w: Callable) -> Tensor:
    """Boxes of 300 × 300 pixels and more, whose areas are beyond fp16."""
    corner = 20 * w(9, 2)
    return torch.cat([corner, corner + 300 + 50 * w(9, 2).abs()], dim=1)


def drawn(op: Op, spread: float, offset: float, dtype: torch.dtype, seed: int = 0) -> list[Tensor | None]:
    rng = generator(seed)
    w = lambda *shape: torch.randn(shape, generator=rng)  # noqa: E731
    return [t if t is None else t.to(dtype) for t in op.make(lambda *shape: offset + spread * w(*shape), w)]


def held_by_halves(y: Tensor) -> Tensor:
    """Return a random cotangent for y, of numbers that every dtype holds."""
    return cotangent(y.double()).bfloat16().to(y.dtype)


def measured(f: Callable, tensors: list[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """Return the values of f at these numbers in `dtype`, and the gradients."""
    leaves = [t if t is None else t.to(dtype).requires_grad_() for t in tensors]
    ys = outputs(f, leaves)
    live = [y for y in ys if y.requires_grad]
    given = [held_by_halves(y) for y in live]
    floats = [t for t in leaves if t is not None]
    grads = torch.autograd.grad(live, floats, given, materialize_grads=True)
    return [t.detach() for t in (*ys, *grads)]


def excess(half: Tensor, exact: Tensor) -> float:
    """Return the largest error over its bound; infinity where one is finite and the other is not."""
    rounded = exact.to(half.dtype)
    if not torch.equal(half.isfinite(), rounded.isfinite()):
        return math.inf
    exact = torch.where(rounded.isfinite(), exact, 0.0)
    info = torch.finfo(half.dtype)
    bound = info.eps * exact.abs() + 1e-4 * exact.abs().max() + 1e-6
    return float(((torch.where(rounded.isfinite(), half, 0.0).double() - exact).abs() / bound).max())


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("numbers", RANGES)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@each_half
def test_is_torchs_and_rounds_once(name, numbers, seed, dtype):
    op = OPS[name]
    tensors = drawn(op, *RANGES[numbers], dtype, seed)
    exact = measured(op.equation or op.torchs, tensors, torch.float64)
    ours, torchs = (measured(f, tensors, dtype) for f in (op.ours, op.torchs))
    assert [t.dtype for t in ours] == [t.dtype for t in torchs]
    assert all(t.dtype == dtype for t in ours)
    for i, (a, t, e) in enumerate(zip(ours, torchs, exact, strict=True)):
        assert excess(a, e) <= 1, i
        assert name in TORCH_IS_FURTHER or excess(t, e) <= 2, f"torch's own {i}"


COMPILED = ["gelu, tanh", "softmax of many", "layer_norm, affine", "batch_norm", "cross_entropy"]


@pytest.mark.slow
@each_half
def test_compiled_ops_round_once_too(dtype):
    """The values and gradients of several ops, in one program."""
    ops = [OPS[name] for name in COMPILED]
    given = [drawn(op, *RANGES["far from zero"], dtype) for op in ops]
    cotangents = [tuple(held_by_halves(y) for y in outputs(op.ours, x)) for op, x in zip(ops, given, strict=True)]

    def values_and_grads(given: list[list[Tensor]], cotangents: list[tuple[Tensor, ...]]) -> list[list[Tensor]]:
        found = []
        for op, x, cotangents_of_op in zip(ops, given, cotangents, strict=True):
            ys, pull = torch.func.vjp(lambda *x, op=op: outputs(op.ours, x), *x)[:2]
            found.append([*ys, *pull(cotangents_of_op)])
        return found

    results = jit(values_and_grads)(given, cotangents)
    for name, op, tensors, found in zip(COMPILED, ops, given, results, strict=True):
        exact = measured(op.torchs, tensors, torch.float64)
        for a, e in zip(found, exact, strict=True):
            assert a.dtype == dtype
            assert excess(a, e) <= 1, name


@each_half
def test_what_was_reported(dtype):
    """A layer norm of neighbours and of wide numbers, a square beyond fp16, a softmax and attention over many keys."""
    neighbours, wide = torch.tensor([[129.0, 130.0]]).to(dtype), torch.tensor([[0.0, 600.0]]).to(dtype)
    for x in (neighbours, wide):
        assert layer_norm(x, [2]).tolist() == F.layer_norm(x, [2]).tolist() == [[-1, 1]]
    zero = torch.zeros_like(wide)
    rounded = lambda x: float(torch.tensor(x).to(dtype))  # noqa: E731
    assert float(mse_loss(wide / 2, zero)) == rounded(45000.0)  # torch's is infinite in fp16
    assert float(smooth_l1_loss(100 * wide, zero)) == float(F.smooth_l1_loss(100 * wide, zero)) == rounded(29999.75)
    assert float(global_norm({"w": wide, "b": zero})) == 600
    query, keys, values = (f.to(dtype) for f in (torch.zeros(1, 4), torch.zeros(70_000, 4), torch.ones(70_000, 2)))
    near_one = pytest.approx(1, abs=torch.finfo(dtype).eps)
    for attend in (scaled_dot_product_attention, partial(tiled_attention, block_size=4096)):
        assert attend(query, keys, values)[0].tolist() == [near_one, near_one]
    assert torch.equal(softmax(keys[:, 0], dim=0), F.softmax(keys[:, 0], dim=0))
    x = torch.tensor([30.0, 200.0, -200.0, 40000.0]).to(dtype)
    assert torch.func.grad(lambda x: gelu(x, "tanh").sum())(x).tolist() == [1, 1, 0, 1]


WAYS = [scaled_dot_product_attention, native_attention, partial(tiled_attention, block_size=4)]


@each_half
@pytest.mark.parametrize("attend", WAYS)
def test_an_additive_mask_may_be_float32(attend, dtype):
    query, key, value = torch.randn(3, 2, 9, 4, generator=generator(0)).to(dtype).unbind()
    mask = torch.randn(9, 9, generator=generator(1)).masked_fill(torch.eye(9).bool(), -math.inf)
    ours, torchs = attend(query, key, value, mask), F.scaled_dot_product_attention(query, key, value, mask)
    assert ours.dtype == torchs.dtype == dtype
    exact = attended(query.double(), key.double(), value.double(), mask.double())
    assert excess(ours, exact) <= 2
    of_mask = torch.func.grad(lambda mask: attend(query, key, value, mask).float().square().sum())(mask)
    assert of_mask.dtype == torch.float32
    assert of_mask.isfinite().all()


@each_half
def test_norms_of_halves_beside_parameters_in_float32(dtype):
    """As in mixed precision: the result has the dtype of x, the running statistics keep theirs."""
    x, affine = (100 + torch.randn(64, 3, generator=generator(0))).to(dtype), (torch.ones(3), torch.zeros(3))
    for f in (statistics_too, torchs_statistics):
        y, mean, var = f(x, torch.zeros(3), torch.ones(3), *affine)
        assert (y.dtype, mean.dtype, var.dtype) == (dtype, torch.float32, torch.float32)
        torch.testing.assert_close((mean, var), (0.1 * x.float().mean(0), 0.9 + 0.1 * x.float().var(0)))
    assert layer_norm(x, [3], *affine).dtype == F.layer_norm(x, [3], *affine).dtype == dtype


@each_half
@pytest.mark.parametrize("loss", [mse_loss, smooth_l1_loss, sigmoid_focal_loss])
def test_a_half_beside_float32_gives_float32_as_in_torch(loss, dtype):
    a, b = torch.ones(3).to(dtype), torch.zeros(3)
    torchs = getattr(F, loss.__name__, torchvision.ops.sigmoid_focal_loss)
    for operands in ((a, b), (b, a), (a, a)):
        assert loss(*operands).dtype == torchs(*operands).dtype


@each_half
def test_overlaps_are_torchvisions(dtype):
    """Of boxes whose areas are beyond fp16; the result is float32. torchvision has no nms of halves on a CPU."""
    rng = generator(0)
    corner = 400 * torch.rand(60, 2, generator=rng)
    boxes = torch.cat([corner, corner + 300 + 300 * torch.rand(60, 2, generator=rng)], dim=1).to(dtype)
    scores, classes = torch.rand(60, generator=rng).to(dtype), torch.arange(60) % 3
    for ours in (box_area, partial(box_iou, boxes), partial(generalized_box_iou, boxes)):
        name = ours.func.__name__ if isinstance(ours, partial) else ours.__name__
        torchs = getattr(torchvision.ops, name)
        assert ours(boxes).dtype == torchs(*[boxes] * (1 + isinstance(ours, partial))).dtype == torch.float32
        torch.testing.assert_close(ours(boxes), torchs(*[boxes.float()] * (1 + isinstance(ours, partial))))
    for threshold in (0.3, 0.5, 0.7):
        kept = torchvision.ops.nms(boxes.float(), scores.float(), threshold)
        assert 1 < len(kept) < 60
        assert torch.equal(nms(boxes, scores, threshold), kept)
        assert torch.equal(nms_naive(boxes, scores, threshold), kept)
        kept = torchvision.ops.batched_nms(boxes.float(), scores.float(), classes, threshold)
        assert torch.equal(batched_nms(boxes, scores, classes, threshold), kept)


@each_half
def test_metrics_of_halves_are_those_of_the_same_numbers_in_float32(dtype):
    scores, target = torch.randn(5000, 4, generator=generator(0)).to(dtype), torch.arange(5000) % 4
    for metric in (accuracy, partial(top_k_accuracy, k=2)):
        assert torch.equal(metric(scores, target), metric(scores.float(), target))


def parameters(dtype: torch.dtype, seed: int, spread: float = 1.0) -> tree.Params:
    normal = partial(torch.randn, generator=generator(seed))
    return tree.to({"fc": {"weight": spread * normal(9, 5), "scale": spread * normal(())}}, dtype)


@each_half
@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_the_norm_of_gradients_and_their_clipping(dtype, spread):
    """torch rounds the norm before it divides by it, so that its clipped gradients are two roundings off."""
    grads = parameters(dtype, 0, spread)
    exact, norm_exact = clip_grad_norm(tree.to(grads, torch.float64), 1.0)
    clipped, norm = clip_grad_norm(grads, 1.0)
    torchs = [g.clone().requires_grad_() for g in tree.leaves(grads)]
    for p, g in zip(torchs, tree.leaves(grads), strict=True):
        p.grad = g.clone()
    torchs_norm = torch.nn.utils.clip_grad_norm_(torchs, 1.0)
    assert norm.dtype == global_norm(grads).dtype == torchs_norm.dtype == dtype
    assert torch.equal(norm, global_norm(grads))
    assert excess(norm, norm_exact) <= 1
    assert excess(torchs_norm, norm_exact) <= 1
    for a, t, e in zip(tree.leaves(clipped), torchs, tree.leaves(exact), strict=True):
        assert a.dtype == dtype
        assert t.grad is not None
        assert excess(a, e) <= 1
        assert excess(t.grad, e) <= 3


def test_a_norm_beyond_fp16_clips_as_it_does_in_float32():
    """The norm is infinite, as torch's; torch's gradients are then 0."""
    grads = {"w": torch.full((100_000,), 300.0).half()}
    clipped, norm = clip_grad_norm(grads, 1000.0)
    assert norm == math.inf
    assert excess(clipped["w"], clip_grad_norm(tree.to(grads, torch.float64), 1000.0)[0]["w"]) <= 1


@each_half
def test_the_noise_of_gradients(dtype):
    grads = tree.to({"w": 300 + 30 * torch.randn(6, 40, generator=generator(0))}, dtype)
    for whole in (False, True):
        noise = gradient_noise_scale(grads, whole=whole)
        assert noise.dtype == dtype
        assert excess(noise, gradient_noise_scale(tree.to(grads, torch.float64), whole=whole)) <= 1


OPTIMIZERS: dict[str, tuple[Callable, Any, dict[str, Any]]] = {
    "sgd": (sgd, torch.optim.SGD, {}),
    "sgd, all": (sgd, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (adam, torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (adamw, torch.optim.AdamW, {"weight_decay": 0.1}),
    "adamw, clipped": (lambda **o: clip_by_global_norm(adamw(**o), 0.5), None, {}),
    "adamw, by prefix": (lambda lr: lr_by_prefix(adamw, lr=lr, scales={"fc.scale": 0.1}), None, {}),
}
RATES = {
    "a number": 0.03,
    "a tensor": torch.tensor(0.03),
    "float64": torch.tensor(0.03, dtype=torch.float64),
    "a schedule": partial(cosine_schedule, lr=0.03, total_steps=1000),
}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
def test_every_optimizer_keeps_the_dtype_of_every_leaf(dtype, name, rate):
    """Also of a parameter without axes, which arithmetic with a 0-d learning rate would promote."""
    make, torchs, options = OPTIMIZERS[name]
    optimizer, params = make(lr=RATES[rate], **options), parameters(dtype, 0)
    grads = parameters(dtype, 1)
    start_state = optimizer.init(params)
    after, state = optimizer.update(params, grads, start_state)
    kinds = lambda *trees: [tree.map(lambda leaf: (leaf.dtype, leaf.shape), part) for part in trees]  # noqa: E731
    assert kinds(after, state) == kinds(params, start_state)
    if torchs is None or dtype not in HALVES:
        return
    params_64, grads_64 = (tree.to(part, torch.float64) for part in (params, grads))
    exact, _ = optimizer.update(params_64, grads_64, optimizer.init(params_64))
    tensors = [p.clone().requires_grad_() for p in tree.leaves(params)]
    for p, g in zip(tensors, tree.leaves(grads), strict=True):
        p.grad = g.clone()
    torchs(tensors, lr=0.03, **options).step()
    for ours, t, e in zip(tree.leaves(after), tensors, tree.leaves(exact), strict=True):
        assert excess(ours, e) <= 2  # weights decay, are rounded, and are moved, as torch's
        assert excess(t.detach(), e) <= 3


def gap(leaves: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Return the largest error; infinity if a number is not finite."""
    errors = [(a.detach().double() - e).abs().max() for a, e in zip(leaves, exact, strict=True)]
    return float(torch.stack(errors).nan_to_num(nan=math.inf).max())


@each_half
@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-5, 1e-6, 1e-7])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_gradients_of_any_size_move_halves_as_far_as_float64(dtype, size, name):
    """Five steps. In fp16 torch's squares of small gradients are 0, as is its ε: it divides by 0."""
    make, torchs, options = OPTIMIZERS[name]
    optimizer, params = make(lr=0.03, **options), parameters(dtype, 0)
    exact = tree.to(params, torch.float64)
    state, exact_state = optimizer.init(params), optimizer.init(exact)
    tensors = [p.clone().requires_grad_() for p in tree.leaves(params)]
    theirs = torchs(tensors, lr=0.03, **options)
    for step in range(5):
        grads = parameters(dtype, 1 + step, size)
        params, state = optimizer.update(params, grads, state)
        exact, exact_state = optimizer.update(exact, tree.to(grads, torch.float64), exact_state)
        for p, g in zip(tensors, tree.leaves(grads), strict=True):
            p.grad = g.clone()
        theirs.step()
    ours, torchs_gap = (gap(leaves, tree.leaves(exact)) for leaves in (tree.leaves(params), tensors))
    print(f"{name:6} {dtype} gradients of {size:g}: ours {ours:.1e}, torch's {torchs_gap:.1e}")
    ulp = torch.finfo(dtype).eps * max(float(leaf.abs().max()) for leaf in tree.leaves(exact))
    assert ours <= 5 * ulp
    assert ours <= torchs_gap + ulp


@each_half
def test_a_decay_below_the_last_digit_of_a_half_gradient_is_not_lost(dtype):
    params, optimizer = {"w": torch.ones(3, dtype=dtype)}, adam(lr=0.1, weight_decay=1e-4)
    _, state = optimizer.update(params, params, optimizer.init(params))
    torch.testing.assert_close(state["mean"]["w"], torch.full((3,), 0.1 * (1 + 1e-4)), rtol=1e-6, atol=0)


MODELS = {
    "mlp": mlp((1, 8, 8), 10, hidden=(12,), dropout_p=0.3),
    "cnn": cnn((1, 8, 8), 10, widths=(3, 5)),
    "transformer": transformer((1, 8, 8), 10),
}


@each_half
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_halves_trains_and_stays_one(name, dtype):
    """Every leaf keeps its dtype, and the first step goes where the one in float32 goes."""
    model, optimizer, (x, y) = MODELS[name], sgd(lr=0.1, momentum=0.9), (torch.rand(20, 1, 8, 8), torch.arange(20) % 10)
    step = partial(train_step, objective=partial(classification_loss, apply=model.apply), optimizer=optimizer)
    params, state = model.init(generator(0))
    results = {}
    for kind in (dtype, torch.float32):
        rounded, state_ = (tree.to(tree.to(part, dtype), kind) for part in (params, state))
        ts = TrainState(rounded, state_, optimizer.init(rounded))
        after, metrics = step(ts, x.to(dtype).to(kind), y, key=run_key(0))
        dtypes = lambda ts: [tree.map(lambda leaf: leaf.dtype, part) for part in ts]  # noqa: E731
        assert dtypes(after) == dtypes(ts)
        assert metrics["loss"].dtype == metrics["grad_norm"].dtype == kind
        results[kind] = metrics
    for metric in ("loss", "grad_norm"):
        assert float(results[dtype][metric]) == pytest.approx(float(results[torch.float32][metric]), rel=0.03)
