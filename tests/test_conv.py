"""Convolutions and pooling beside torch's, over random windows: values, gradients, NaN, refusals, torch.func."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch.utils._python_dispatch import TorchDispatchMode

from fn.conv import (
    adaptive_avg_pool2d,
    avg_pool2d,
    conv2d,
    conv2d_naive,
    conv2d_unfold,
    max_pool2d,
    max_pool2d_naive,
    pair,
)
from tests.strategies import Case, agree, convolutions, lifts, made_by, poolings, sizes, tensor, torchs_conv2d

# torch says once in a process that an uneven "same" may copy its input
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
each_convolution = pytest.mark.parametrize("op", [conv2d_naive, conv2d_unfold, conv2d])
by_hand = pytest.mark.parametrize("op", [conv2d_naive, conv2d_unfold])


@by_hand
@settings(max_examples=20)
@given(made_by(lambda t, a, b, c: (t(2, a, b + 2, 9), t(c, a, 3, 3), t(c))))
def test_a_convolution_without_options_is_torchs(under_test, op, tensors):
    agree(under_test(op), torchs_conv2d, *tensors)


@settings(max_examples=20)
@given(convolutions())
def test_torchs_kernel_is_the_loop(case: Case):
    """Beside torch's own it would be compared with itself."""
    agree(partial(conv2d, **case.options), partial(conv2d_naive, **case.options), *case.tensors)


@each_convolution
@given(convolutions())
def test_convolution_is_torchs(under_test, op, case: Case):
    agree(partial(under_test(op), **case.options), partial(torchs_conv2d, **case.options), *case.tensors)


@each_convolution
@pytest.mark.parametrize("kernel_size", [(2, 3), (3, 2), (2, 2)])
def test_padding_same_of_even_and_odd_sides_is_torchs(op, kernel_size):
    x, weight = torch.randn(2, 3, 5, 6), torch.randn(4, 3, *kernel_size)
    torch.testing.assert_close(op(x, weight, padding="same"), torchs_conv2d(x, weight, padding="same"))


class Convolutions(TorchDispatchMode):
    """Keeps the input and the stride of every convolution that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.asked.append((args[0], tuple(args[3])))
        return func(*args, **(kwargs or {}))


@given(st.integers(1, 40), st.integers(1, 5), sizes(1, 3), st.booleans())
def test_no_strided_1x1_convolution_of_few_channels_is_asked_of_torch(channels, out_channels, stride, last):
    """In channels last its backward writes past its memory: oneDNN's issue 6035."""
    images, weight = torch.randn(2, channels, 5, 6), torch.randn(out_channels, channels, 1, 1)
    x = images.contiguous(memory_format=torch.channels_last) if last else images
    with Convolutions() as seen:
        y = conv2d(x, weight, stride=stride)
    torch.testing.assert_close(y, torchs_conv2d(images, weight, stride=stride))
    [(image, strides)] = seen.asked
    assert image.shape[1] >= 16 or strides == (1, 1)


@given(poolings(dilated=True))
def test_max_pool2d_is_torchs(max_pool2d, case: Case):
    agree(partial(max_pool2d, **case.options), partial(F.max_pool2d, **case.options), *case.tensors)


@given(poolings(dilated=True, ties=True))
def test_of_equal_maxima_the_first_gets_the_gradient(max_pool2d, case: Case):
    agree(partial(max_pool2d, **case.options), partial(F.max_pool2d, **case.options), *case.tensors)


@settings(max_examples=25)
@given(poolings(dilated=True, ties=True))
def test_the_naive_max_pool2d_is_torchs_and_ours(case: Case):
    for pool in (F.max_pool2d, max_pool2d):
        agree(partial(max_pool2d_naive, **case.options), partial(pool, **case.options), *case.tensors)


ODD = torch.tensor([-math.inf, -1.0, -0.0, 0.0, 1.0, math.inf, math.nan])


@settings(max_examples=25)
@given(sizes(1, 4), sizes(0, 9), st.integers(0, 2**32))
def test_windows_side_by_side_are_torchs_to_the_bit(max_pool2d, kernel_size, more, seed):
    """Ties, NaN, infinity; rows and columns that are left over. Each entry has one gradient, or none."""
    shape = (2, 2, *(k + m for k, m in zip(pair(kernel_size), pair(more), strict=True)))
    x = ODD[torch.randint(len(ODD), shape, generator=torch.Generator().manual_seed(seed))]
    values, grads = [], []
    for pool in (max_pool2d, F.max_pool2d):
        leaf = x.clone().requires_grad_()
        values.append(pool(leaf, kernel_size))
        weights = 1.0 + torch.arange(values[-1].numel()).reshape(values[-1].shape)
        grads += torch.autograd.grad(values[-1], leaf, weights)
    torch.testing.assert_close(*values, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(*grads)


@given(poolings())
def test_avg_pool2d_is_torchs(case: Case):
    agree(partial(avg_pool2d, **case.options), partial(F.avg_pool2d, **case.options), *case.tensors)


@given(made_by(lambda t, a, b, c: (t(2, a, b, c),), largest=9), sizes(1, 9))
def test_adaptive_avg_pool2d_is_torchs(tensors, cells):
    agree(partial(adaptive_avg_pool2d, output_size=cells), partial(F.adaptive_avg_pool2d, output_size=cells), *tensors)


@given(poolings(), st.sampled_from([-2, 1, 5]))
def test_avg_pool2d_divides_as_torchs(case: Case, divisor):
    options = case.options | {"divisor_override": divisor}
    agree(partial(avg_pool2d, **options), partial(F.avg_pool2d, **options), *case.tensors)


def test_avg_pool2d_refuses_a_divisor_of_0():
    with pytest.raises(TypeCheckError, match=r"parameter 'divisor_override'\.\nActual value: 0"):
        avg_pool2d(torch.ones(1, 1, 2, 2), 2, divisor_override=0)


@given(made_by(lambda t, a, b, c: (t(2, a, b, c),), largest=9), st.tuples(*[st.none() | st.integers(1, 9)] * 2))
def test_adaptive_avg_pool2d_keeps_an_axis_as_torchs(tensors, cells):
    agree(partial(adaptive_avg_pool2d, output_size=cells), partial(F.adaptive_avg_pool2d, output_size=cells), *tensors)


# name: (ours, torch's, shapes), one set of options each, for what does not depend on the options
OPS = {
    "conv2d_naive": (partial(conv2d_naive, stride=2, padding=1, groups=2), [(2, 4, 5, 4), (4, 2, 3, 2), (4,)]),
    "conv2d_unfold": (partial(conv2d_unfold, padding="same", groups=4), [(2, 4, 5, 4), (4, 1, 3, 3), (4,)]),
    "conv2d": (partial(conv2d, dilation=(2, 1)), [(2, 4, 5, 4), (3, 4, 2, 3), (3,)]),
    "max_pool2d": (partial(max_pool2d, kernel_size=3, stride=2, padding=1, ceil_mode=True), [(2, 3, 6, 5)]),
    "avg_pool2d": (partial(avg_pool2d, kernel_size=2, padding=1, count_include_pad=False), [(2, 3, 5, 4)]),
    "adaptive_avg_pool2d": (partial(adaptive_avg_pool2d, output_size=(2, 3)), [(2, 3, 5, 4)]),
}
each_op = pytest.mark.parametrize(("op", "shapes"), OPS.values(), ids=OPS)


@each_op
@settings(max_examples=5)
@given(data=st.data())
def test_lifts(op, shapes, data):
    lifts(op, *(data.draw(tensor(*shape)) for shape in shapes))


def torchs(op):
    name = "conv2d" if op.func in (conv2d_naive, conv2d_unfold) else op.func.__name__
    return partial(getattr(F, name), **op.keywords)


@each_op
@settings(max_examples=10)
@given(data=st.data())
def test_an_image_may_come_alone_and_a_batch_in_batches(op, shapes, data):
    x, *rest = (data.draw(tensor(*shape)) for shape in shapes)
    agree(op, torchs(op), x[0], *rest)
    batches = torch.stack([x, x.flip(0), x.roll(1, dims=-1)])
    torch.testing.assert_close(op(batches, *rest), torch.stack([op(batch, *rest) for batch in batches]))


@each_op
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_one_odd_entry_spreads_as_in_torch(op, shapes, odd):
    """To the windows that hold it and no others."""
    rng = torch.Generator().manual_seed(0)
    x, *rest = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes)
    x[0, 1, 2, 2] = odd
    agree(op, torchs(op), x, *rest)


@pytest.mark.xfail(strict=True, reason="the padding is -inf too, and the first: it takes the gradient")
def test_where_all_is_minus_infinity_the_padding_gets_no_gradient():
    x = torch.full((1, 1, 3, 3), -math.inf, dtype=torch.float64)
    agree(partial(max_pool2d, kernel_size=2, padding=1), partial(F.max_pool2d, kernel_size=2, padding=1), x)


@by_hand
@pytest.mark.parametrize("axis", [0, 1])
def test_a_kernel_larger_than_the_input_is_refused(op, axis):
    kernel = [1, 1]
    kernel[axis] = 2
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, *kernel)
    assert op(x, weight, dilation=2).shape[2 + axis] == 1  # it spans all three
    with pytest.raises(ValueError, match="spans 4, the padded input only 3"):
        op(x, weight, dilation=3)


@by_hand
@pytest.mark.parametrize("stride", [2, (1, 2), (2, 1)])
def test_padding_same_is_refused_with_a_stride(op, stride):
    with pytest.raises(ValueError, match='"same" is for stride 1'):
        op(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), stride=stride, padding="same")


@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
def test_a_pool_refuses_what_torch_refuses(pool):
    x = torch.ones(1, 1, 4, 4)
    for options, message in {
        "padding": ({"kernel_size": 3, "padding": (1, 2)}, "padding 2 is not between 0 and half of kernel_size 3"),
        "window": ({"kernel_size": (5, 1)}, "spans 5, the padded input only 4"),
    }.values():
        with pytest.raises(ValueError, match=message):
            pool(x, **options)
        with pytest.raises(RuntimeError):
            getattr(F, pool.__name__)(x, **options)


@by_hand
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": -1}, r"'padding'\.\nActual value: -1"),
        ({"stride": 0}, r"'stride'\.\nActual value: 0"),
        ({"dilation": (1, 0)}, r"'dilation'\.\nActual value: \(1, 0\)"),
        ({"groups": 2}, "groups 2 do not divide 2 channels and 3 out_channels"),
        ({"groups": 3}, "groups 3 do not divide 2 channels and 3 out_channels"),
    ],
)
def test_impossible_options_are_refused(op, options, message):
    groups = options.get("groups", 1)
    with pytest.raises((ValueError, TypeCheckError), match=message):
        op(torch.ones(1, 2, 4, 4), torch.ones(3, 2 // groups, 3, 3), **options)
