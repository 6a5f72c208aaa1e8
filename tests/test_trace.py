"""The trace of a running network: its shapes are the tensors' own, and its arithmetic is an independent count."""

import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fn import tree
from fn.conv import avg_pool2d, conv2d, conv2d_naive, conv2d_unfold, max_pool2d
from fn.models import cnn, mlp, resnet
from fn.rng import generator
from fn.trace import trace

SHAPE = (3, 19, 14)


FAMILIES = {"mlp": mlp, "cnn": cnn, "resnet": resnet}


def run(family: str):
    model = FAMILIES[family](SHAPE, 10)
    params, state = model.init(generator(0))
    x = torch.randn(4, *SHAPE, generator=generator(1))
    return params, *trace(params, model.apply, params, state, x, train=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_trace_of_a_model(family):
    params, (logits, _), calls = run(family)
    assert calls[-1].result is logits
    assert all(call.expected == call.result.shape == tuple(size for _, size in call.output) for call in calls)
    assert sum(call.parameters for call in calls) == tree.size(params)
    assert {call.layer for call in calls} >= {name.rpartition(".")[0] for name in tree.flatten(params)}
    model = FAMILIES[family](SHAPE, 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.apply(*model.init(generator(0)), torch.zeros(4, *SHAPE), train=True)
    assert 2 * sum(call.multiply_adds for call in calls) == counter.get_total_flops()


def test_axes_keep_their_names_through_ops_that_have_none():
    _, _, calls = run("cnn")
    relu = next(call for call in calls if call.op == "relu")
    assert relu.output == (("batch", 4), ("channels", 32), ("height", 9), ("width", 7))
    assert calls[0].by_hand == "⌊(19 + 2·1 − 3)/1⌋ + 1 = 19; ⌊(14 + 2·1 − 3)/1⌋ + 1 = 14"


@pytest.mark.parametrize("op", [conv2d, conv2d_naive, conv2d_unfold])
def test_convolution_by_hand(op):
    x, weight = torch.zeros(1, 4, 11, 9), torch.zeros(6, 2, 3, 2)
    _, [call] = trace({}, op, x, weight, stride=(2, 1), padding=(1, 2), dilation=(3, 1), groups=2)
    assert call.expected == call.result.shape
    assert call.by_hand == "⌊(11 + 2·1 − 3·(3 − 1) − 1)/2⌋ + 1 = 4; ⌊(9 + 2·2 − 2)/1⌋ + 1 = 12"
    assert call.multiply_adds == 6 * 4 * 12 * 2 * 3 * 2


@pytest.mark.parametrize("op", [max_pool2d, avg_pool2d])
def test_pooling_by_hand(op):
    for ceil_mode in (False, True):
        _, [call] = trace({}, op, torch.zeros(1, 2, 12, 9), 3, 2, 1, ceil_mode=ceil_mode)
        assert call.expected == call.result.shape
        assert call.expected == nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_mode)(torch.zeros(1, 2, 12, 9)).shape


def test_the_profiler_is_put_back_after_an_error():
    before = sys.getprofile()
    with pytest.raises(ValueError, match="spans 3"):
        trace({}, conv2d_naive, torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 3, 3))
    assert sys.getprofile() is before
