"""Initial weights have the moments of torch.nn.init's, up to five standard errors."""

import math

import pytest
import torch
from torch.nn import init

from fn import initializers
from fn.conv import conv2d_init
from fn.layers import embedding_init, linear_init

SHAPES = [(96, 400), (400, 96), (64, 32, 3, 7)]
KURTOSIS = {"uniform": 9 / 5, "normal": 3.0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same_distribution(ours: torch.Tensor, expected: torch.Tensor, family: str) -> None:
    """Of n draws the mean has the standard error σ/√n, and σ itself that of σ √((κ - 1) / 4n), κ the kurtosis.

    Both sides are samples, hence √2. A largest |draw| below b (1 - 20/n) has probability e⁻²⁰ when all are U(-b, b).
    """
    assert ours.shape == expected.shape
    n, std = expected.numel(), float(expected.std())
    assert abs(float(ours.mean() - expected.mean())) < 5 * math.sqrt(2 / n) * std
    assert abs(float(ours.std()) - std) < 5 * math.sqrt(2 * (KURTOSIS[family] - 1) / (4 * n)) * std
    if family == "uniform":
        assert float(ours.abs().max()) == pytest.approx(float(expected.abs().max()), rel=20 / n)
        assert float(ours.min()) == pytest.approx(float(expected.min()), rel=20 / n)
    else:
        beyond = float((ours.abs() > 2 * std).float().mean())  # a share of 4.55 % of a normal distribution
        assert abs(beyond - 0.0455) < 5 * math.sqrt(0.0455 * 0.9545 / n)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["uniform", "normal"])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh", "linear"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_kaiming(shape, family, nonlinearity, mode):
    ours = getattr(initializers, f"kaiming_{family}")(
        seeded(1), shape, mode=mode, gain=float(init.calculate_gain(nonlinearity))
    )
    reference = getattr(init, f"kaiming_{family}_")
    expected = reference(torch.empty(shape), mode=mode, nonlinearity=nonlinearity, generator=seeded(2))
    assert_same_distribution(ours, expected, family)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["uniform", "normal"])
@pytest.mark.parametrize("gain", [1.0, 5 / 3])
def test_xavier(shape, family, gain):
    ours = getattr(initializers, f"xavier_{family}")(seeded(1), shape, gain=gain)
    expected = getattr(init, f"xavier_{family}_")(torch.empty(shape), gain=gain, generator=seeded(2))
    assert_same_distribution(ours, expected, family)


@pytest.mark.parametrize("name", ["kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"])
def test_the_weights_are_a_function_of_the_seed(name):
    draw = getattr(initializers, name)
    before = torch.random.get_rng_state()
    assert torch.equal(draw(seeded(7), (5, 3)), draw(seeded(7), (5, 3)))
    assert not torch.equal(draw(seeded(7), (5, 3)), draw(seeded(8), (5, 3)))
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match="two axes"):
        draw(seeded(), (5,))


def test_layers_start_from_them():
    """Biases are zero; the weights of a ReLU layer have the variance 2 / fan_in."""
    fc, conv = linear_init(seeded(), 400, 96), conv2d_init(seeded(), 64, 32, (3, 7), groups=2)
    assert_same_distribution(fc["weight"], init.kaiming_uniform_(torch.empty(96, 400), generator=seeded(2)), "uniform")
    expected = init.kaiming_normal_(torch.empty(32, 32, 3, 7), generator=seeded(2))
    assert_same_distribution(conv["weight"], expected, "normal")
    assert not fc["bias"].any()
    assert not conv["bias"].any()
    assert conv2d_init(seeded(), 2, 3, 1, bias=False).keys() == {"weight"}
    expected = init.normal_(torch.empty(50, 800), generator=seeded(2))
    assert_same_distribution(embedding_init(seeded(), 50, 800)["weight"], expected, "normal")
