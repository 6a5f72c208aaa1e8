"""The trace of a running network: its shapes are the tensors' own, and its arithmetic is an independent count."""

import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fn import tree
from fn.attention import native_attention, scaled_dot_product_attention
from fn.attention_tiled import tiled_attention
from fn.conv import avg_pool2d, conv2d, conv2d_naive, conv2d_unfold, max_pool2d
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.models.resnet import resnet
from fn.models.transformer import transformer
from fn.rng import generator
from fn.trace import trace

SHAPE, EVEN = (3, 19, 14), (3, 20, 12)
FAMILIES = {
    "mlp": mlp(SHAPE, 10),
    "cnn": cnn(SHAPE, 10),
    "resnet": resnet(SHAPE, 10),
    "transformer": transformer(EVEN, 10, patch_size=4),
    "transformer, rotary": transformer(EVEN, 10, patch_size=4, positions="rotary"),
    "language model": transformer((9,), 10, layers=3),
    "language model, sinusoidal": transformer((9,), 10, positions="sinusoidal"),
}


def example(family: str) -> torch.Tensor:
    if family.startswith("language"):
        return torch.randint(10, (4, 9), generator=generator(1))
    return torch.randn(4, *(EVEN if family.startswith("transformer") else SHAPE), generator=generator(1))


def run(family: str, **options):
    model = FAMILIES[family]
    params, state = model.init(generator(0))
    return params, *trace(params, model.apply, params, state, example(family), train=True, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_trace_of_a_model(family):
    params, (logits, _), calls = run(family)
    assert calls[-1].result.data_ptr() == logits.data_ptr()  # a language model turns it round
    assert all(call.expected == call.result.shape == tuple(size for _, size in call.output) for call in calls)
    shared = tree.size(params["embedding"]) if "embedding" in params else 0  # which is the last layer too
    assert sum(call.parameters for call in calls) == tree.size(params) + shared
    assert {call.layer for call in calls} >= {name.rpartition(".")[0] for name in tree.flatten(params)}
    model = FAMILIES[family]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.apply(*model.init(generator(0)), example(family), train=True)
    assert 2 * sum(call.multiply_adds for call in calls) == counter.get_total_flops()


def test_axes_keep_their_names_through_ops_that_have_none():
    _, _, calls = run("cnn")
    relu = next(call for call in calls if call.op == "relu")
    assert relu.output == (("batch", 4), ("channels", 32), ("height", 9), ("width", 7))
    assert calls[0].by_hand == "⌊(19 + 2·1 − 3)/1⌋ + 1 = 19; ⌊(14 + 2·1 − 3)/1⌋ + 1 = 14"


def test_attention_by_hand():
    _, _, calls = run("language model")
    first = {call.op: call for call in reversed(calls)}
    axes = {
        op: first[op].output for op in ("embedding", "split_heads", "attention_weights", "weighted_sum", "merge_heads")
    }
    assert axes == {
        "embedding": (("batch", 4), ("seq", 9), ("d_model", 64)),
        "split_heads": (("batch", 4), ("heads", 4), ("seq", 9), ("d_head", 16)),
        "attention_weights": (("batch", 4), ("heads", 4), ("queries", 9), ("keys", 9)),
        "weighted_sum": (("batch", 4), ("heads", 4), ("queries", 9), ("d_value", 16)),
        "merge_heads": (("batch", 4), ("seq", 9), ("d_model", 64)),
    }
    assert first["split_heads"].by_hand == "64/4 = 16"
    assert first["merge_heads"].by_hand == "4 · 16 = 64"
    assert first["attention_weights"].multiply_adds == 4 * 4 * 9 * 9 * 16
    assert sum(call.op == "attention_weights" for call in calls) == 3
    query, key, value = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), torch.zeros(2, 5, 7)
    _, across = trace({}, scaled_dot_product_attention, query, key, value)
    assert [call.multiply_adds for call in across] == [2 * 3 * 5 * 4, 2 * 3 * 5 * 7]
    assert [call.expected for call in across] == [call.result.shape for call in across]
    for way in (native_attention, partial(tiled_attention, block_size=2)):
        _, [kernel] = trace({}, way, query, key, value)
        assert kernel.multiply_adds == sum(call.multiply_adds for call in across)
        assert kernel.expected == kernel.result.shape
    patches = run("transformer")[2][0]
    assert patches.by_hand == "(20/4)·(12/4) of 3·4·4"
    assert patches.output == (("batch", 4), ("patches", 15), ("d_patch", 48))


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
