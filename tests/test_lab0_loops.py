"""The loops of Lab 0 beside descent derived by hand, and the data set of Lab 6 beside batches gathered in one go."""

import numpy
import pytest
import torch
from torch import nn

from fn.data.datasets import Split
from fn.data.transforms import random_crop
from fn.rng import generator


def by_hand(params: list[numpy.ndarray], x: numpy.ndarray, y: numpy.ndarray, steps: int) -> list[float]:
    """Return the losses before each step of a two-layer MLP, its gradients derived by hand.

    v ← 0.9 v + g; θ ← θ - 0.1 v.
    """
    losses, velocities = [], [numpy.zeros_like(param) for param in params]
    for _ in range(steps):
        weight1, bias1, weight2, bias2 = params
        z = x @ weight1.T + bias1
        h = numpy.maximum(z, 0)
        a = h @ weight2.T + bias2
        p = numpy.exp(a) / numpy.exp(a).sum(axis=1, keepdims=True)
        losses.append(float(-numpy.log(p[numpy.arange(len(y)), y]).mean()))
        d_a = (p - numpy.eye(len(bias2))[y]) / len(y)
        d_z = d_a @ weight2 * (z > 0)
        grads = [d_z.T @ x, d_z.sum(axis=0), d_a.T @ h, d_a.sum(axis=0)]
        velocities = [0.9 * v + g for v, g in zip(velocities, grads, strict=True)]
        params = [param - 0.1 * v for param, v in zip(params, velocities, strict=True)]
    return losses


@pytest.mark.parametrize("style", ["classic", "functional"])
def test_a_loop_is_gradient_descent_by_hand(classic_loop, functional_loop, style):
    rng = generator(0)
    shapes = {"x": (9, 4), "weight1": (6, 4), "bias1": (6,), "weight2": (3, 6), "bias2": (3,)}
    x, *tensors = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes.values())
    y = torch.randint(3, (9,), generator=rng)
    expected = by_hand([tensor.numpy() for tensor in tensors], x.numpy(), y.numpy(), 13)
    if style == "classic":
        module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        module.load_state_dict(dict(zip(module.state_dict(), tensors, strict=True)))
        losses = classic_loop(module, x, y, 12)
        assert nn.functional.cross_entropy(module(x), y).item() == pytest.approx(expected[12], rel=1e-9)
    else:
        before = [tensor.clone() for tensor in tensors]
        weight1, bias1, weight2, bias2 = tensors
        layers = {"fc1": {"weight": weight1, "bias": bias1}, "fc2": {"weight": weight2, "bias": bias2}}
        losses = functional_loop(layers, x, y, 12)
        assert all(map(torch.equal, tensors, before))
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
