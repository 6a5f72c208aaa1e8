"""ResNet and SqueezeNet are torchvision's, published weights give what they gave, and files that do not fit say why."""

import os
import pickle
import re
from collections.abc import Callable
from functools import partial, reduce
from hashlib import sha256
from math import hypot
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fn import tree
from fn.data.datasets import folder
from fn.gradcheck import largest
from fn.metrics import top_k_accuracy
from fn.models import Model
from fn.models.resnet import resnet, resnet20, resnet_apply, resnet_init
from fn.models.squeezenet import squeezenet, squeezenet_apply, squeezenet_init
from fn.pretrained import IMAGENET_STATS, PretrainedError, from_state_dict, read, to_state_dict
from fn.rng import generator, key
from fn.tree import Params
from tests.strategies import cotangent

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_weights = pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="needs ../shared/data/weights")
needs_photographs = pytest.mark.skipif(not (SHARED / "hymenoptera").is_dir(), reason="needs ../shared/data/hymenoptera")


class Case(NamedTuple):
    ours: Callable[..., Model]
    options: dict[str, Any]
    reference: Callable[..., nn.Module]


CASES = {
    "resnet18": Case(resnet, {"depth": 18}, torchvision.models.resnet18),
    "resnet34": Case(resnet, {"depth": 34}, torchvision.models.resnet34),
    "resnet50": Case(resnet, {"depth": 50}, torchvision.models.resnet50),
    "resnext50": Case(resnet, {"depth": 50, "groups": 32, "width_per_group": 4}, torchvision.models.resnext50_32x4d),
    "squeezenet1_1": Case(
        squeezenet, {"dropout_p": 0.0}, lambda **k: torchvision.models.squeezenet1_1(dropout=0.0, **k)
    ),
}
DTYPES = [torch.float32, torch.float64]
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def redraw(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Other values than 0 and 1 for batch norm.

    In float32 its biases are away from 0: where relu's input is within rounding of its kink, torchvision's own
    gradients differ between float32 and float64 by per cents (resnet50, all leaves together: 1.3 to 3.1 %).
    """
    rng = generator(1)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            bias = torch.randn(norm.num_features, generator=rng)
            weight, var = torch.rand(2, norm.num_features, generator=rng) + 0.5
            bias = bias.sign() * (4 + bias.abs()) if dtype == torch.float32 else bias
            values = {"weight": weight, "bias": bias, "running_mean": bias / 2, "running_var": var}
            norm.load_state_dict(values | {"num_batches_tracked": torch.tensor(3)})
    return module.to(dtype)


def assert_close(ours: dict[str, Tensor], reference: dict[str, Tensor], dtype: torch.dtype) -> None:
    """‖a - b‖ ≤ 1e-10 ‖b‖ for each tensor in float64, 1e-4 in float32 for all together; names the worst."""
    assert ours.keys() == reference.keys()
    gaps = {name: float((x - reference[name]).double().norm()) for name, x in ours.items()}
    norms = {name: float(x.double().norm()) for name, x in reference.items()}
    if dtype == torch.float64:
        worst = largest(gaps[name] / norms[name] for name in gaps)
        assert worst <= 1e-10, max((gaps[name] / norms[name], name) for name in gaps)
    else:
        assert hypot(*gaps.values()) <= 1e-4 * hypot(*norms.values()), max(zip(gaps.values(), gaps, strict=True))


def detached(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in state_dict.items()}


DEEP = {"resnet34", "resnet50", "resnext50"}  # of which each takes seconds


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[pytest.mark.slow] * (name in DEEP)) for name, case in CASES.items()]
)
@each_dtype
def test_a_network_is_torchvisions(case: Case, dtype: torch.dtype):
    """Logits in both modes, the statistics that training leaves, and the gradient of every parameter."""
    torch.manual_seed(0)
    reference = redraw(case.reference(num_classes=7), dtype)
    model = case.ours((3, 64, 64), 7, **case.options)
    ours = (tree.to(part, dtype) for part in model.init(generator(0)))
    params, state, _ = from_state_dict(detached(reference.state_dict()), *ours)
    x = torch.randn(4, 3, 66, 75, generator=generator(2)).to(dtype)  # where a last window hangs over

    logits, same = model.apply(params, state, x, train=False)
    assert_close({"": logits}, {"": reference.eval()(x).detach()}, dtype)
    assert all(a is b for a, b in zip(tree.leaves(same), tree.leaves(state), strict=True))

    def loss(params: tree.Params) -> tuple[Tensor, Any]:
        logits, new_state = model.apply(params, state, x, train=True)
        return (logits * cotangent(logits)).sum(), (logits, new_state)

    grads, (logits, new_state) = torch.func.grad(loss, has_aux=True)(params)
    expected = reference.train()(x)
    (expected * cotangent(expected)).sum().backward()
    assert_close({"": logits}, {"": expected.detach()}, dtype)
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert_close(tree.flatten(grads), gradients, dtype)
    moved = {name: x for name, x in reference.state_dict().items() if "running" in name}
    if moved:
        assert_close(tree.flatten(new_state), moved, dtype)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet101", {"depth": 101}),
        ("resnet152", {"depth": 152}),
        ("wide_resnet50_2", {"depth": 50, "width_per_group": 128}),
        ("wide_resnet101_2", {"depth": 101, "width_per_group": 128}),
        ("resnext101_32x8d", {"depth": 101, "groups": 32, "width_per_group": 8}),
        ("resnext101_64x4d", {"depth": 101, "groups": 64, "width_per_group": 4}),
    ],
)
def test_the_large_ones_have_torchvisions_parameters(name, options):
    with torch.device("meta"):
        reference = getattr(torchvision.models, name)(num_classes=7).state_dict()
    with FakeTensorMode():
        ours = resnet((3, 64, 64), 7, **options).init(generator(0))
    from_state_dict(reference, *ours)


# Files, there and back.


def tensors_of(case: Case) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return detached(case.reference(num_classes=7).state_dict())


@each_case
def test_there_and_back_nothing_is_lost(case: Case):
    state_dict = tensors_of(case)
    state_dict |= {name: torch.tensor(i) for i, name in enumerate(state_dict) if name.endswith("num_batches_tracked")}
    back = to_state_dict(*from_state_dict(state_dict, *case.ours((3, 64, 64), 7, **case.options).init(generator(0))))
    assert back.keys() == state_dict.keys()
    assert all(back[name] is x for name, x in state_dict.items())


@each_case
def test_torchvision_takes_ours(case: Case):
    params, state = case.ours((3, 64, 64), 7, **case.options).init(generator(0))
    reference = case.reference(num_classes=7)
    reference.load_state_dict(to_state_dict(params, state, {}))
    assert torch.equal(next(iter(reference.parameters())), next(iter(tree.leaves(params))))


SMALL = resnet((3, 32, 32), 10, depth=8)


def published(**changes: Tensor | None) -> dict[str, Tensor]:
    """Return a file's tensors for SMALL, with some put in, or None to take one out."""
    params, state = SMALL.init(generator(3))
    flat: dict[str, Any] = to_state_dict(params, state, {"bn1": {"num_batches_tracked": torch.tensor(5)}})
    return {
        name: x for name, x in (flat | {k.replace("__", "."): v for k, v in changes.items()}).items() if x is not None
    }


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"fc__bias": None}, r"fc\.bias \[10\] is missing"),
        ({"fc__bias": None, "fc__bais": torch.ones(10)}, r"fc\.bias \[10\] is missing; the nearest is fc\.bais"),
        (
            {"layer4__0__bn1__bias": torch.ones(8)},
            r"layer4\.0\.bn1\.bias \[8\] has no place in this model; the nearest",
        ),
        ({"fc__weight": torch.ones(1000, 64)}, r"fc\.weight is \[1000, 64\], this model has \[10, 64\]"),
        ({"bn1__running_var": torch.ones(17)}, r"bn1\.running_var is \[17\], this model has \[16\]"),
        ({"fc__bias": torch.ones(10).long()}, r"fc\.bias is of torch\.int64, not of floating point"),
    ],
)
def test_weights_that_do_not_fit_name_the_key_or_the_shape(changes, complaint):
    with pytest.raises(PretrainedError, match=complaint):
        from_state_dict(published(**changes), *SMALL.init(generator(0)))


def test_weights_of_another_architecture_name_the_first_key_that_is_missing():
    resnet50 = CASES["resnet50"].reference(num_classes=7).state_dict()
    with pytest.raises(
        PretrainedError,
        match=r"^layer1\.0\.conv1\.weight is \[64, 64, 1, 1\], this model has \[64, 64, 3, 3\]|is missing|no place",
    ):
        from_state_dict(resnet50, *resnet((3, 64, 64), 7, depth=18).init(generator(0)))


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.th"])
@pytest.mark.parametrize("wrap", [dict, lambda x: {"state_dict": x, "epoch": 3}], ids=["bare", "in an entry"])
def test_a_file_is_read_whatever_its_wrapping(tmp_path, name, wrap):
    content = published()
    if name.endswith(".safetensors"):
        wrap = dict
    path = write(tmp_path / name, wrap({f"module.{k}".replace("fc", "linear"): x for k, x in content.items()}))
    with pytest.warns(UserWarning, match=r"module\. taken off its names$"):
        found = read(path, renamed={"linear": "fc"})
    assert found.keys() == content.keys()
    assert all(torch.equal(found[k], x) for k, x in content.items())


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("legacy", [True, False])
def test_code_in_a_file_is_not_run(monkeypatch, tmp_path, legacy):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.bias": Bomb()}, tmp_path / "bomb.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(PretrainedError, match=r"bomb\.pth holds more than tensors: posix\.system, which is not run"):
        read(tmp_path / "bomb.pth")
    assert not (tmp_path / "exploded").exists()


def test_a_network_saved_whole_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "whole.pth")
    with pytest.raises(PretrainedError, match=r"holds more than tensors: torch\.nn\.\S+Sequential, which is not run"):
        read(tmp_path / "whole.pth")


@pytest.mark.filterwarnings("error")
def test_another_kind_of_pickle_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"fc.bias": [1.0]}, protocol=4))
    with pytest.raises(PretrainedError, match=r"^\S+a\.pkl is damaged, or holds more than tensors \(Unsupp[^\n]*\)$"):
        read(tmp_path / "a.pkl")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "legacy.pth"])
def test_a_file_cut_off_anywhere_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / name
    if name == "legacy.pth":
        torch.save(published(), path, _use_new_zipfile_serialization=False)
    else:
        write(path, published())
    content, cut = path.read_bytes(), tmp_path / f"cut-{name}"
    for size in [0, 1, 7, 100, len(content) // 2, len(content) - 1]:
        cut.write_bytes(content[:size])
        with pytest.raises(PretrainedError, match=f"^{cut} [^\n]*$"):
            read(cut)


@pytest.mark.parametrize("ending", ["20261127", "00000000", "12fca82f"])
def test_a_name_of_ones_own_tells_no_digest(tmp_path, ending):
    assert read(write(tmp_path / f"resnet8-{ending}.pth", published())).keys() == published().keys()


def test_a_name_of_torchvisions_tells_the_digest(tmp_path):
    """Of every file in its registry whose name ends with one."""
    content = write(tmp_path / "a.pth", published()).read_bytes()
    digest = sha256(content).hexdigest()[:8]
    entries = (
        entry for name in torchvision.models.list_models() for entry in torchvision.models.get_model_weights(name)
    )
    names = {Path(entry.url).name for entry in entries}
    assert len(names) > 100
    for path in [tmp_path / name for name in sorted(names)[::20] if re.search(r"-[0-9a-f]{8}\.", name)]:
        path.write_bytes(content)
        with pytest.raises(PretrainedError, match=rf"its SHA-256 begins with {digest}, not {path.stem[-8:]}$"):
            read(path)


@pytest.mark.parametrize("content", [{"a": 3}, [torch.ones(2)], {"state_dict": {"a": "b"}}, torch.ones(3)], ids=str)
def test_a_file_of_other_things_is_no_state_dict(tmp_path, content):
    with pytest.raises(PretrainedError, match="holds no state_dict"):
        read(write(tmp_path / "a.pth", content))


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(PretrainedError, match=r"nowhere\.pth cannot be read \(No such file"):
        read(tmp_path / "nowhere.pth")


def test_dropout_stands_before_the_last_layer():
    """At p = 1 its bias is all that is left, in training alone; SqueezeNet's passes a relu."""
    x, bias = torch.randn(2, 3, 64, 64, generator=generator(1)), torch.tensor([-1.0, 0.5, 2.0])
    for init, apply, last, left in (
        (squeezenet_init, squeezenet_apply, ("classifier", "1"), bias.relu()),
        (partial(resnet_init, blocks=(1,), widths=(4,)), partial(resnet_apply, blocks=(1,)), ("fc",), bias),
    ):
        params, state = init(generator(0), 3, 3)
        reduce(dict.__getitem__, last, params)["bias"] = bias
        logits = partial(apply, params, state, x, dropout_p=1.0, key=key(0))
        assert torch.equal(logits(train=True)[0], left.expand(2, 3))
        assert not torch.equal(logits(train=False)[0], left.expand(2, 3))


# Published weights.


@needs_weights
def test_the_published_squeezenet_gives_its_published_outputs():
    model = squeezenet((3, 224, 224), 1000)
    state_dict = read(SHARED / "weights" / "squeezenet1_1_onnxzoo.pt")
    params, state, counts = from_state_dict(state_dict, *model.init(generator(0)))
    vectors = numpy.load(SHARED / "weights" / "squeezenet1_1_testvectors.npz")
    for i in range(3):
        logits, _ = model.apply(params, state, torch.from_numpy(vectors[f"input_{i}"]), train=False)
        torch.testing.assert_close(logits, torch.from_numpy(vectors[f"output_{i}"]), rtol=1e-5, atol=1e-3)
    assert to_state_dict(params, state, counts).keys() == state_dict.keys()


def test_the_cifar_resnet_is_its_formula():
    model = resnet20((3, 32, 32), 10)
    params, state = model.init(generator(0))
    check_option_a(params, state, to_state_dict(params, state, {}))


@needs_weights
def test_the_published_cifar_resnet_is_read_and_is_its_formula():
    with pytest.warns(UserWarning, match=r"read from its entry state_dict, module\. taken off its names$"):
        state_dict = read(SHARED / "weights" / "resnet20-12fca82f.th", renamed={"linear": "fc"})
    params, state, _ = from_state_dict(state_dict, *resnet20((3, 32, 32), 10).init(generator(0)))
    assert tree.size(params) == 269_722
    check_option_a(params, state, state_dict)


def check_option_a(params: Params, state: Params, state_dict: dict[str, Tensor]) -> None:
    """Compare with torch's functions: basic blocks of these widths, with option A in their shortcuts."""
    x = torch.randn(4, 3, 32, 32, generator=generator(1))
    logits, _ = resnet20((3, 32, 32), 10).apply(params, state, x, train=False)
    assert_close({"": logits}, {"": option_a(state_dict, x)}, torch.float32)


def option_a(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the network of He et al. for CIFAR, written anew with torch's functions."""

    def normed(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, weights[f"{name.replace('bn', 'conv')}.weight"], stride=stride, padding=1)
        mean, var, weight, bias = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias)

    x = F.relu(normed(x, "bn1"))
    for stage in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = normed(F.relu(normed(x, f"{name}.bn1", stride)), f"{name}.bn2")
            if stride == 2:
                x = F.avg_pool2d(x, 1, 2)
                x = torch.cat([torch.zeros_like(x)[:, ::2], x, torch.zeros_like(x)[:, ::2]], dim=1)
            x = F.relu(x + y)
    return F.linear(x.mean(dim=(2, 3)), weights["fc.weight"], weights["fc.bias"])


@needs_weights
@needs_photographs
def test_the_published_squeezenet_knows_ants_from_bees():
    """Every fifth held-out photograph, named out of a thousand classes."""
    lines = (SHARED / "weights" / "imagenet_classes.txt").read_text().splitlines()
    classes = [line.split()[1] for line in lines]
    photographs = folder(SHARED / "hymenoptera", image_size=224, stats=IMAGENET_STATS).test
    x, y = photographs.images[::5], torch.tensor([classes.index("ant"), classes.index("bee")])[photographs.labels[::5]]
    model = squeezenet((3, 224, 224), 1000)
    state_dict = read(SHARED / "weights" / "squeezenet1_1_onnxzoo.pt")
    logits, _ = model.apply(*from_state_dict(state_dict, *model.init(generator(0)))[:2], x, train=False)
    assert top_k_accuracy(logits, y, k=1) >= 0.4
    assert top_k_accuracy(logits, y, k=5) >= 0.7
