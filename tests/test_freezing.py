"""Frozen parameters stay to the bit, trained ones move, and everything else is as without freezing."""

from functools import partial

import pytest
import torch
from torch import Tensor

from fn import tree
from fn.data.datasets import Split
from fn.data.loader import batches
from fn.jit import jit
from fn.layers import norm_modes
from fn.models import Model
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.models.resnet import resnet, resnet_apply, resnet_features, resnet_init, resnet_network
from fn.optim import adamw, lr_by_prefix, sgd
from fn.rng import generator
from fn.train import TrainState, classifier_step, init_train_state, run_key
from fn.transfer import (
    attach_head,
    head_apply,
    head_init,
    start_from,
    trained_modes,
    transfer_apply,
    unfreeze,
)
from fn.tree import Params

CLASSES, SHAPE, WIDTHS, CELLS = 5, (2, 8, 8), (4, 6), 2


def transfer_init(rng: torch.Generator) -> tuple[Params, Params]:
    backbone = resnet(SHAPE, CLASSES, widths=WIDTHS).init(rng)
    return attach_head(backbone, head_init(rng, WIDTHS[-1], CLASSES, cells=CELLS))


FEATURES = partial(resnet_features, **resnet_network(8, stages=len(WIDTHS)))
TRANSFER = Model(transfer_init, partial(transfer_apply, features=FEATURES, cells=CELLS, dropout_p=0.3))
OPTIMIZER = adamw(lr=1e-2)


def examples(n: int = 24) -> Split:
    rng = generator(7)
    return Split(torch.randn(n, *SHAPE, generator=rng), torch.randint(CLASSES, (n,), generator=rng))


def train(model: Model, split: Split, epochs: int = 1, seed: int = 0) -> TrainState:
    ts, step = init_train_state(model, OPTIMIZER, seed=seed), classifier_step(model, OPTIMIZER)
    for epoch in range(epochs):
        for x, y in batches(split, 8, seed=seed, epoch=epoch):
            ts, _ = step(ts, x, y, key=run_key(seed))
    return ts


def trained(model: Model) -> tuple[TrainState, TrainState]:
    """Return (before, after)"""
    return init_train_state(model, OPTIMIZER, seed=0), train(model, examples())


def leaves(ts: TrainState) -> dict[str, Tensor]:
    """Of a frozen model: parameters and statistics by name."""
    params, state = unfreeze(ts.params, ts.state)
    return tree.flatten({"params": params, "state": state})


PREFIXES = [
    ["head"],
    ["head", "backbone.layer2"],
    ["backbone.layer1", "head.fc.bias"],
    ["backbone.bn1", "head"],
    ["backbone", "head"],
]
each_choice = pytest.mark.parametrize("prefixes", PREFIXES, ids=" ".join)


@each_choice
def test_frozen_leaves_stay_and_trained_ones_move(freeze, prefixes):
    before, after = (leaves(ts) for ts in trained(freeze(TRANSFER, prefixes)))
    assert (
        before.keys()
        == after.keys()
        == tree.flatten(dict(zip(("params", "state"), TRANSFER.init(generator(0)), strict=True))).keys()
    )
    for name, old in before.items():
        part, _, inner = name.partition(".")
        branch = inner if part == "params" else inner.rpartition(".")[0]
        chosen = any(
            tree.below(branch, prefix) or (part == "state" and tree.below(prefix, branch)) for prefix in prefixes
        )
        unused = branch == "backbone.fc.bias"  # no gradient, and as it is zero, no decay
        assert torch.equal(old, after[name]) == (unused or not chosen), f"{name} {'stayed' if chosen else 'moved'}"


def test_frozen_statistics_move_when_asked_to(freeze):
    before, after = (leaves(ts) for ts in trained(freeze(TRANSFER, ["head"], keep_statistics=False)))
    for name, old in before.items():
        if not name.startswith("params.head"):
            assert torch.equal(old, after[name]) == name.startswith("params"), name


def test_a_state_without_batch_norm_needs_no_modes(freeze):
    """A running mean of the output, say: a tensor at the top, of a model whose `apply` takes no `modes`."""
    bare = mlp(SHAPE, CLASSES)

    def apply(params, state, x, *, train, key=None):
        logits, _ = bare.apply(params, {}, x, train=train, key=key)
        return logits, {"ema": 0.9 * state["ema"] + 0.1 * logits.detach().mean()}

    model = freeze(bare._replace(init=lambda rng: (bare.init(rng)[0], {"ema": torch.zeros(())}), apply=apply), ["fc2"])
    _, after = trained(model)
    assert after.state["state"]["ema"] != 0


def test_frozen_batch_norm_normalises_with_its_running_statistics():
    """In training the features under a frozen backbone are those of evaluation; under one that is not, they are not."""
    (x, _), (params, state) = examples(), TRANSFER.init(generator(0))
    params["backbone"]["layer1"]["0"]["bn1"]["weight"] += 1.0
    expected, _ = FEATURES(params["backbone"], state["backbone"], x, train=False)
    modes = trained_modes(state["backbone"], {})
    kept, same = FEATURES(params["backbone"], state["backbone"], x, train=True, modes=modes)
    assert torch.equal(kept, expected)
    assert all(a is b for a, b in zip(tree.leaves(same), tree.leaves(state["backbone"]), strict=True))
    moved, _ = FEATURES(params["backbone"], state["backbone"], x, train=True)
    assert not torch.allclose(moved, expected)
    assert norm_modes(state["backbone"], True) == trained_modes(state["backbone"], params["backbone"])


@each_choice
def test_the_optimizer_holds_nothing_for_frozen_leaves(freeze, prefixes):
    _, after = trained(freeze(TRANSFER, prefixes))
    names = tree.flatten(TRANSFER.init(generator(0))[0]).keys()
    wanted = {name for name in names if any(tree.below(name, prefix) for prefix in prefixes)}
    for moments in ("mean", "square"):
        assert tree.flatten(after.opt_state[moments]).keys() == wanted


def test_the_gradient_is_that_of_the_whole_at_the_trained_leaves(freeze):
    model, (x, y) = freeze(TRANSFER, ["head", "backbone.layer2"], keep_statistics=False), examples()
    after, expected = (
        classifier_step(m, sgd(lr=1.0))(init_train_state(m, sgd(lr=1.0), seed=0), x, y, key=run_key(0))[0]
        for m in (model, TRANSFER)
    )
    flat = tree.flatten(expected.params)
    for name, leaf in tree.flatten(after.params).items():
        torch.testing.assert_close(leaf, flat[name], msg=name)


@pytest.mark.parametrize("model", [mlp(SHAPE, CLASSES), cnn(SHAPE, CLASSES, widths=(3, 4))], ids=["mlp", "cnn"])
def test_every_family_can_be_frozen(freeze, model):
    before, after = trained(freeze(model, [next(iter(model.init(generator(0))[0]))]))
    assert all(
        torch.equal(a, b) for a, b in zip(*(tree.leaves(ts.state["frozen"]) for ts in (before, after)), strict=True)
    )
    assert not any(torch.equal(a, b) for a, b in zip(*(tree.leaves(ts.params) for ts in (before, after)), strict=True))


@pytest.mark.slow
def test_a_frozen_model_compiles_to_the_same_step(freeze):
    model, (x, y) = freeze(cnn(SHAPE, CLASSES, widths=(3,)), ["fc"]), examples(8)
    ts, step = init_train_state(model, OPTIMIZER, seed=0), classifier_step(model, OPTIMIZER)
    expected, _ = step(ts, x, y, key=run_key(0))
    found, _ = jit(step)(ts, x, y, key=run_key(0))
    for name, leaf in leaves(found).items():
        torch.testing.assert_close(leaf, leaves(expected)[name], msg=name)


def test_a_prefix_that_matches_nothing_lists_the_nearest(freeze):
    with pytest.raises(ValueError, match=r"'backbone\.layer3'; the nearest are 'backbone\.layer[12]'"):
        freeze(TRANSFER, ["head", "backbone.layer3"]).init(generator(0))


# Rates by prefix.


def random_like(params: Params, seed: int) -> Params:
    rng = generator(seed)
    return tree.map(lambda p: torch.randn(p.shape, generator=rng), params)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_each_part_is_updated_at_its_own_rate(optimizer):
    """As it would be on its own; the longest prefix counts, and the moments do not know of rates."""
    params, _ = TRANSFER.init(generator(0))
    scales = {"backbone": 0.1, "backbone.layer2": 0.5}
    scaled = lr_by_prefix(optimizer, lr=0.3, scales=scales)
    whole = {factor: optimizer(lr=0.3 * factor) for factor in (0.1, 0.5, 1.0)}
    new, state = params, scaled.init(params)
    alone = {factor: (params, whole[factor].init(params)) for factor in whole}
    for seed in range(3):
        grads = random_like(params, seed)
        new, state = scaled.update(new, grads, state)
        alone = {factor: whole[factor].update(alone[factor][0], grads, alone[factor][1]) for factor in whole}
    for name, leaf in tree.flatten(new).items():
        factor = 0.5 if name.startswith("backbone.layer2.") else 0.1 if name.startswith("backbone.") else 1.0
        assert torch.equal(leaf, tree.flatten(alone[factor][0])[name]), name
    whole_state = tree.flatten(alone[1.0][1])
    held = [(name, leaf) for group in state["groups"].values() for name, leaf in tree.flatten(group).items()]
    for name, leaf in held:
        assert torch.equal(leaf, whole_state[name]), name
    assert {name for name, _ in held} == whole_state.keys()
    assert int(state["step"]) == 3


def test_a_rate_of_nothing_is_refused():
    params, _ = TRANSFER.init(generator(0))
    with pytest.raises(ValueError, match="nothing lies at or below 'backbon'; the nearest are 'backbone'"):
        lr_by_prefix(sgd, lr=0.1, scales={"backbon": 0.1}).init(params)


def test_a_prefix_that_matches_nothing_is_refused(freeze):
    with pytest.raises(ValueError, match="nothing lies at or below 'backbon'"):
        freeze(TRANSFER, ["head", "backbon"]).init(generator(0))


def test_the_norm_of_a_projection_is_frozen_by_itself(freeze):
    """Of a block that has one, only the second norm trains."""
    drawn = resnet_init(generator(0), 2, 5, blocks=(1, 1), widths=(4, 6))
    model = freeze(start_from(Model(resnet_init, partial(resnet_apply, blocks=(1, 1))), *drawn), ["layer2.0.bn2"])
    params, state = model.init(generator(0))
    _, after = model.apply(params, state, torch.randn(3, 2, 32, 32, generator=generator(1)), train=True)
    old, new = tree.flatten(state["state"]), tree.flatten(after["state"])
    moved = {name.rpartition(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert "layer2.0.downsample.1" in {name.rpartition(".")[0] for name in old}
    assert moved == {"layer2.0.bn2"}


# The head.


def test_the_head_is_pool_norm_dropout_linear():
    params, state = head_init(generator(0), 6, CLASSES, cells=CELLS)
    params["norm"] = random_like(params["norm"], 1)
    x = torch.randn(9, 6, 4, 4, generator=generator(2))
    reference = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(CELLS), torch.nn.Flatten(), torch.nn.BatchNorm1d(24), torch.nn.Linear(24, CLASSES)
    )
    flat = {f"2.{k}": v for k, v in (params["norm"] | state["norm"]).items()} | {
        f"3.{k}": v for k, v in params["fc"].items()
    }
    reference.load_state_dict(flat, strict=False)
    for train in (False, True):
        logits, _ = head_apply(params, state, x, train=train, cells=CELLS)
        torch.testing.assert_close(logits, reference.train(train)(x))
    torch.testing.assert_close(
        head_apply(params, state, x, train=True, cells=CELLS)[1]["norm"]["running_var"], reference[2].running_var
    )
    dropped, _ = head_apply(params, state, x, train=True, cells=CELLS, dropout_p=1.0, key=run_key(0))
    torch.testing.assert_close(dropped, params["fc"]["bias"].expand(9, CLASSES))


def test_cached_features_train_the_same_head(freeze):
    split, whole = examples(), freeze(TRANSFER, ["head"])
    params, state = TRANSFER.init(generator(3))
    features, _ = FEATURES(params["backbone"], state["backbone"], split.images, train=False)
    head = start_from(Model(head_init, partial(head_apply, cells=CELLS, dropout_p=0.3)), params["head"], state["head"])
    slow = train(whole, split, epochs=3, seed=3)
    fast = train(head, Split(features, split.labels), epochs=3, seed=3)
    tree.map(partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5), fast.params, slow.params["head"])
    tree.map(partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5), fast.state, slow.state["state"]["head"])
