"""Lab 4 from end to end, its weights, its downloads, and what it refuses."""

import math
import urllib.error
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from experiments import cli, lab4_pretrained
from experiments.backbones import BACKBONES, SHIPPED, branches, load, prefixes, transfer
from experiments.lab4_pretrained import Config, setup
from experiments.transferring import labelled, unlabelled
from fn import pretrained, tree
from fn.pretrained import PretrainedError, read
from fn.rng import generator

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
    """With fewer seeds and points of the curve, and whatever the machine makes of the times."""
    monkeypatch.setitem(lab4_pretrained.RECIPES, "digits", lab4_pretrained.RECIPES["digits"]._replace(seeds=3))
    monkeypatch.setattr(lab4_pretrained, "SHOTS", {3: 1, 10: 3})
    checks = lab4_pretrained.main(Config(out=tmp_path), CPU)
    assert [check.name for check in checks if not check.ok and not check.name.endswith("times faster")] == []
    for name in ("growth.png", "mistakes.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("L").getcolors(256) or []) > 2


def test_the_shipped_weights_are_small_and_fit():
    assert SHIPPED.stat().st_size <= 2_000_000
    params, state = load("resnet8", "")
    assert params.keys() == state.keys() | {"conv1"} == {"conv1", "bn1", "layer1", "layer2"}


def test_labelled_images_are_few_of_each_class_and_no_others_are():
    task = setup(Config(), CPU)
    index = labelled(task, 10, seed=3)
    assert task.dataset.train.labels[index].bincount().tolist() == [10] * 10
    assert not torch.equal(index, labelled(task, 10, seed=4))
    free = unlabelled(task, index)
    assert int(free.sum()) == len(task.dataset.train.labels) - 100
    assert not free[index].any()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_gives_its_features_to_the_head(name):
    row = BACKBONES[name]
    model = transfer(row, 3, weights=None, dropout_p=0.0)
    params, state = model.init(generator(0))
    logits, _ = model.apply(params, state, torch.zeros(2, row.shape[0], 64, 64), train=False)
    assert logits.shape == (2, 3)
    for train in ("head", "last", "all"):
        chosen, frozen = tree.split(params, prefixes(row, [train]))
        assert (tree.size(frozen) == 0) == (train == "all")
        shown = list(branches(params, frozen))
        assert sum(size for _, size, still in shown if not still) == tree.size(chosen)
        assert sum(size for _, size, still in shown if still) == tree.size(frozen)


def refused(config: Config) -> str:
    with pytest.raises(cli.UsageError) as refusal:
        setup(config, CPU)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "resnet34.pth"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    said = refused(Config(backbone="resnet18", weights=str(path), dataset="folder", data=photographs(tmp_path / "p")))
    assert said.startswith(f"--weights {path} are not of --backbone resnet18: layer1.2.bn1.bias [64] has no place")


def test_a_head_of_the_wrong_width_is_refused(tmp_path):
    path = tmp_path / "ten.safetensors"
    save_file(torchvision.models.squeezenet1_1(num_classes=10).state_dict(), path)
    config = Config(backbone="squeezenet1_1", weights=str(path), dataset="folder", data=photographs(tmp_path / "p"))
    assert refused(config).endswith("--backbone squeezenet1_1: classifier.1.bias is [10], this model has [1000]")


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
            {"train": ("head",), "rates": {"backbone": 0.1}},
            "--rates: nothing lies at or below 'backbone'; the nearest are '",
        ),
        ({"train": ()}, "--train names nothing: it takes head"),
        ({"train": ("head", "")}, "--train names nothing: it takes head"),
        ({"rates": {"backbone": math.nan}}, "--rates backbone nan: a factor of the learning rate is"),
        ({"rates": {"head": 1.0, "backbone": -1.0}}, "--rates backbone -1.0: a factor of the learning rate is"),
        ({"weights": "imagenet"}, "--weights imagenet: there are none of resnet8"),
        ({"weights": "nowhere.pth"}, "nowhere.pth cannot be read (No such file or directory)"),
        ({"backbone": "resnet18"}, "--backbone resnet18 does not suit --dataset digits"),
        ({"dataset": "folder", "data": Path("x")}, "--backbone resnet8 does not suit --dataset folder"),
        ({"dataset": "folder", "backbone": "resnet18"}, "--dataset folder and --data PATH"),
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
    assert f"{one} has one directory, ants" in refused(Config(**options, data=one))
    broken = photographs(tmp_path / "broken")
    (broken / "bees" / "3.png").write_text("buzz")
    assert f"{broken / 'bees' / '3.png'} cannot be read as an image" in refused(Config(**options, data=broken))
    texts = tmp_path / "texts"
    for name in ("ants", "bees"):
        (texts / name).mkdir(parents=True)
        (texts / name / "notes.txt").write_text("buzz")
    assert f"{texts} is no directory of images per class" in refused(Config(**options, data=texts))


def test_photographs_are_seen_as_the_weights_expect(tmp_path, squeezenet):
    data = photographs(tmp_path / "p")
    config = Config(backbone="squeezenet1_1", weights=squeezenet, dataset="folder", data=data, train=("last",))
    theirs = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    for image, index in ((Image.new("RGB", (300, 300)), 0), (Image.new("RGB", (300, 300), "white"), 1)):
        image.save(data / ("ants", "bees")[index] / "0.png")
        seen = setup(config, CPU).dataset.train.images[4 * index]
        torch.testing.assert_close(seen, theirs(image))


# Downloads, from a file:// in place of the network.


@pytest.fixture
def published(monkeypatch, tmp_path) -> Path:
    """What torchvision's registry points to for squeezenet1_1."""
    path = tmp_path / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), path)
    named = path.rename(tmp_path / f"squeezenet1_1-{sha256(path.read_bytes()).hexdigest()[:8]}.pth")
    registry = SimpleNamespace(DEFAULT=SimpleNamespace(url=named.as_uri()))
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
    said = refused(Config(backbone="resnet18", weights="imagenet", dataset="folder", data=tmp_path))
    assert said.startswith(
        f"the weights of resnet18 are not in {tmp_path}/data/weights/resnet18-f37072fd.pth and could"
    )
    assert said.endswith("put https://download.pytorch.org/models/resnet18-f37072fd.pth there")


def test_torchvision_names_every_backbone():
    for name in BACKBONES.keys() - {"resnet8"}:
        assert torchvision.models.get_model_weights(name)
