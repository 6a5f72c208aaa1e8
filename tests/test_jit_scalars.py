"""What is one number is computed once, not in every loop that reads it: the same values, less work."""

import math

import pytest
import torch
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from fn import tree
from fn.jit import jit
from fn.jit.scalars import COSTLY, compute_numbers_once
from fn.models.mlp import mlp
from fn.optim import adamw, cosine_schedule
from fn.rng import generator
from fn.train import TrainState, classifier_step, run_key


def scaled(x, t):
    """Return x by a number that is costly, twice, and by one that is not."""
    return x * t.exp() * (2 * t), x - t.exp(), t.exp() + 1


@pytest.mark.parametrize("t", [0.5, -0.0, math.nan, math.inf, -math.inf])
def test_the_values_are_the_same_to_the_bit(t):
    x = torch.tensor([1.0, -2.0, 0.0])
    graph = make_fx(scaled, tracing_mode="fake")(x, torch.tensor(t))
    before = graph(x, torch.tensor(t))
    compute_numbers_once(graph)
    after = graph(x, torch.tensor(t))
    assert sum(node.target is torch.ops.aten.amax.default for node in graph.graph.nodes) == 1  # of 2 t none is made
    again = make_fx(scaled, tracing_mode="fake")(x, torch.tensor(t))
    compute_numbers_once(again)
    assert again.code == graph.code  # the names too: by them a program is found on the disk
    torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


def test_no_loop_reads_the_formula_of_a_number():
    """In a step of AdamW with a schedule: the rate, its product with the decay, both corrections; four leaves."""
    model = mlp((1, 4, 4), 3, hidden=(5,))
    rule = adamw(lr=lambda step: cosine_schedule(step, lr=0.1, total_steps=9))
    params, _ = model.init(generator(0))
    leaves = (params, rule.init(params))
    graph = make_fx(lambda params, state: rule.update(params, params, state), tracing_mode="fake")(*leaves)

    def read_by_loops() -> list:
        costly = set()
        for node in graph.graph.nodes:
            found = node.meta.get("val")
            is_number = isinstance(found, torch.Tensor) and not found.ndim
            if is_number and (node.target in COSTLY or costly.intersection(node.all_input_nodes)):
                costly.add(node)
        loops = [user for node in costly for user in node.users if "val" in user.meta]
        return [user for user in loops if user.meta["val"].ndim]

    assert len(read_by_loops()) == 4 * 4
    compute_numbers_once(graph)
    assert read_by_loops() == []
    assert sum(node.target is torch.ops.aten.amax.default for node in graph.graph.nodes) == 4
    assert len(tree.leaves(params)) == 4


@pytest.mark.slow
def test_the_compiler_leaves_them_out_of_its_loops():
    """Of Adam's two corrections one formula each stands in the generated code, in no loop over weights."""
    model, rule = mlp((1, 8, 8), 10, hidden=(64,)), adamw(lr=1e-3)
    params, state = model.init(generator(0))
    ts = TrainState(params, state, rule.init(params))
    step = classifier_step(model, rule)
    x, y = torch.randn(8, 1, 8, 8), torch.arange(8)
    with fresh_cache():
        (ours, _), code = run_and_get_code(jit(step), ts, x, y, key=run_key(0))
    kernels = [text for text in "".join(code).split("cpp_fused") if "expm1(" in text]
    assert sum(text.count("expm1(") for text in kernels) == 2
    expected, _ = step(ts, x, y, key=run_key(0))
    torch.testing.assert_close(tree.flatten(ours.params), tree.flatten(expected.params), rtol=1e-5, atol=1e-5)
