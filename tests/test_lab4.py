"""Lab 4 from end to end, its weights, its downloads, and what it refuses."""

import math
import urllib.error
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from experiments import lab4_pretrained
from experiments.lab4_pretrained import Config, Task, Trained, load_task, train_way
from experiments.lab_helpers.lab4 import transfer_report
from experiments.lab_helpers.lab4.transfer_report import compare_ways, misread_first
from experiments.lab_helpers.lab4.transfer_task import Recipe, apply_flags
from experiments.shared import cli
from experiments.shared.backbones import SHIPPED, load
from fn import pretrained, tree
from fn.backbones import BACKBONES, expand_prefixes, extract_features, transfer_model
from fn.data.datasets import take
from fn.models.squeezenet import FIRES, POOLED
from fn.pretrained import PretrainedError, read
from fn.rng import generator
from fn.train import run_key
from fn.transfer import attach_head, batch_size_of, branches, few_per_class, freeze, moved_leaves, wrongly_moved

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _private_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FN_DATA", str(tmp_path / "data"))


def photographs(root: Path, classes: tuple[str, ...] = ("ants", "bees"), each: int = 5) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = torch.randint(256, (8, 9, 3), generator=generator(i), dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / name / f"{i}.png")
    return root


@pytest.mark.slow
def test_the_lab_holds(monkeypatch, tmp_path):
    """With fewer seeds and points of the curve, and whatever the machine makes of the times: see the count below."""
    recipe = lab4_pretrained.RECIPES["digits"]._replace(shots={10: 3, 3: 1})
    monkeypatch.setitem(lab4_pretrained.RECIPES, "digits", recipe)
    checks = lab4_pretrained.main(Config(out=tmp_path), CPU)
    assert {check.name for check in checks if not check.ok} <= {"cached features: how many times faster"}
    for name in ("growth.png", "mistakes.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("L").getcolors(256) or []) > 2


def test_the_shipped_weights_are_small_and_fit():
    assert SHIPPED.stat().st_size <= 2_000_000
    params, state = load("resnet8", "", cut_off=BACKBONES["resnet8"].dropped)
    assert params.keys() == state.keys() | {"conv1"} == {"conv1", "bn1", "layer1", "layer2"}


def test_labelled_images_are_few_of_each_class():
    labels = setup(Config())[0].dataset.train.labels
    index = few_per_class(labels, 10, 10, seed=3)
    assert labels[index].bincount().tolist() == [10] * 10
    assert not torch.equal(index, few_per_class(labels, 10, 10, seed=4))
    assert sorted(few_per_class(labels, 10, None, seed=3).tolist()) == list(range(len(labels)))


def test_accuracy_is_measured_on_all_images_that_are_not_labelled(monkeypatch):
    task, recipe = small_task(epochs=0)
    seen = []

    def evaluate(params, state, batches, *, apply):
        seen.append(torch.cat([x for x, _ in batches]))
        return {"accuracy": 0.0}

    monkeypatch.setattr(lab4_pretrained, "eval_one_epoch", evaluate)
    three_ways(task, recipe)
    few = few_per_class(task.dataset.train.labels, 10, 3, seed=0).tolist()
    others = [i for i in range(len(task.labels)) if i not in few]
    for x, inputs in zip(seen, (task.images, task.features, task.images), strict=True):
        assert torch.equal(x, inputs[others])


def setup(config: Config) -> tuple[Task, Recipe]:
    """Return the task and the recipe that the flags ask for."""
    recipe = apply_flags(lab4_pretrained.RECIPES[config.dataset], config)
    return load_task(config, recipe, CPU), recipe


@cache
def digits_task() -> tuple[Task, Recipe]:
    return setup(Config())


def small_task(*, epochs: int = 1, config: Config | None = None, fine: Mapping[str, Any] = {}) -> tuple[Task, Recipe]:
    """Return the digits, with `epochs` of each way, and other changes to fine-tuning."""
    task, recipe = setup(config) if config else digits_task()
    ways = {name: way._replace(epochs=epochs) for name, way in recipe.ways.items()}
    return task, recipe._replace(ways=ways | {"fine": ways["fine"]._replace(**fine)})


def few_alone(model, inputs, labels, few, *args):
    """train_way, which does nothing for the training on all images."""
    return Trained({}, {}, 0.0) if len(few) > 1000 else train_way(model, inputs, labels, few, *args)


def three_ways(task: Task, recipe: Recipe) -> dict[str, Trained]:
    """Return what the lab trains on three images of each class with its first seed; no checks, no pictures."""
    runs: dict[int, list[dict[str, Trained]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab4_pretrained, "apply_flags", lambda *_: recipe._replace(shots={3: 1}))
        patch.setattr(lab4_pretrained, "load_task", lambda *_: task)
        patch.setattr(lab4_pretrained, "extract_features", lambda *_: task.features)
        patch.setattr(lab4_pretrained, "train_way", few_alone)
        patch.setattr(transfer_report, "check_cached", lambda *_: [])
        patch.setattr(lab4_pretrained, "report", lambda *args: runs.update(args[-1]) or [])
        lab4_pretrained.main(Config(), CPU)
    return runs[3][0]


def before_and_after(task: Task, trained: dict[str, Trained]) -> tuple[tree.Params, tree.Params]:
    """Return all leaves before fine-tuning and after, parameters and statistics."""
    head, fine = trained["head"], trained["fine"]
    before = attach_head(task.weights, (head.params, head.state))
    return tree.merge(*before), tree.merge(fine.params, fine.state)


def test_each_way_sets_out_from_what_the_one_before_has_learnt():
    task, recipe = small_task(fine={"epochs": 0})
    trained = three_ways(task, recipe)
    assert moved_leaves(*before_and_after(task, trained)) == []
    assert trained["fine"].accuracy == trained["head"].accuracy
    scratch = three_ways(*small_task(epochs=0))["scratch"]
    assert not torch.equal(scratch.params["backbone"]["conv1"]["weight"], task.weights[0]["conv1"]["weight"])


@pytest.mark.parametrize(
    ("train", "moves"),
    [
        (("head",), ["head"]),
        (("last",), ["head", "backbone.layer2"]),
        (("backbone.layer1.0.bn1.bias", "head.fc"), ["backbone.layer1.0.bn1.bias", "head.fc"]),
    ],
)
def test_fine_tuning_moves_what_it_is_told_to(train, moves):
    task, recipe = small_task(config=Config(train=train))
    assert wrongly_moved(*before_and_after(task, three_ways(task, recipe)), moves) == []


def test_fine_tuning_has_the_rates_it_is_given():
    """A rate of 0 keeps a parameter, though not a statistic."""
    task, recipe = small_task(fine={"lr_scales": {"backbone": 0.0, "backbone.bn1": 1.0}})
    trained = three_ways(task, recipe)
    before, _ = attach_head(task.weights, (trained["head"].params, trained["head"].state))
    assert wrongly_moved(before, trained["fine"].params, ["head", "backbone.bn1"]) == []


def test_what_moved_and_should_not_is_named_and_the_other_way():
    a, b, c = torch.zeros(2), torch.ones(2), torch.zeros(2)
    before = {"x": {"weight": a, "bias": a, "running_mean": a}, "y": {"weight": a, "running_mean": a}}
    after = {"x": {"weight": b, "bias": c, "running_mean": c}, "y": {"weight": b, "running_mean": b}}
    assert moved_leaves(before, after) == ["x.weight", "y.weight", "y.running_mean"]
    assert wrongly_moved(before, after, ["x"]) == ["y.weight", "y.running_mean", "x.bias", "x.running_mean"]
    assert wrongly_moved(before, after, ["x.weight", "y.weight"]) == ["x.running_mean"]
    assert wrongly_moved(before, after, ["y"]) == ["x.weight"]


@pytest.mark.parametrize("share", [1 / 4, 1 / 8])
def test_no_batch_is_of_one_example_whose_batch_norm_has_no_variance(share):
    sizes = {n: batch_size_of(n, share) for n in range(2, 300)}
    assert [n for n, size in sizes.items() if size < 2 or n % size == 1] == []
    assert max(abs(size - n * share) for n, size in sizes.items()) < 4
    assert (batch_size_of(100, 1 / 4), batch_size_of(243, 1 / 8)) == (25, 30)


def test_only_fine_tuning_varies_the_images():
    seen = []
    task, recipe = small_task(fine={"epochs": 2, "augment": lambda x, key: seen.append(len(x)) or x})
    three_ways(task, recipe)
    assert sum(seen) == 2 * 30


def test_dropout_is_the_recipes_in_training_and_off_after(monkeypatch):
    recipe = lab4_pretrained.RECIPES["digits"]._replace(dropout_p=1.0)
    monkeypatch.setitem(lab4_pretrained.RECIPES, "digits", recipe)
    task, _ = setup(Config())
    images, features = task.images, task.features
    ways = {"scratch": (task.scratch, images), "head": (task.head, features), "fine": (task.whole, images)}
    for way, (model, inputs) in ways.items():
        params, state = model.init(generator(0))
        dropped, _ = model.apply(params, state, inputs[:8], train=True, key=run_key(0))
        bias = params.get("head", params)["fc"]["bias"]
        torch.testing.assert_close(dropped, bias.expand_as(dropped), msg=way)
        assert model.apply(params, state, inputs[:8], train=False)[0].std(dim=0).min() > 0, way


def test_features_are_those_of_evaluation():
    """The head sees the features that the backbone gives one image at a time, whatever its neighbours."""
    task, _ = setup(Config())
    for part in (slice(3), slice(-3, None)):
        each = torch.cat([task.spec.features(*task.weights, x[None], train=False)[0] for x in task.images[part]])
        pooled = torch.nn.functional.adaptive_avg_pool2d(each, task.spec.cells)
        torch.testing.assert_close(task.features[part], pooled)


def test_a_backbone_that_trains_unasked_fails_the_checks(monkeypatch):
    monkeypatch.setattr(lab4_pretrained, "freeze", lambda model, trained: freeze(model, ["head", "backbone"]))
    task, recipe = small_task()
    task = task._replace(dataset=task.dataset._replace(train=take(task.dataset.train, 96)))
    monkeypatch.setattr(lab4_pretrained, "eval_one_epoch", lambda *_, **__: {"accuracy": 0.0})
    monkeypatch.setattr(lab4_pretrained, "apply_flags", lambda *_: recipe._replace(shots={}, timed_epochs=1))
    monkeypatch.setattr(lab4_pretrained, "load_task", lambda *_: task)
    monkeypatch.setattr(lab4_pretrained, "report", lambda *_: [])
    moved, held, gap, faster = lab4_pretrained.main(Config(), CPU)
    assert [moved.ok, held.ok, gap.ok] == [False] * 3
    assert (gap.target, faster.name, faster.target) == ("<= 0.001", "cached features: how many times faster", ">= 2")


def test_what_is_misread_comes_first_and_the_least_likely_of_it():
    p = torch.tensor([[0.9, 0.1, 0.0], [0.45, 0.4, 0.15], [0.4, 0.3, 0.3], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]])
    order, mistakes = misread_first(p, torch.tensor([0, 1, 0, 2, 0]))
    assert mistakes == 2
    assert order.tolist() == [4, 1, 2, 3, 0]


def test_a_way_that_is_worse_fails_whatever_its_size():
    """A gain counts with its sign, seed by seed, and in spreads."""
    task, _ = small_task()

    def passed(gains: list[float]) -> list[bool]:
        accuracies = {"scratch": [0.1] * len(gains), "head": [0.5 + 0.01 * i for i in range(len(gains))]}
        accuracies["fine"] = [0.5 + 0.01 * i + gain for i, gain in enumerate(gains)]
        return [check.ok for check in compare_ways(Config(), task.dataset, 10, accuracies)][2:]

    assert passed([0.1, 0.11, 0.12]) == [True, True]
    assert passed([0.1, 0.0, -0.05]) == [True, False]
    assert passed([-0.1, -0.11, -0.12]) == [False, False]


def test_accuracies_are_those_of_each_seed(monkeypatch):
    monkeypatch.setattr(transfer_report, "check_moved", lambda *_: None)
    monkeypatch.setattr(transfer_report, "report", lambda *args: [args[-1]])
    runs = [{"head": Trained({}, {}, a), "fine": Trained({}, {}, a + 1)} for a in (0.0, 1.0)]
    _, accuracies = lab4_pretrained.report(Config(), digits_task()[0], [], {10: runs})
    assert accuracies == {10: {"head": [0.0, 1.0], "fine": [1.0, 2.0]}}


def test_on_cached_features_the_head_takes_less_arithmetic():
    """The lab measures this as time: of three epochs two forward passes of the backbone are saved."""
    task, recipe = small_task()
    few, way = torch.arange(32), recipe.ways["head"]._replace(epochs=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab4_pretrained, "eval_one_epoch", lambda *_, **__: {"accuracy": 0.0})
        with FlopCounterMode(display=False) as of_backbone:
            features = extract_features(task.spec, *task.weights, task.images[:32])
        with FlopCounterMode(display=False) as under:
            train_way(freeze(task.whole, ["head"]), task.images[:32], task.labels[:32], few, way, 32, 0)
        with FlopCounterMode(display=False) as alone:
            train_way(task.head, features, task.labels[:32], few, way, 32, 0)
    backbone, images, head = (counter.get_total_flops() for counter in (of_backbone, under, alone))
    assert images == 3 * backbone + head
    assert images > 2 * (backbone + head)


@pytest.mark.parametrize(("faster", "ok"), [(2.0, True), (1.9, False), (math.nan, False)])
def test_cached_features_have_to_be_twice_as_fast(faster, ok):
    head = {"fc": {"weight": torch.ones(2)}}
    before = {"head": {"fc": {"weight": torch.zeros(2)}}}, {}
    under = {"head": head}, {"frozen": {}, "state": {}}
    assert [check.ok for check in transfer_report.check_cached(before, under, head, faster)] == [True] * 3 + [ok]


def test_how_much_faster_is_a_ratio_of_medians():
    """One pair that met a busy machine changes nothing."""
    assert transfer_report.show_speed(30, 100, [(6.0, 2.0), (60.0, 2.0), (5.0, 50.0)]) == 3.0


def test_of_photographs_the_head_has_its_target_and_fine_tuning_is_to_gain():
    task, _ = small_task()
    config = Config(dataset="folder", target_accuracy=0.88)

    def checked(*accuracies: tuple[float, float]) -> list[tuple[str, str, bool]]:
        head, fine = zip(*accuracies, strict=True)
        checks = compare_ways(config, task.dataset, None, {"head": head, "fine": fine})
        return [(check.name, check.target, check.ok) for check in checks]

    claims = ("head: accuracy", ">= 0.88"), ("fine − head: accuracy", "> 0")
    assert checked((0.87, 0.9), (0.9, 0.91)) == [(*claim, True) for claim in claims]
    assert [ok for *_, ok in checked((0.87, 0.9), (0.88, 0.9))] == [False, True]
    assert [ok for *_, ok in checked((0.9, 0.91), (0.9, 0.89))] == [True, False]
    config = replace(config, target_accuracy=None)
    assert checked((0.87, 0.9), (0.9, 0.91)) == [(*claims[1], True)]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_gives_its_features_to_the_head(name):
    spec = BACKBONES[name]
    model = transfer_model(spec, 3, weights=None)
    params, state = model.init(generator(0))
    logits, _ = model.apply(params, state, torch.zeros(2, spec.shape[0], 64, 64), train=False)
    assert logits.shape == (2, 3)
    for train in ("head", "last", "all"):
        chosen, frozen = tree.split(params, expand_prefixes(spec, [train]))
        assert (tree.size(frozen) == 0) == (train == "all")
        shown = list(branches(params, frozen))
        assert sum(size for _, size, held in shown if not held) == tree.size(chosen)
        assert sum(size for _, size, held in shown if held) == tree.size(frozen)


def test_the_last_stage_of_squeezenet_is_what_follows_its_last_pooling():
    params, _ = transfer_model(BACKBONES["squeezenet1_1"], 2, weights=None).init(generator(0))
    trained, _ = tree.split(params, expand_prefixes(BACKBONES["squeezenet1_1"], ["last"]))
    after = [name for name in FIRES if int(name) >= int(POOLED[-1])]
    assert list(trained["backbone"]["features"]) == after
    assert trained.keys() == {"backbone", "head"}


def refused(config: Config) -> str:
    with pytest.raises(cli.UsageError) as refusal:
        setup(config)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "resnet34.pth"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    said = refused(Config(backbone="resnet18", weights=str(path), dataset="folder", root=photographs(tmp_path / "p")))
    assert said.startswith(f"--weights {path} are not of --backbone resnet18: layer1.2.bn1.bias [64] has no place")


def test_a_truncated_file_is_refused(tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(SHIPPED.read_bytes()[:100_000])
    assert refused(Config(weights=str(cut))).startswith(f"{cut} is not a whole safetensors file")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"train": ("head", "backbone.layr2")},
            "--train: nothing lies at or below 'backbone.layr2'; the nearest are 'backbone.layer2'",
        ),
        (
            {"train": ("head",), "lr_scales": {"backbone": 0.1}},
            "--lr-scales: nothing lies at or below 'backbone'; the nearest are '",
        ),
        ({"train": ()}, "--train names nothing: it takes head"),
        ({"train": ("head", "")}, "--train names nothing: it takes head"),
        ({"lr_scales": {"backbone": math.nan}}, "--lr-scales backbone nan: a factor of the learning rate is"),
        ({"lr_scales": {"head": 0.0}}, "--lr-scales head 0.0: a factor of the learning rate is"),
        ({"lr_scales": {"head": 1.0, "backbone": -1.0}}, "--lr-scales backbone -1.0: a factor of the learning rate is"),
        ({"weights": "imagenet"}, "--weights imagenet: there are none of resnet8"),
        ({"weights": "nowhere.pth"}, "nowhere.pth cannot be read (No such file or directory)"),
        ({"backbone": "resnet18"}, "--backbone resnet18 does not suit --dataset digits"),
        ({"dataset": "folder", "root": Path("x")}, "--backbone resnet8 does not suit --dataset folder"),
        ({"dataset": "folder", "backbone": "resnet18"}, "--dataset folder and --root PATH"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(options, complaint):
    assert complaint in refused(Config(**options))


@pytest.fixture
def squeezenet(tmp_path) -> str:
    path = tmp_path / "squeezenet.safetensors"
    save_file(torchvision.models.squeezenet1_1().state_dict(), path)
    return str(path)


def test_a_folder_that_is_no_good_is_refused(tmp_path, squeezenet):
    options = {"backbone": "squeezenet1_1", "weights": squeezenet, "dataset": "folder"}
    one = photographs(tmp_path / "one", ("ants",))
    assert f"{one} has one directory, ants" in refused(Config(**options, root=one))
    broken = photographs(tmp_path / "broken")
    (broken / "bees" / "3.png").write_text("buzz")
    assert f"{broken / 'bees' / '3.png'} cannot be read as an image" in refused(Config(**options, root=broken))
    texts = tmp_path / "texts"
    for name in ("ants", "bees"):
        (texts / name).mkdir(parents=True)
        (texts / name / "notes.txt").write_text("buzz")
    assert f"{texts / 'ants'} holds no image, but 1 file (1 .txt)" in refused(Config(**options, root=texts))


def test_photographs_are_seen_as_the_weights_expect(tmp_path, squeezenet):
    data = photographs(tmp_path / "p")
    config = Config(backbone="squeezenet1_1", weights=squeezenet, dataset="folder", root=data, train=("last",))
    expected = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    for image, index in ((Image.new("RGB", (300, 300)), 0), (Image.new("RGB", (300, 300), "white"), 1)):
        image.save(data / ("ants", "bees")[index] / "0.png")
        task, _ = setup(config)
        torch.testing.assert_close(task.dataset.train.images[4 * index], expected(image))


def test_the_head_of_photographs_learns_faster_unless_something_else_is_asked_for(tmp_path, squeezenet):
    config = Config(backbone="squeezenet1_1", weights=squeezenet, dataset="folder", root=photographs(tmp_path / "p"))

    def lr_scales(**changes: Any) -> Mapping[str, float]:
        return setup(replace(config, **changes))[1].ways["fine"].lr_scales

    assert lr_scales() == {"head": 10.0}
    assert lr_scales(train=("last",)) == {}
    assert lr_scales(lr_scales={"backbone": 0.5}) == {"backbone": 0.5}


# Downloads, from a file:// in place of the network.


@pytest.fixture
def published(monkeypatch, tmp_path) -> Path:
    """Return what torchvision's registry points to for squeezenet1_1."""
    path = tmp_path / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), path)
    named = path.rename(tmp_path / f"squeezenet1_1-{sha256(path.read_bytes()).hexdigest()[:8]}.pth")
    entry = SimpleNamespace(url=named.as_uri())
    registry = type("Registry", (list,), {"DEFAULT": entry})([entry])
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda name: registry)
    return named


def test_weights_are_downloaded_once(published, tmp_path):
    path = pretrained.download("squeezenet1_1", tmp_path / "data" / "weights")
    assert path == tmp_path / "data" / "weights" / published.name
    assert read(path).keys() == torch.load(published, weights_only=True).keys()
    published.unlink()
    assert pretrained.download("squeezenet1_1", tmp_path / "data" / "weights") == path


def test_a_download_cut_off_is_not_kept(published, tmp_path):
    published.write_bytes(published.read_bytes()[:1000])
    with pytest.raises(PretrainedError, match=r"could not be downloaded \(invalid hash value [^\n]*: put file:"):
        pretrained.download("squeezenet1_1", tmp_path / "data")
    assert not list((tmp_path / "data").glob("*"))


def test_without_a_network_it_says_what_to_put_where(monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    said = refused(Config(backbone="resnet18", weights="imagenet", dataset="folder", root=tmp_path))
    assert said.startswith(
        f"the weights of resnet18 are not in {tmp_path}/data/weights/resnet18-f37072fd.pth and could"
    )
    assert said.endswith("put https://download.pytorch.org/models/resnet18-f37072fd.pth there")


def test_torchvision_names_every_backbone():
    for name in BACKBONES.keys() - {"resnet8"}:
        assert torchvision.models.get_model_weights(name)
