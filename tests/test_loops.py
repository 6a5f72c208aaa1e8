"""The loops of Lab 0 beside descent derived by hand, and the data set of Lab 6 beside batches gathered in one go."""

import numpy
import pytest
import torch
from torch import nn

from fn.data.datasets import Split
from fn.data.transforms import random_crop
from fn.rng import generator


def by_hand(weight: numpy.ndarray, bias: numpy.ndarray, x: numpy.ndarray, y: numpy.ndarray, steps: int) -> list[float]:
    """Softmax regression: ∂L/∂a = (p - onehot) / B; v ← 0.9 v + g; θ ← θ - 0.1 v. The losses before each step."""
    losses, v_weight, v_bias = [], numpy.zeros_like(weight), numpy.zeros_like(bias)
    for _ in range(steps):
        a = x @ weight.T + bias
        p = numpy.exp(a) / numpy.exp(a).sum(axis=1, keepdims=True)
        losses.append(float(-numpy.log(p[numpy.arange(len(y)), y]).mean()))
        d_a = (p - numpy.eye(len(bias))[y]) / len(y)
        v_weight, v_bias = 0.9 * v_weight + d_a.T @ x, 0.9 * v_bias + d_a.sum(axis=0)
        weight, bias = weight - 0.1 * v_weight, bias - 0.1 * v_bias
    return losses


@pytest.mark.parametrize("style", ["classic", "functional"])
def test_a_loop_is_gradient_descent_by_hand(classic_loop, functional_loop, style):
    rng = generator(0)
    x, weight, bias = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((9, 4), (3, 4), (3,)))
    y = torch.randint(3, (9,), generator=rng)
    expected = by_hand(weight.numpy(), bias.numpy(), x.numpy(), y.numpy(), 13)
    if style == "classic":
        module = nn.Linear(4, 3).double()
        module.load_state_dict({"weight": weight, "bias": bias})
        losses = classic_loop(module, x, y, 12)
        assert nn.functional.cross_entropy(module(x), y).item() == pytest.approx(expected[12], rel=1e-9)
    else:
        before = weight.clone(), bias.clone()
        losses = functional_loop({"fc1": {"weight": weight, "bias": bias}}, x, y, 12)
        assert all(map(torch.equal, (weight, bias), before))
    assert losses == pytest.approx(expected[:12], rel=1e-9)
    assert all(type(loss) is float for loss in losses)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (3, 0)])
def test_a_dataset_gives_what_batches_gather(Examples, batches, seed, epoch):
    split = Split(torch.randn(7, 1, 6, 6, generator=generator(1)), torch.arange(7))
    examples = Examples(split, seed, epoch, random_crop)
    assert len(examples) == 7
    for x, y in batches(split, 3, seed=seed, epoch=epoch, augment=random_crop):
        for image, label in zip(x, y, strict=True):
            one, its_label = examples[int(label)]
            assert torch.equal(one, image)
            assert int(its_label) == int(label)
