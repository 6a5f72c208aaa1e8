"""Whatever number an op is given, it answers as torch does, or refuses it in an error that names the argument."""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from fn import conv, layers, losses, optim
from fn.detection import boxes
from fn.rng import generator
from tests.strategies import torchs_conv2d
from tests.test_invalid_numbers import names

INTEGERS = st.sampled_from([-(2**40), -3, -2, -1, 0, 1, 2, 3, 4, 7, 100])
PAIRS = st.one_of(INTEGERS, st.tuples(INTEGERS, INTEGERS))
FLOATS = st.sampled_from([-1.0, -0.0, 0.0, 1e-9, 0.5, 1.0, 1.5, 1e9, float("inf"), -float("inf"), float("nan")])
X, IMAGES = torch.randn(3, 4, generator=generator(0)), torch.randn(2, 4, 6, 5, generator=generator(1))
KERNEL = torch.randn(4, 2, 3, 3, generator=generator(2))
CLASSES = torch.tensor([0, 3, 1])
BOXES, SCORES = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [2, 2, 4, 4]]), torch.tensor([0.5, 0.9, 0.7])


class Op(NamedTuple):
    ours: Callable
    torchs: Callable
    options: dict[str, st.SearchStrategy]
    stricter: Callable[[dict[str, Any]], bool] = lambda options: "nan" in str(options)
    """where ours refuses what torch takes: NaN everywhere"""


def both(ours: Callable, torchs: Callable, *args: Any, **options: Any) -> Op:
    stricter = options.pop("stricter", Op._field_defaults["stricter"])
    return Op(partial(ours, *args), partial(torchs, *args), options, stricter)


def updated(update: Callable, **options: Any) -> Tensor:
    optimizer, params = update(lr=options.pop("lr", 0.1), **options), {"w": X}
    return optimizer.update(params, {"w": X.sin()}, optimizer.init(params))[0]["w"]


def torchs_update(optimizer: Callable, **options: Any) -> Tensor:
    parameter = X.clone().requires_grad_()
    parameter.grad = X.sin()
    optimizer([parameter], lr=options.pop("lr", 0.1), **options).step()
    return parameter.detach()


def clipped(x: Tensor, max_norm: float) -> Tensor:
    return optim.clip_grad_norm({"w": x}, max_norm)[0]["w"]


def torchs_clipped(x: Tensor, max_norm: float) -> Tensor:
    parameter = torch.zeros_like(x, requires_grad=True)
    parameter.grad = x.clone()
    torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    return parameter.grad


DECAY = {"lr": FLOATS, "weight_decay": FLOATS}
OPS = {
    "softmax": both(layers.softmax, F.softmax, X, dim=INTEGERS),
    "softmax of nothing": both(layers.softmax, F.softmax, X[:, :0], dim=INTEGERS),
    "log_softmax": both(layers.log_softmax, F.log_softmax, X, dim=INTEGERS),
    "layer_norm": both(
        layers.layer_norm,
        F.layer_norm,
        X,
        normalized_shape=st.lists(INTEGERS, max_size=3),
        eps=FLOATS,
        stricter=lambda o: not o["eps"] >= 0,
    ),
    "batch_norm": Op(
        partial(layers.batch_norm, X, torch.zeros(4), torch.ones(4)),
        lambda **options: F.batch_norm(X, torch.zeros(4), torch.ones(4), **options),
        {"training": st.booleans(), "momentum": FLOATS, "eps": FLOATS.filter(bool)},
        lambda o: not o["eps"] >= 0 or not math.isfinite(o["momentum"]),
    ),
    "sigmoid_focal_loss": both(
        losses.sigmoid_focal_loss,
        torchvision.ops.sigmoid_focal_loss,
        X,
        X.flip(0).sigmoid(),
        alpha=FLOATS.filter(lambda alpha: alpha not in (-math.inf,)),
        gamma=FLOATS,
        stricter=lambda o: not o["gamma"] >= 0 or math.isnan(o["alpha"]),
    ),
    "nms": both(boxes.nms, torchvision.ops.nms, BOXES, SCORES, iou_threshold=FLOATS),
    "remove_small_boxes": both(boxes.remove_small_boxes, torchvision.ops.remove_small_boxes, BOXES, min_size=FLOATS),
    "conv2d": both(
        conv.conv2d, torchs_conv2d, IMAGES, KERNEL, stride=PAIRS, padding=PAIRS, dilation=PAIRS, groups=st.just(2)
    ),
    "max_pool2d": both(conv.max_pool2d, F.max_pool2d, IMAGES, kernel_size=PAIRS, stride=PAIRS, padding=PAIRS),
    "avg_pool2d": both(conv.avg_pool2d, F.avg_pool2d, IMAGES, kernel_size=PAIRS, stride=PAIRS, padding=PAIRS),
    "adaptive_avg_pool2d": both(conv.adaptive_avg_pool2d, F.adaptive_avg_pool2d, IMAGES, output_size=PAIRS),
    "cross_entropy": both(
        losses.cross_entropy,
        F.cross_entropy,
        X,
        CLASSES,
        label_smoothing=FLOATS,
        stricter=lambda o: not o["label_smoothing"] >= 0,
    ),
    "smooth_l1_loss": both(losses.smooth_l1_loss, F.smooth_l1_loss, X, X.flip(0), beta=FLOATS),
    "embedding": Op(
        lambda index: layers.embedding(torch.tensor([0, index]), X),
        lambda index: F.embedding(torch.tensor([0, index]), X),
        {"index": INTEGERS},
    ),
    "clip_grad_norm": both(clipped, torchs_clipped, X, max_norm=FLOATS, stricter=lambda o: not o["max_norm"] >= 0),
    "sgd": Op(
        partial(updated, optim.sgd),
        partial(torchs_update, torch.optim.SGD),
        DECAY | {"momentum": FLOATS.filter(lambda m: abs(m) != math.inf), "nesterov": st.booleans()},
    ),
    "adam": Op(
        partial(updated, optim.adam),
        partial(torchs_update, torch.optim.Adam),
        DECAY | {"betas": st.tuples(FLOATS, FLOATS), "eps": FLOATS},
    ),
    "adamw": Op(
        partial(updated, optim.adamw),
        partial(torchs_update, torch.optim.AdamW),
        DECAY | {"betas": st.tuples(FLOATS, FLOATS), "eps": FLOATS},
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_an_op_answers_as_torch_or_refuses_the_number(name):
    op = OPS[name]

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.fixed_dictionaries(op.options))
    def check(options: dict[str, Any]) -> None:
        expected, ours, refusal = None, None, None
        with suppress(RuntimeError, ValueError, IndexError, TypeError, OverflowError, ZeroDivisionError):
            expected = op.torchs(**options)
        try:
            ours = op.ours(**options)
        except (ValueError, TypeCheckError) as error:
            refusal = error
        if refusal is not None:
            assert any(names(refusal, name) for name in options), "none of the arguments is named"
            assert expected is None or op.stricter(options), "ours refuses, torch answers"
            return
        ours = ours[0] if isinstance(ours, tuple) else ours
        assert expected is not None, "torch refuses, ours answers"
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, equal_nan=True)

    check()
