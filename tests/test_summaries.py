"""A tensor in a line: for every kind of tensor, in a divergence, in a refused shape, and in the words of a drill."""

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import grad, vmap

from experiments.drill.differences import first_differences
from experiments.drill.explain import example, show
from experiments.drill.recorder import Call
from experiments.shared import cli
from fn import layers
from fn.conv import patches
from fn.losses import mse_loss
from fn.models.mlp import mlp
from fn.optim import sgd
from fn.tensors import kind, summarize
from fn.train import check_finite, classifier_step, init_train_state, run_key

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
DTYPES += [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.tensor([[0.0, 1, 1], [2, math.nan, math.inf]]), "f32[2,3] in [0, 2] ▅▁▁█▁▁▅ 1 NaN 1 inf"),
        (torch.tensor([-math.inf, math.nan, math.nan]), "f32[3] 2 NaN 1 -inf"),
        (torch.tensor([1.0, math.nan]), "f32[2] in [1, 1] ▁▁▁█▁▁▁ 1 NaN"),
        (torch.zeros(4, 2), "f32[4,2] all 0"),
        (-torch.zeros(2), "f32[2] all 0"),
        (torch.tensor(3.14159), "f32[] = 3.14"),
        (torch.tensor(math.nan), "f32[] 1 NaN"),
        (torch.zeros(0, 3), "f32[0,3] empty"),
        (torch.arange(7), "i64[7] in [0, 6] ███████"),
        (torch.tensor([2**62, -(2**62)]), f"i64[2] in [{-(2**62)}, {2**62}] █▁▁▁▁▁█"),
        (torch.tensor([1e308, -1e308], dtype=torch.float64), "f64[2] in [-1e+308, 1e+308] █▁▁▁▁▁█"),
        (torch.tensor([True, False, True]), "bool[3] 2 of 3 True"),
        (torch.tensor([3 + 4j, 0j]), "c64[2] in [0, 5] █▁▁▁▁▁█"),
        (torch.zeros(3, 4, device="meta"), "f32[3,4]"),
        (torch.eye(3).to_sparse(), "f32[3,3]"),
        (torch.arange(12.0).reshape(3, 4).t()[::2], "f32[2,3] in [0, 10] ███▁███"),
        (torch.ones(2, requires_grad=True), "f32[2] all 1"),
    ],
)
def test_a_tensor_in_a_line(x, said):
    line = summarize(x)
    if not x.is_sparse:
        assert line == said
    assert line.startswith(kind(x))
    assert "\n" not in line


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)], ids=str)
def test_no_kind_of_tensor_fails(dtype, shape):
    x = (torch.arange(math.prod(shape)).reshape(shape) % 3).to(dtype)
    assert summarize(x).startswith(kind(x))
    assert kind(x).endswith(f"[{','.join(map(str, shape))}]")


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != torch.float8_e4m3fn], ids=str)
def test_the_kind_is_written_as_in_a_refusal(dtype):
    x = torch.zeros(3, 4).to(dtype)
    with pytest.raises(TypeError) as caught:
        patches(x, 2)
    assert f"{kind(x)}(torch)" in str(caught.value)


def test_inside_grad_and_vmap_and_of_what_is_fake():
    lines = []

    def f(x):
        lines.append(summarize(x))
        return (x * x).sum()

    grad(f)(torch.ones(3))
    vmap(f)(torch.arange(6.0).reshape(2, 3))
    vmap(grad(f))(torch.arange(6.0).reshape(2, 3))
    with FakeTensorMode() as mode:
        f(torch.ones(3))
    f(mode.from_tensor(torch.ones(3)))
    assert lines == ["f32[3] all 1", *["f32[3] in [0, 5] ███▁███"] * 2, "f32[3]", "f32[3]"]


def test_a_tensor_is_not_changed():
    x = torch.tensor([math.nan, 1.0, math.inf])
    summarize(x)
    assert x.isnan()[0]
    assert x[1] == 1
    assert x[2] == math.inf


# Where tensors are shown.


def test_a_divergence_shows_the_first_leaf_that_is_not_finite():
    model, optimizer = mlp((4,), 3, hidden=(5,)), sgd(lr=0.1)
    ts = init_train_state(model, optimizer, seed=0)
    x = torch.ones(6, 4)
    x[0, 2] = math.nan
    with pytest.raises(FloatingPointError) as caught:
        check_finite(classifier_step(model, optimizer))(ts, x, torch.zeros(6).long(), key=run_key(0))
    said = str(caught.value)
    assert said.startswith("step 0: loss nan, first non-finite update in fc1.weight: f32[5,4] ")
    assert "NaN" in said
    assert "\n" not in said


def test_a_refused_shape_shows_the_tensors_that_were_given():
    def own(x):
        return layers.linear(x, torch.ones(2, 5), torch.zeros(2))

    with pytest.raises(TypeError) as caught:
        own(torch.tensor([[0.0, 1, 1, math.nan]]))
    complaint, line, *given = cli.explain(caught.value).splitlines()
    assert complaint.startswith("fn.layers.linear: weight is f32[2,5], not ")
    assert "tests/test_summaries.py:" in line
    assert given == [
        "    x       f32[1,4] in [0, 1] ▅▁▁▁▁▁█ 1 NaN",
        "    weight  f32[2,5] all 1",
        "    bias    f32[2] all 0",
    ]
    with pytest.raises(TypeError) as caught:
        mse_loss(torch.ones(3, 1), torch.arange(3.0))
    assert cli.explain(caught.value).splitlines()[2:] == [
        "    input   f32[3,1] all 1",
        "    target  f32[3] in [0, 2] █▁▁█▁▁█",
    ]


def test_a_large_tensor_of_a_drill_is_its_summary_and_first_numbers():
    assert show(torch.arange(30.0)) == "f32[30] in [0, 29] █▇▇▇▇▇█: [0, 1, 2, 3, 4, 5, …]"
    assert show(torch.tensor([[1.0, 2.5]])) == "f32[1,2] [[1, 2.5]]"
    assert show(torch.zeros(2, 0)) == "f32[2,0]"


def test_the_first_entries_that_differ_stand_beside_each_other():
    wanted, yours = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 2], [5, 4]])
    assert first_differences(wanted, yours) == [
        "",
        "first differences",
        "  at      wanted  yours  difference",
        "  [1, 0]  3       5      2",
    ]
    lines = first_differences(({}, {"w": torch.zeros(20)}), ({}, {"w": torch.ones(20)}))
    assert lines[1] == "first differences in result[1].w"
    assert lines[-1] == "  and 14 more entries"
    assert first_differences(wanted, wanted + 1e-7) == []
    assert first_differences(wanted, yours[0]) == []
    assert first_differences(wanted, None) == []
    assert first_differences(wanted.to("meta"), yours.to("meta")) == []
    assert first_differences(3.0, 4.0) == []


def test_an_image_is_drawn_three_times():
    wanted = torch.zeros(2, 1, 4, 5)
    yours = wanted.clone()
    wanted[1, 0, 1:3, 1:4], yours[1, 0, 1:3, 2:5] = 1.0, 1.0
    assert first_differences(wanted, yours) == [
        "",
        "first difference: result[1, 0], from 0 (blank) to 1 (full); the difference up to 1",
        "wanted      yours       difference",
        "",
        " ███          ███        █  █",
        " ███          ███        █  █",
        "",
    ]
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    assert first_differences(mask, mask.T)[1].startswith("first difference: result, from 0")
    large = torch.rand(3, 40, 40)
    assert all(len(line) <= 60 for line in first_differences(large, large + torch.rand(3, 40, 40))[2:])
    broken = torch.full((2, 3, 3), math.nan)
    assert first_differences(torch.zeros(2, 3, 3), broken)[3].split() == ["×××", "×××"]


def test_a_refused_answer_shows_it():
    wanted, yours = torch.tensor([0.25, 0.75]), torch.tensor([0.25, 0.5])
    call = Call(arguments={"x": wanted}, yours=yours, ours=wanted, before={"x": wanted})
    assert example(call)[-2:] == ["  at   wanted  yours  difference", "  [1]  0.75    0.5    -0.25"]
