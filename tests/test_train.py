"""A training step is the classic loop's, and evaluation is the whole set's."""

from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fn import tree
from fn.data.datasets import Split, take
from fn.data.loader import batches
from fn.metrics import Metric, count_examples, count_targets, exact_match, top_k_accuracy
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.optim import Optimizer, adam_init, adamw, sgd, sgd_init
from fn.rng import fold_in, generator, key
from fn.train import (
    ACCURACY,
    TrainState,
    classification_loss,
    run_key,
)
from fn.train_variants import accumulated_step, mixed_precision, several_steps

SHAPE, CLASSES = (2, 8, 8), 5
MODELS = {"mlp": mlp(SHAPE, CLASSES, hidden=(7,)), "cnn": cnn(SHAPE, CLASSES, widths=(3, 4))}
each_model = pytest.mark.parametrize("name", MODELS)


def examples(n: int, seed: int = 0) -> Split:
    rng = generator(seed)
    images = torch.randn(n, *SHAPE, generator=rng, dtype=torch.float64)
    return Split(images, torch.randint(CLASSES, (n,), generator=rng))


def start(name: str, seed: int = 0) -> TrainState:
    params, state = (tree.to(part, torch.float64) for part in MODELS[name].init(generator(seed)))
    return TrainState(params, state, adam_init(params))


def assert_close(tree1: tree.Params, tree2: tree.Params) -> None:
    tree.map(partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9), tree1, tree2)


def copy(ts: TrainState) -> TrainState:
    return TrainState(*(tree.map(torch.clone, part) for part in ts))


@pytest.fixture(scope="module")
def step_of(train_step):
    """step_of(name) is the step of that model under AdamW."""
    objective = lambda name: partial(classification_loss, apply=MODELS[name].apply)  # noqa: E731
    return lambda name: partial(train_step, objective=objective(name), optimizer=adamw(lr=1e-2))


def classic(name: str) -> nn.Module:
    """Return the same network as a module, its parameters named as ours are."""
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
def test_a_step_is_the_classic_loops(step_of, name):
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
    statistics = {k: v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert_close(tree.flatten(ts.params) | tree.flatten(ts.state), statistics)


@each_model
def test_a_step_changes_nothing_that_it_was_given(step_of, name):
    ts = start(name)
    before = copy(ts)
    step_of(name)(ts, *examples(6), key=key(0))
    assert_close(ts._asdict(), before._asdict())


@each_model
def test_an_ensemble_is_vmap_of_the_step(step_of, name):
    members, keys = [start(name, seed) for seed in range(3)], torch.stack([key(seed) for seed in range(3)])
    stacked = TrainState(*(tree.stack(*parts) for parts in zip(*members, strict=True)))
    for x, y in batches(examples(18), 6):
        stacked, together = vmap(lambda ts, k, x=x, y=y: step_of(name)(ts, x, y, key=k))(stacked, keys)
        results = [step_of(name)(ts, x, y, key=k) for ts, k in zip(members, keys, strict=True)]
        members = [ts for ts, _ in results]
        assert_close(together, tree.stack(*(metrics for _, metrics in results)))
    assert_close(stacked._asdict(), tree.stack(*(ts._asdict() for ts in members)))


@pytest.fixture(scope="module")
def epoch(train_step, train_one_epoch):
    """epoch(ts, batches, objective) is (state, metrics) after each step, and what train_one_epoch returns."""

    def run(
        ts: TrainState,
        loader: Iterable[tuple[Tensor, Tensor]],
        objective: Callable,
        optimizer: Optimizer | None = None,
        **options: Any,
    ):
        steps: list[Any] = []
        on_step = lambda *step: steps.append(step)  # noqa: E731
        settings: dict[str, Any] = {"seed": 5, "on_step": on_step} | options
        step = partial(train_step, objective=objective, optimizer=optimizer or adamw(lr=1e-2))
        return steps, train_one_epoch(ts, loader, step=step, **settings)

    return run


def test_an_epoch_is_the_step_repeated_under_the_keys_of_its_seed(step_of, epoch):
    split, ts, keys = examples(20), start("mlp"), []

    def objective(*args, key):
        keys.append(int(key))
        return classification_loss(*args, apply=MODELS["mlp"].apply, key=key)

    steps, (end, _) = epoch(ts, batches(split, 8), objective)
    for i, (x, y) in enumerate(batches(split, 8)):
        ts, metrics = step_of("mlp")(ts, x, y, key=run_key(5))
        assert_close(steps[i][0]._asdict(), ts._asdict())
        assert steps[i][1] == {name: value.item() for name, value in metrics.items()}
    assert_close(end._asdict(), ts._asdict())
    assert keys == [int(fold_in(run_key(5), i)) for i in range(3)]


def test_several_steps_are_the_step_repeated(step_of, epoch):
    model_step, ts, (x, y) = step_of("mlp"), start("mlp"), examples(18)
    whole, metrics = several_steps(ts, x.unflatten(0, (3, 6)), y.unflatten(0, (3, 6)), step=model_step, key=run_key(5))
    _, (end, _) = epoch(ts, batches(Split(x, y), 6), partial(classification_loss, apply=MODELS["mlp"].apply))
    assert_close(whole._asdict(), end._asdict())
    assert metrics["loss"].shape == (3,)
    assert metrics["loss"][0] == model_step(ts, x[:6], y[:6], key=run_key(5))[1]["loss"]


@pytest.mark.parametrize("seed", range(5))
def test_steps_and_epochs_never_draw_under_one_key(seed):
    steps, epochs = {int(fold_in(run_key(seed), i)) for i in range(1000)}, {int(key(seed, i)) for i in range(1000)}
    assert len(steps | epochs) == 2000


@pytest.mark.parametrize("batch_size", [1, 7, 20, 100])
def test_the_metrics_of_an_epoch_are_means_over_examples(epoch, batch_size):
    """With a rate of 0 the model stays as it is, so that they are those of the whole set, whatever the batches."""
    split, ts = examples(20), start("mlp")
    objective = partial(classification_loss, apply=MODELS["mlp"].apply)
    _, (end, metrics) = epoch(ts, batches(split, batch_size), objective, optimizer=adamw(lr=0.0))
    logits, _ = MODELS["mlp"].apply(ts.params, {}, split.images, train=True)
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-9)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == split.labels).double().mean().item(), rel=1e-6)
    assert_close(end.params, ts.params)


@pytest.mark.parametrize(("name", "leaf"), [("mlp", "fc1.weight"), ("cnn", "conv1.weight")])
def test_bad_input_stops_training_before_the_update(epoch, name, leaf):
    """The third batch holds a NaN: two states come out, the second as if the third had never been."""
    split, seen = examples(20), []
    split.images[11] = torch.nan
    objective = partial(classification_loss, apply=MODELS[name].apply)
    stopped = rf"^step 2: loss nan, first non-finite update in {leaf}: f\d\d\[.*NaN$"
    with pytest.raises(FloatingPointError, match=stopped):
        epoch(start(name), batches(split, 5), objective, on_step=lambda ts, *_: seen.append(ts))
    _, (clean, _) = epoch(start(name), batches(take(split, 10), 5), objective)
    assert len(seen) == 2
    assert_close(seen[-1]._asdict(), clean._asdict())


def test_a_batch_in_which_nothing_counts_stops_training_and_says_so(epoch):
    split, objective = examples(20), partial(classification_loss, apply=MODELS["mlp"].apply)
    split.labels[5:10] = -100
    with pytest.raises(FloatingPointError, match=r"^step 1: loss nan, as no target of the batch counts$"):
        epoch(start("mlp"), batches(split, 5), objective)


def test_a_bad_gradient_under_a_finite_loss_is_found_where_it_is(epoch):
    """√0 is 0, but its slope is infinite."""

    def objective(params, state, x, y, *, key):
        loss = params["fine"].sum() + params["flat"]["edge"].sqrt().sum()
        return loss, ({"loss": loss}, state)

    params = {"fine": torch.ones(2), "flat": {"edge": torch.tensor([0.0, 1.0])}}
    ts = TrainState(params, {}, sgd_init(params))
    with pytest.raises(FloatingPointError, match=r"^step 0: loss 3\.0, .* in flat\.edge: f32\[2\] .* 1 -inf$"):
        epoch(ts, [examples(1)], objective, optimizer=sgd(lr=1.0))


@pytest.fixture
def accumulating(monkeypatch, accumulated):
    """Return `accumulated_step` over the function under test."""
    monkeypatch.setattr("fn.train_variants.accumulated", accumulated)
    return accumulated_step


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_accumulated_gradients_are_those_of_the_large_batch(train_step, accumulating, parts, label_smoothing):
    """In parts of unequal sizes: gradients, loss, accuracy, gradient norm and the updated parameters."""
    ts, (x, y) = start("mlp"), examples(11)
    objective = partial(classification_loss, apply=MODELS["mlp"].apply, label_smoothing=label_smoothing)
    options: dict[str, Any] = {"objective": objective, "optimizer": adamw(lr=1e-2), "key": key(0)}
    whole, metrics = train_step(ts, x, y, **options)
    in_parts, metrics_ = accumulating(ts, x, y, **options, parts=parts)
    assert_close(in_parts._asdict(), whole._asdict())
    torch.testing.assert_close(metrics_, metrics, rtol=1e-6, atol=0.0)  # the accuracy is a float32


MASKS = {
    "a few": [[0, 0, 1], [1, 1, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]],
    "whole parts": [[0, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]],
    "all but one": [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]],
    "none": [[0, 0, 0]] * 5,
}
"""which of the three targets of each example count"""
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def ignoring(mask: list[list[int]]) -> tuple[TrainState, Callable, Tensor, Tensor]:
    """Return (state, apply, x, y): a linear model that classifies at three positions."""
    rng = generator(2)
    x, y = torch.randn(5, 4, 3, generator=rng).double(), torch.randint(6, (5, 3), generator=rng)
    params = {"weight": torch.randn(6, 4, generator=rng).double()}
    apply = lambda params, state, x, **_: (torch.einsum("ki,bip->bkp", params["weight"], x), state)  # noqa: E731
    y = torch.where(torch.tensor(mask) > 0, y, -100)
    return TrainState(params, {}, adam_init(params) | sgd_init(params)), apply, x, y


@each_mask
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_parts_weigh_the_targets_that_count(accumulating, mask, parts, label_smoothing):
    """Gradient, loss and accuracy are those of the whole batch under torch's loss, NaN if nothing counts."""
    ts, apply, x, y = ignoring(mask)
    objective = partial(classification_loss, apply=apply, label_smoothing=label_smoothing)
    after, metrics = accumulating(ts, x, y, objective=objective, optimizer=sgd(lr=1.0), key=key(0), parts=parts)
    weight = ts.params["weight"].clone().requires_grad_()
    logits = apply({"weight": weight}, {}, x)[0]
    loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
    loss.backward()
    torch.testing.assert_close(ts.params["weight"] - after.params["weight"], weight.grad)
    counted = y != -100
    accuracy = (logits.argmax(1) == y)[counted].float().mean()
    torch.testing.assert_close(metrics["loss"], loss.detach(), equal_nan=True)
    torch.testing.assert_close(metrics["accuracy"], accuracy, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_ignored_targets_parts_weigh_their_examples_to_the_bit(accumulated, dtype):
    """And half precision is not asked to count: it holds whole numbers up to 256."""
    rng = generator(0)
    x, y = torch.randn(700, 1, generator=rng).to(dtype), torch.zeros(700, 3, dtype=torch.int64)
    objective = lambda params, state, x, y, *, key: ((params["w"] * x.sum()).sum(), ({}, state))  # noqa: E731
    grads, _ = accumulated(objective, {"w": torch.ones(2, dtype=dtype)}, {}, x, y, key=key(0), parts=3)
    expected = reduce(torch.add, (part.sum().expand(2) * (len(part) / 700) for part in x.chunk(3)))
    assert torch.equal(grads["w"], expected)


@each_mask
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_evaluation_is_over_what_counts_whatever_the_batches(eval_one_epoch, mask, batch_size):
    """Each metric over its own: targets, or examples with a target that counts; NaN if nothing does."""
    ts, apply, x, y = ignoring(mask)
    top = Metric(partial(top_k_accuracy, k=2), count_targets)
    metrics = ACCURACY | {"top": top, "exact": Metric(exact_match, count_examples)}
    x, y = torch.cat([x, x]), torch.cat([y, apply(ts.params, {}, x)[0].argmax(1).where(y != -100, y)])
    found = eval_one_epoch(ts.params, {}, batches(Split(x, y), batch_size), apply=apply, metrics=metrics)
    logits, counted = apply(ts.params, {}, x)[0], y != -100
    right, ranked = logits.argmax(1) == y, (logits.topk(2, dim=1).indices == y[:, None]).any(1)
    whole = (right | ~counted).all(1)[counted.any(1)].double().mean().item()
    means = {"accuracy": right[counted].double().mean().item(), "top": ranked[counted].double().mean().item()}
    expected = {"loss": F.cross_entropy(logits, y).item()} | means | {"exact": whole}
    assert found == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_metrics_of_an_epoch_are_means_over_what_counts(epoch, batch_size):
    ts, apply, x, y = ignoring([[1, 0, 0], [1, 1, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    objective = partial(classification_loss, apply=apply)
    _, (_, metrics) = epoch(ts, batches(Split(x, y), batch_size), objective, optimizer=adamw(lr=0.0))
    logits = apply(ts.params, {}, x)[0]
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-9)
    right = (logits.argmax(1) == y)[y != -100].double().mean().item()
    assert metrics["accuracy"] == pytest.approx(right, rel=1e-6)


def test_accumulation_hands_the_statistics_on_and_draws_anew_for_each_part(accumulating):
    keys, (x, y) = [], examples(8)

    def objective(params, state, x, y, *, key):
        keys.append(int(key))
        return classification_loss(params, state, x, y, apply=MODELS["cnn"].apply, key=key)

    ts = start("cnn")
    after, _ = accumulating(ts, x, y, objective=objective, optimizer=adamw(lr=0.0), key=key(3), parts=2)
    state = ts.state
    for half in x.chunk(2):
        _, state = MODELS["cnn"].apply(ts.params, state, half, train=True)
    assert_close(after.state, state)
    accumulating(after, x, y, objective=objective, optimizer=adamw(lr=0.0), key=key(3), parts=2)
    assert keys == [int(fold_in(fold_in(key(3), step), part)) for step in (0, 1) for part in (0, 1)]


@each_model
def test_mixed_precision_multiplies_in_bf16_and_keeps_the_rest_in_float32(train_step, name):
    params, state = MODELS[name].init(generator(0))
    ts, (x, y), seen = TrainState(params, state, sgd_init(params)), examples(64), []
    x = x.float()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._schema.name in ("aten::convolution", "aten::mm", "aten::bmm", "aten::addmm"):
                seen.append({a.dtype for a in args if isinstance(a, Tensor)})
            return func(*args, **(kwargs or {}))

    results = {}
    for precision, apply in (
        ("fp32", MODELS[name].apply),
        ("bf16", mixed_precision(MODELS[name].apply, torch.bfloat16)),
    ):
        seen.clear()
        with Watch():
            objective = partial(classification_loss, apply=apply)
            results[precision] = train_step(ts, x, y, objective=objective, optimizer=sgd(lr=1.0), key=key(0))
        assert seen
        assert all(dtypes == {torch.bfloat16 if precision == "bf16" else torch.float32} for dtypes in seen)
    (after, metrics), (after_, metrics_) = results.values()
    tree.map(lambda a, b: torch.testing.assert_close(a, b, rtol=0.05, atol=0.05), after.params, after_.params)
    assert all(x.dtype == torch.float32 for x in tree.leaves(after_.params))
    assert float(metrics_["loss"]) == pytest.approx(float(metrics["loss"]), rel=0.02)
    assert float(metrics_["loss"]) != float(metrics["loss"])


@pytest.mark.parametrize("make", [mlp, cnn])
def test_dropout_is_for_training_only_and_follows_the_key(make):
    model, x = make(SHAPE, CLASSES, dropout_p=0.5), examples(9).images.float()
    params, state = model.init(generator(0))
    apply = lambda **options: model.apply(params, state, x, **options)[0]  # noqa: E731
    assert torch.equal(apply(train=False), make(SHAPE, CLASSES).apply(params, state, x, train=False)[0])
    assert torch.equal(apply(train=True, key=key(1)), apply(train=True, key=key(1)))
    assert not torch.equal(apply(train=True, key=key(1)), apply(train=True, key=key(2)))
    with pytest.raises(ValueError, match="dropout: training needs a key"):
        apply(train=True)


def test_the_layers_of_a_perceptron_drop_different_units():
    model = mlp((4,), 4, hidden=(64, 64), dropout_p=0.5)
    eye = {"weight": torch.eye(64), "bias": torch.zeros(64)}
    params = {"fc1": {"weight": torch.ones(64, 4), "bias": torch.zeros(64)}, "fc2": eye, "fc3": eye}
    kept, _ = model.apply(params, {}, torch.ones(1, 4), train=True, key=key(0))
    assert set(kept.unique().tolist()) == {0.0, 16.0}
    assert 4 <= int((kept > 0).sum()) <= 28, "two independent halvings of 64 leave 16 ± 3.5; one mask twice leaves 32"


@each_model
@pytest.mark.parametrize("batch_size", [1, 10, 23, 100])
def test_evaluation_weights_a_short_last_batch_and_changes_nothing(step_of, eval_one_epoch, name, batch_size):
    ts, split = step_of(name)(start(name), *examples(6), key=key(0))[0], examples(23, seed=1)
    before = copy(ts)
    metrics = eval_one_epoch(
        ts.params, ts.state, batches(split, batch_size), apply=MODELS[name].apply, metrics=ACCURACY
    )
    logits = functional_call(classic(name).eval(), tree.flatten(ts.params) | tree.flatten(ts.state), split.images)
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-9)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(1) == split.labels).double().mean().item(), rel=1e-6)
    assert_close(ts._asdict(), before._asdict())


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_records_no_graph_and_leaves_the_mode_as_it_was(eval_one_epoch, mode):
    seen, ts = [], start("mlp")

    def apply(*args, **options):
        seen.append(torch.is_grad_enabled())
        return MODELS["mlp"].apply(*args, **options)

    with torch.set_grad_enabled(mode):
        eval_one_epoch(ts.params, ts.state, batches(examples(9), 5), apply=apply)
        assert torch.is_grad_enabled() == mode
    assert seen == [False, False]


def test_batch_norm_learns_its_statistics_in_training_only():
    ts, x = start("cnn"), examples(6).images
    _, trained = MODELS["cnn"].apply(ts.params, ts.state, x, train=True)
    _, evaluated = MODELS["cnn"].apply(ts.params, ts.state, x, train=False)
    assert_close(evaluated, ts.state)
    assert not any(map(torch.equal, tree.leaves(trained), tree.leaves(ts.state)))


def test_backward_by_hand(two_layer_grads):
    split = examples(9)
    params, x = start("mlp").params, split.images.flatten(1)
    loss = lambda p: classification_loss(p, {}, x, split.labels, apply=MODELS["mlp"].apply)[0]  # noqa: E731
    assert_close(two_layer_grads(params, x, split.labels), grad(loss)(params))
