"""Gradients per example, their noise, Hessian-vector products and sharpness, against loops and the whole Hessian."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from fn import tree
from fn.curvature import gradient_noise_scale, hvp, per_sample_grads, sharpness
from fn.losses import cross_entropy
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.rng import generator, key
from fn.train import classification_loss

SHAPE, CLASSES = (1, 4, 4), 3
MODELS = {"mlp": mlp(SHAPE, CLASSES, hidden=(5,)), "cnn": cnn(SHAPE, CLASSES, widths=(2, 3))}
each_model = pytest.mark.parametrize("name", MODELS)


def evaluated(params: tree.Params, state: tree.Params, x: Tensor, y: Tensor, *, name: str):
    logits, state = MODELS[name].apply(params, state, x, train=False)
    return cross_entropy(logits, y), ({}, state)


def start(name: str) -> tuple[tree.Params, tree.Params]:
    params, state = MODELS[name].init(generator(0))
    return tree.to(params, torch.float64), tree.to(state, torch.float64)


def examples(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = generator(seed)
    return torch.randn(n, *SHAPE, generator=rng).double(), torch.randint(CLASSES, (n,), generator=rng)


def assert_close(batch: Any, other: Any, tolerance: float = 1e-10) -> None:
    tree.map(partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance), batch, other)


def vector(params: tree.Params) -> Tensor:
    """Return the leaves in the order of their names."""
    return torch.cat([x.flatten() for _, x in sorted(tree.flatten(params).items())])


def whole_hessian(f: Any, params: tree.Params) -> Tensor:
    blocks = hessian(lambda flat: f(tree.unflatten(flat)))(flat := tree.flatten(params))
    rows = [torch.cat([blocks[a][b].reshape(flat[a].numel(), -1) for b in sorted(flat)], dim=1) for a in sorted(flat)]
    return torch.cat(rows)


def loss_of(name: str) -> tuple[Any, tree.Params]:
    (params, state), batch = start(name), examples(11)
    return (lambda p: evaluated(p, state, *batch, name=name)[0]), params


@each_model
def test_gradients_per_example_are_those_of_batches_of_one(name):
    (params, state), (x, y), objective = start(name), examples(7), partial(evaluated, name=name)
    together = per_sample_grads(objective, params, state, x, y)
    one_by_one = [grad(objective, has_aux=True)(params, state, x[i : i + 1], y[i : i + 1])[0] for i in range(7)]
    assert_close(together, tree.stack(*one_by_one))
    whole, _ = grad(objective, has_aux=True)(params, state, x, y)
    assert_close(tree.map(lambda g: g.mean(dim=0), together), whole)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 1, 1)])
def test_batch_statistics_leave_an_example_no_gradient_of_its_own(shape):
    model = cnn(shape, CLASSES, widths=(2,))
    objective = partial(classification_loss, apply=model.apply)
    params, state = model.init(generator(0))
    with pytest.raises(ValueError, match=r"as batch norm does in training|more than one value per channel"):
        per_sample_grads(objective, params, state, torch.zeros(5, *shape), torch.zeros(5).long())


def rows(n: int, seed: int = 0) -> tree.Params:
    rng = generator(seed)
    return {
        "a": {"w": 1 + torch.randn(n, 2, 3, generator=rng).double()},
        "b": torch.randn(n, 4, generator=rng).double(),
    }


@pytest.mark.parametrize("n", [2, 5, 60])
def test_the_noise_scale_is_that_of_two_sizes_of_batch(n):
    """McCandlish et al. 2018, appendix A.1, with batches of 1 and of n; and of the whole set, by its covariance."""
    grads = rows(n)
    flat = torch.cat([grads["a"]["w"].flatten(1), grads["b"]], dim=1)
    small, big = flat.square().sum(dim=1).mean(), flat.mean(dim=0).square().sum()
    signal, noise = (n * big - small) / (n - 1), (small - big) / (1 - 1 / n)
    expected = noise / signal if signal > 0 else torch.tensor(torch.inf).double()
    assert_close(gradient_noise_scale(grads), expected)
    assert_close(gradient_noise_scale(grads, whole=True), torch.cov(flat.T, correction=0).trace() / big)


def test_the_noise_scale_of_a_sample_finds_that_of_its_population():
    """g = 1 + z in 10 dimensions: tr Σ = |G|² = 10."""
    draws = 1 + torch.randn(400, 50, 10, generator=generator(1)).double()
    scales = torch.stack([gradient_noise_scale({"w": g}) for g in draws])
    assert float(scales.median()) == pytest.approx(1, abs=0.02)
    biased = torch.stack([gradient_noise_scale({"w": g}, whole=True) for g in draws])
    assert float(biased.median()) < 0.98


def test_a_noise_that_leaves_nothing_of_the_gradient_is_infinite():
    g = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert gradient_noise_scale({"w": g}) == torch.inf
    with pytest.raises(ValueError, match="1 examples have no spread"):
        gradient_noise_scale({"w": g[:1]})


@each_model
def test_hessian_vector_products_are_those_of_the_whole_hessian(name):
    f, params = loss_of(name)
    rng = generator(1)
    v = tree.map(lambda p: torch.randn(p.shape, generator=rng).double(), params)
    assert_close(vector(hvp(f, params, v)), whole_hessian(f, params) @ vector(v))


def test_a_direction_of_another_shape_is_refused():
    f, params = loss_of("mlp")
    for v in ({"fc1": params["fc1"]}, params | {"fc2": params["fc2"] | {"bias": torch.ones(1).double()}}):
        with pytest.raises((RuntimeError, ValueError)):
            hvp(f, params, v)


@each_model
@pytest.mark.parametrize("seed", [0, 1])
def test_sharpness_is_the_largest_eigenvalue(name, seed):
    f, params = loss_of(name)
    eigenvalues = torch.linalg.eigvalsh(whole_hessian(f, params))
    assert eigenvalues[0] < -1e-3, "one of each sign, so that the largest is not just the one of largest size"
    assert_close(sharpness(f, params, key=key(seed), steps=40), eigenvalues[-1])
    fewer = [float(sharpness(f, params, key=key(seed), steps=steps)) for steps in (1, 3, 10)]
    assert fewer[0] < fewer[1] < fewer[2] <= eigenvalues[-1] + 1e-12


@pytest.mark.parametrize("curvature", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 12, 1000])
def test_sharpness_of_a_bowl_that_is_the_same_on_all_sides(curvature, steps):
    """Where H q lies along q, the next direction must come from elsewhere."""
    params = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
    bowl = lambda p: curvature / 2 * sum(x.square().sum() for x in tree.leaves(p))  # noqa: E731
    assert_close(sharpness(bowl, params, key=key(0), steps=steps), torch.tensor(curvature), 1e-5)


def test_the_sharpness_of_an_ensemble_survives_a_member_that_diverged():
    (f, sound), (_, other) = loss_of("mlp"), loss_of("mlp")
    broken = tree.map(lambda x: x * torch.nan, other)
    at = partial(sharpness, f, key=key(0), steps=8)
    both = vmap(at)(tree.stack(sound, broken))
    assert_close(both[0], at(sound))
    assert both[1].isnan()
