"""A training step is the classic loop's, evaluation is the whole set's, and data arrives once each."""

import os
from functools import partial
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call, grad, vmap
from torchvision.datasets import MNIST

from fn import tree
from fn.data.datasets import DatasetUnavailable, Split, data_root, digits, mnist, take
from fn.data.loader import batches
from fn.data.transforms import random_shift
from fn.models import cnn, mlp
from fn.models.mlp import two_layer_grads
from fn.optim import adamw, adamw_init, sgd, sgd_init
from fn.rng import generator, key
from fn.train import TrainState, classification_loss, evaluate, train, train_step

SHAPE, CLASSES = (2, 8, 8), 5
MODELS = {"mlp": mlp(SHAPE, CLASSES, hidden=(7,)), "cnn": cnn(SHAPE, CLASSES, widths=(3, 4))}
each_model = pytest.mark.parametrize("name", MODELS)


def examples(n: int, seed: int = 0) -> Split:
    rng = generator(seed)
    images = torch.randn(n, *SHAPE, generator=rng, dtype=torch.float64)
    return Split(images, torch.randint(CLASSES, (n,), generator=rng))


def start(name: str, seed: int = 0) -> TrainState:
    params, state = (tree.to(part, torch.float64) for part in MODELS[name].init(generator(seed)))
    return TrainState(params, state, adamw_init(params))


def assert_close(tree1: tree.Params, tree2: tree.Params) -> None:
    tree.map(partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9), tree1, tree2)


def copy(ts: TrainState) -> TrainState:
    return TrainState(*(tree.map(torch.clone, part) for part in ts))


def step_of(name: str):
    objective = partial(classification_loss, apply=MODELS[name].apply)
    return partial(train_step, objective=objective, optimizer=partial(adamw, lr=1e-2))


def classic(name: str) -> nn.Module:
    """The same network as a module, its parameters named as ours are."""
    conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
    layers = {
        "mlp": {"flatten": nn.Flatten(), "fc1": nn.Linear(128, 7), "relu": nn.ReLU(), "fc2": nn.Linear(7, 5)},
        "cnn": {"conv1": conv(2, 3), "pool": nn.MaxPool2d(2), "bn1": nn.BatchNorm2d(3), "relu1": nn.ReLU()}
        | {"conv2": conv(3, 4), "bn2": nn.BatchNorm2d(4), "relu2": nn.ReLU()}
        | {"flatten": nn.Flatten(), "fc": nn.Linear(64, 5)},
    }
    module = nn.Sequential()
    for layer, submodule in layers[name].items():
        module.add_module(layer, submodule)
    ts = start(name)
    missing, unexpected = module.double().load_state_dict(
        tree.flatten(ts.params) | tree.flatten(ts.state), strict=False
    )
    assert not unexpected
    assert all(entry.endswith("num_batches_tracked") for entry in missing)
    return module


@each_model
def test_a_step_is_the_classic_loops(name):
    """Seven steps of AdamW: loss, accuracy, gradient norm, parameters and batch-norm statistics."""
    ts, module, split = start(name), classic(name), examples(60)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for i, (x, y) in enumerate(batches(split, 9)):
        ts, metrics = step_of(name)(ts, x, y, key=key(i))
        optimizer.zero_grad()
        logits = module(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()
        optimizer.step()
        right = (logits.argmax(dim=1) == y).float().mean()
        assert_close(metrics, {"loss": loss.detach(), "accuracy": right, "grad_norm": norm})
    theirs = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert_close(tree.flatten(ts.params) | tree.flatten(ts.state), theirs)


@each_model
def test_a_step_changes_nothing_that_it_was_given(name):
    ts = start(name)
    before = copy(ts)
    step_of(name)(ts, *examples(6), key=key(0))
    assert_close(ts._asdict(), before._asdict())


@each_model
def test_an_ensemble_is_vmap_of_the_step(name):
    members, keys = [start(name, seed) for seed in range(3)], torch.stack([key(seed) for seed in range(3)])
    stacked = TrainState(*(tree.stack(*parts) for parts in zip(*members, strict=True)))
    for x, y in batches(examples(18), 6):
        stacked, together = vmap(lambda ts, k, x=x, y=y: step_of(name)(ts, x, y, key=k))(stacked, keys)
        results = [step_of(name)(ts, x, y, key=k) for ts, k in zip(members, keys, strict=True)]
        members = [ts for ts, _ in results]
        assert_close(together, tree.stack(*(metrics for _, metrics in results)))
    assert_close(stacked._asdict(), tree.stack(*(ts._asdict() for ts in members)))


def test_training_is_the_step_repeated_under_the_keys_of_its_seed():
    split, ts, keys = examples(20), start("mlp"), []

    def objective(*args, key):
        keys.append(int(key))
        return classification_loss(*args, apply=MODELS["mlp"].apply, key=key)

    runs = list(train(ts, batches(split, 8), objective=objective, optimizer=partial(adamw, lr=1e-2), seed=5))
    for i, (x, y) in enumerate(batches(split, 8)):
        ts, metrics = step_of("mlp")(ts, x, y, key=key(5, i))
        assert_close(runs[i][0]._asdict(), ts._asdict())
        assert runs[i][1] == {name: value.item() for name, value in metrics.items()}
    assert keys == [int(key(5, i)) for i in range(3)]


@pytest.mark.parametrize(("name", "leaf"), [("mlp", "fc1.weight"), ("cnn", "conv1.weight")])
def test_bad_input_stops_training_before_the_update(name, leaf):
    """The third batch holds a NaN: two states come out, the second as if the third had never been."""
    split = examples(20)
    split.images[11] = torch.nan
    objective = partial(classification_loss, apply=MODELS[name].apply)
    run = train(start(name), batches(split, 5), objective=objective, optimizer=partial(adamw, lr=1e-2), seed=0)
    states = [next(run)[0], next(run)[0]]
    with pytest.raises(
        FloatingPointError, match=rf"^step 2: loss nan, first bad gradient in {leaf} \(.* not finite\)$"
    ):
        next(run)
    clean = list(
        train(start(name), batches(take(split, 10), 5), objective=objective, optimizer=partial(adamw, lr=1e-2), seed=0)
    )
    assert_close(states[-1]._asdict(), clean[-1][0]._asdict())


def test_a_bad_gradient_under_a_finite_loss_is_found_where_it_is():
    """√0 is 0, but its slope is infinite."""

    def objective(params, state, x, y, *, key):
        loss = params["fine"].sum() + params["flat"]["edge"].sqrt().sum()
        return loss, ({"loss": loss}, state)

    params = {"fine": torch.ones(2), "flat": {"edge": torch.tensor([0.0, 1.0])}}
    ts = TrainState(params, {}, sgd_init(params))
    with pytest.raises(FloatingPointError, match=r"^step 0: loss 3\.0, .* in flat\.edge \(1 of 2 entries"):
        next(train(ts, [examples(1)], objective=objective, optimizer=partial(sgd, lr=1.0), seed=0))


@each_model
@pytest.mark.parametrize("batch_size", [1, 10, 23, 100])
def test_evaluation_weights_a_short_last_batch_and_changes_nothing(name, batch_size):
    ts, split = step_of(name)(start(name), *examples(6), key=key(0))[0], examples(23, seed=1)
    before = copy(ts)
    metrics = evaluate(ts.params, ts.state, split, apply=MODELS[name].apply, batch_size=batch_size)
    logits = functional_call(classic(name).eval(), tree.flatten(ts.params) | tree.flatten(ts.state), split.images)
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-9)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == split.labels).double().mean().item(), rel=1e-6)
    assert_close(ts._asdict(), before._asdict())


def test_batch_norm_learns_its_statistics_in_training_only():
    ts, x = start("cnn"), examples(6).images
    _, trained = MODELS["cnn"].apply(ts.params, ts.state, x, train=True)
    _, evaluated = MODELS["cnn"].apply(ts.params, ts.state, x, train=False)
    assert_close(evaluated, ts.state)
    assert not any(map(torch.equal, tree.leaves(trained), tree.leaves(ts.state)))


def test_backward_by_hand():
    split = examples(9)
    params, x = start("mlp").params, split.images.flatten(1)
    loss = lambda p: classification_loss(p, {}, x, split.labels, apply=MODELS["mlp"].apply)[0]  # noqa: E731
    assert_close(two_layer_grads(params, x, split.labels), grad(loss)(params))


@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_a_pass_visits_every_example_once(batch_size):
    n = 11
    split = Split(torch.arange(n).reshape(n, 1, 1, 1).float(), torch.arange(n))
    orders = []
    for rng in (None, generator(3), generator(3), generator(4)):
        some = list(batches(split, batch_size, rng=rng))
        assert [len(y) for _, y in some] == [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
        assert all(torch.equal(x.flatten().long(), y) for x, y in some)
        orders.append(torch.cat([y for _, y in some]).tolist())
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert orders[0] == list(range(n))
    assert orders[1] == orders[2]
    assert all(a != b for a, b in pairwise(orders) if (a, b) != (orders[1], orders[2]))


def test_augmentation_sees_each_batch():
    for (x, y), (x2, y2) in zip(
        batches(examples(9), 4, rng=generator(0)),
        batches(examples(9), 4, rng=generator(0), augment=lambda x, rng: -x),
        strict=True,
    ):
        assert torch.equal(x2, -x)
        assert torch.equal(y2, y)


def test_random_shift_moves_each_image_on_its_own():
    """Each result is one of the 5 × 5 shifts of its image, all of them occur, and evenly up to 5 standard errors."""
    n, reach = 2000, 2
    x = torch.rand(n, *SHAPE, generator=generator(0)) + 1
    x[0, 0, 0, 0] = 0.5  # the least value of all
    y, seen = random_shift(x, generator(1), max_shift=reach), torch.zeros(n, dtype=torch.long)
    moves = [(down, right) for down in range(-reach, reach + 1) for right in range(-reach, reach + 1)]
    tally = []
    for down, right in moves:
        rolled = torch.roll(F.pad(x, (reach,) * 4, value=0.5), (down, right), dims=(-2, -1))
        same = (rolled[..., reach:-reach, reach:-reach] == y).flatten(1).all(dim=1)
        tally.append(int(same.sum()))
        seen += same
    assert (seen == 1).all()
    assert all(abs(count - n / 25) < 5 * (n / 25) ** 0.5 for count in tally)
    assert torch.equal(y, random_shift(x, generator(1), max_shift=reach))
    assert torch.equal(x, random_shift(x, generator(1), max_shift=0))


def test_digits_are_scikit_learns_with_every_fifth_held_out():
    """Both splits are on the scale of the first, and no example is in both."""
    pixels, labels = map(torch.tensor, load_digits(return_X_y=True))
    held_out = torch.arange(1797) % 5 == 4
    std, mean = torch.std_mean(pixels[~held_out])
    data = digits()
    for split, chosen, n in ((data.train, ~held_out, 1438), (data.test, held_out, 359)):
        assert split.images.shape == (n, 1, 8, 8)
        assert torch.equal(split.labels, labels[chosen])
        torch.testing.assert_close(
            split.images.flatten(1).double(), (pixels[chosen] - mean) / std, rtol=1e-4, atol=1e-5
        )
    assert data.shape == (1, 8, 8)
    assert list(data.classes) == list("0123456789")
    assert torch.equal(take(data.train, 5).images, data.train.images[:5])


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError("Error downloading train-images")])
def test_mnist_without_network_says_where_it_was_looked_for(monkeypatch, tmp_path, error):
    def offline(self):
        raise error

    monkeypatch.setenv("FN_DATA", str(tmp_path))
    monkeypatch.setattr(MNIST, "download", offline)
    with pytest.raises(DatasetUnavailable) as refusal:
        mnist()
    message = str(refusal.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert str(error) in message
    assert "FN_DATA" in message
    assert "\n" not in message


def test_data_root_without_FN_DATA_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("FN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root().parent == tmp_path


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(os.environ.get("FN_DATA", "/nowhere")) / "MNIST" / "raw").is_dir(), reason="FN_DATA holds no MNIST/raw"
)
def test_mnist():
    data = mnist()
    for split, n in ((data.train, 60_000), (data.test, 10_000)):
        assert split.images.shape == (n, 1, 28, 28)
        assert split.labels.bincount().shape == (10,)
        assert split.labels.shape == (n,)
    std, mean = torch.std_mean(data.train.images.double())
    assert float(mean) == pytest.approx(0, abs=1e-4)
    assert float(std) == pytest.approx(1, abs=1e-4)
    # The published statistics, 0.1307 and 0.3081, in units of a white pixel: black is -mean / std.
    assert float(data.test.images.min()) == pytest.approx(-0.1307 / 0.3081, abs=1e-3)
    assert float(data.test.images.max()) == pytest.approx((1 - 0.1307) / 0.3081, abs=1e-3)
