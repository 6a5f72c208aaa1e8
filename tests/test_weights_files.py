"""Weights as people publish them: each file is read right, or refused in one line that names it and says what it is."""

import bz2
import copy
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save, save_file
from torch import Tensor, nn

from experiments.shared import backbones, cli
from fn import tree
from fn.backbones import BACKBONES, cut
from fn.models.squeezenet import squeezenet
from fn.pretrained import PretrainedError, from_state_dict, read, to_state_dict
from fn.rng import generator
from fn.weights_files import MOST_TENSORS
from tests.test_readers import within

TENSORS = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2)}
NETWORK = torchvision.models.resnet18(num_classes=7)
SPEC = BACKBONES["resnet18"]


def one_line(path: Path) -> str:
    with pytest.raises(PretrainedError) as refusal, within(20):
        read(path)
    said = str(refusal.value)
    assert said.startswith(f"{path} ")
    assert said.isprintable()
    assert len(said) < len(str(path)) + 300
    return said.removeprefix(f"{path} ")


# Files of other kinds, by what they hold and whatever their name.


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def safetensors_of(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


def entry(begin: int, end: int, *, shape: int | list[int] = 2) -> str:
    shape = [shape] if isinstance(shape, int) else shape
    return json.dumps({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]})


def zipped(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(*names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return file.getvalue()


def scripted(network: nn.Module, compile: Callable = torch.jit.script, **more: bytes) -> bytes:
    """Return a TorchScript archive, with other bytes for some of its entries."""
    file, forged = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its TorchScript deprecated
        torch.jit.save(compile(network.eval()), file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(forged, "w") as changed:
        for entry in archive.infolist():
            name = entry.filename.rpartition("/")[2].replace(".", "_")
            changed.writestr(entry.filename, more.get(name, archive.read(entry)))
    return forged.getvalue()


class Bomb:
    def __reduce__(self):
        return exec, ("open('exploded', 'w')",)


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def many(n: int) -> bytes:
    return safetensors_of("{%s}" % ", ".join(f'"layer{i}.weight": {entry(0, 0, shape=0)}' for i in range(n)))  # noqa: UP031


TABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "an HTML page": (
        lambda: b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>",
        "is an HTML page, not the file",
    ),
    "an XML error": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an HTML page, not"),
    "a Git-LFS pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n",
        "is a Git-LFS pointer, not the file, which `git lfs pull` fetches",
    ),
    "an index of shards": (
        lambda: b'{"weight_map": {"fc.bias": "model-1-of-2.safetensors"}}',
        "is a text, not weights",
    ),
    "gzip": (lambda: gzip.compress(saved(TENSORS)), "is compressed with gzip: unpack it first"),
    "bzip2": (lambda: bz2.compress(saved(TENSORS)), "is compressed with bzip2: unpack it first"),
    "xz": (lambda: lzma.compress(saved(TENSORS)), "is compressed with xz: unpack it first"),
    "a zip archive": (
        lambda: zipped(**{"resnet.pth": b"x"}),
        "is a zip archive, not of torch.save, that holds resnet.pth",
    ),
    "an empty zip archive": (zipped, "is a zip archive, not of torch.save, that holds nothing"),
    "a tar archive": (
        lambda: tarred("a.pth", "b\n.pth"),
        "is a tar archive that holds a.pth, b\\n.pth: unpack it first",
    ),
    "the .tar of early torch": (
        lambda: tarred("storages", "tensors", "pickle"),
        "is in the .tar format of torch before 0.1.10, whose code is not run",
    ),
    "TorchScript, frozen": (
        lambda: scripted(nn.Linear(2, 2), lambda x: torch.jit.freeze(torch.jit.script(x))),
        "is a TorchScript archive without a tensor outside its code",
    ),
    "TorchScript, forged": (
        lambda: scripted(nn.Linear(2, 2), data_pkl=pickle.dumps({"weight": Bomb()}, protocol=2)),
        "holds more than tensors: exec, which is not run",
    ),
    "TorchScript, damaged": (lambda: scripted(nn.Linear(2, 2), data_pkl=b"\x80\x02}"), "is damaged"),
    "GGUF": (lambda: b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "is in the GGUF format of llama.cpp"),
    "an ONNX graph": (lambda: b"\x08\x0a\x12\x07pytorch\x1a\x052.1.0" + bytes(8), "is an ONNX graph, not a state_dict"),
    "arrays": (lambda: zipped(**{"weight.npy": array()}), "holds arrays of NumPy (.npz), not a state_dict"),
    "an array": (array, "is an array of NumPy"),
    "Keras": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    "nothing": (bytes, "is empty"),
    "zeros": (lambda: bytes(100_000), "begins with zeros alone"),
    "a number of 5,000 digits": (
        lambda: safetensors_of(f'{{"a": {entry(0, 8).replace("8", "9" * 5_000)}}}', bytes(8)),
        "has a number of 5,000 digits in its safetensors header",
    ),
    "equal names": (
        lambda: safetensors_of(f'{{"a": {entry(0, 8)}, "a": {entry(8, 16)}}}', bytes(16)),
        "has a twice in its safetensors header",
    ),
    "equal names, equal places": (
        lambda: safetensors_of(f'{{"a": {entry(0, 8)}, "a": {entry(0, 8)}}}', bytes(8)),
        "has a twice in its safetensors header",
    ),
    "an overlap": (
        lambda: safetensors_of(f'{{"a": {entry(0, 8)}, "b": {entry(4, 12)}}}', bytes(12)),
        "is no sound safetensors file: a and b overlap",
    ),
    "two of one place": (
        lambda: safetensors_of(f'{{"a": {entry(0, 8)}, "b\\n": {entry(0, 8)}}}', bytes(8)),
        "is no sound safetensors file: a and b\\n overlap",
    ),
    "a gap": (
        lambda: safetensors_of(f'{{"a": {entry(0, 8)}, "b\\n": {entry(12, 20)}}}', bytes(20)),
        "is not a whole safetensors file",
    ),
    "a zero-size tensor amid another": (
        lambda: safetensors_of(f'{{"a": {entry(0, 8)}, "b": {entry(4, 4, shape=0)}}}', bytes(8)),
        "is not a whole safetensors file",
    ),
    "100,000 entries": (lambda: many(100_000), "holds 100,000 tensors, more than the 20,000 that are read"),
    "a vast header": (
        lambda: struct.pack("<Q", 2**25) + b"{" + b" " * 2**25,
        "has a safetensors header of 33,554,432 bytes, more than 16,777,216",
    ),
    "a header that is longer than the file": (
        lambda: struct.pack("<Q", 2**60) + b"{}",
        "is not a whole safetensors file (a header of 1,152,921,504,606,846,976 bytes in a file of 10)",
    ),
    "a header of brackets": (lambda: safetensors_of("{" + '"a":[' * 10_000), "is not a whole safetensors file"),
    "100,000 tensors by torch.save": (
        lambda: saved(dict.fromkeys(map(str, range(100_000)), TENSORS["fc.bias"])),
        "holds 100,000 tensors, more than the 20,000 that are read",
    ),
    "the entries of a training script": (
        lambda: saved({"epoch": 3, "optimizer": {"lr": 0.1}, "line\nbreak": 1}),
        "holds no state_dict: its entries are epoch (int), optimizer (dict), line\\nbreak (int)",
    ),
    "flags and a best accuracy": (
        lambda: saved({"args": Namespace(lr=0.1), "best": np.float64(0.9)}),
        "holds no state_dict: its entries are args (Namespace), best (float64)",
    ),
    "two networks": (
        lambda: saved({"epoch": 3, "student": TENSORS, "teacher": TENSORS}),
        "holds several state_dicts: its entries are epoch (int), student (dict), teacher (dict)",
    ),
    "a sparse tensor": (
        lambda: saved({"a\n": torch.eye(3).to_sparse()}),
        "holds a\\n as a sparse tensor, or without its",
    ),
    "shapes alone": (lambda: saved({"a": torch.ones(3, device="meta")}), "holds a as a sparse tensor, or without its"),
    "a list": (lambda: saved([TENSORS["fc.bias"]]), "holds no state_dict, but a list"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", TABLE)
def test_a_file_of_another_kind_is_called_by_its_name(kind, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, complaint = TABLE[kind]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(make())
    assert one_line(path).startswith(complaint)
    assert list(tmp_path.iterdir()) == [path]


READ: dict[str, Callable[[], bytes]] = {
    "safetensors": lambda: save(TENSORS),
    "torch.save": lambda: saved(TENSORS),
    "torch.save of early torch": lambda: saved(TENSORS, _use_new_zipfile_serialization=False),
    "an OrderedDict": lambda: saved(OrderedDict(TENSORS)),
    "parameters": lambda: saved({name: nn.Parameter(x) for name, x in TENSORS.items()}),
    "with gradients": lambda: saved({name: x.clone().requires_grad_() for name, x in TENSORS.items()}),
}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.pth.tar", "a.bin", "a"])
@pytest.mark.parametrize("kind", READ)
def test_a_file_is_read_whatever_its_suffix(kind, name, tmp_path):
    """As plain tensors without gradients: with them, every step would hold on to all those before."""
    (tmp_path / name).write_bytes(READ[kind]())
    found = read(tmp_path / name)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], x) for name, x in TENSORS.items())
    assert {type(x) for x in found.values()} == {Tensor}
    assert not any(x.requires_grad for x in found.values())


def traced(network: nn.Module) -> Any:
    return torch.jit.trace(network, torch.zeros(1, 3, 64, 64))


def test_the_tensors_of_a_class_of_ones_own_script_are_read(tmp_path):
    """TorchScript knows a class of __main__ by its name alone."""
    network = type("Net", (nn.Linear,), {"__module__": "__main__"})(3, 2)
    (tmp_path / "a.pt").write_bytes(scripted(network, lambda net: torch.jit.trace(net, torch.zeros(1, 3))))
    found = read(tmp_path / "a.pt")
    assert {name: x.tolist() for name, x in found.items()} == {n: x.tolist() for n, x in network.state_dict().items()}


@pytest.mark.parametrize("compile", [torch.jit.script, traced])
@pytest.mark.parametrize("network", [torchvision.models.resnet18, torchvision.models.squeezenet1_1])
def test_the_tensors_of_a_script_are_read_without_its_code(network, compile, tmp_path):
    network = network(num_classes=3)
    (tmp_path / "a.pt").write_bytes(scripted(network, compile, **{f"{network._get_name().lower()}_py": b"no code"}))
    found = read(tmp_path / "a.pt")
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(found[name], x) for name, x in network.state_dict().items())


@pytest.mark.parametrize("n", [0, MOST_TENSORS])
def test_tensors_of_size_zero_are_read_up_to_the_limit(n, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(many(n))
    found = read(tmp_path / "a.safetensors")
    assert len(found) == n
    assert all(x.shape == (0,) for x in found.values())


# Entries, prefixes and heads.


BESIDE = {
    "epoch": 3,
    "optimizer": {"state": {}, "param_groups": []},
    "args": Namespace(lr=0.1, layers=[2]),
    "best": np.float32(0.9),
    "best_epoch": np.int64(2),
}


def inside(*names: str) -> Callable[[Any], Any]:
    def wrap(content: Any) -> Any:
        for name in reversed(names):
            content = BESIDE | {name: content}
        return content

    return wrap


WRAPPERS = [
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "params",
    "model_ema",
    "state_dict_ema",
    "params_ema",
    "ema",
]
ENTRIES = (
    {(): inside()}
    | {(name,): inside(name) for name in WRAPPERS}
    | {("model", "state_dict"): inside("model", "state_dict")}
    | {("student",): inside("student"), ("checkpoint", "model"): inside("checkpoint", "model")}
)
PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "net.", "encoder."]
PREFIXES += [
    "_orig_mod.module.",
    "model._orig_mod.",
    "module.backbone.",
    "model.module.backbone.",
    "model.backbone._orig_mod.",
]


def flags_of(tmp_path: Path, content: Any) -> tuple[tree.Params, tree.Params]:
    path = tmp_path / "a.pth"
    torch.save(content, path)
    return backbones.load("resnet18", str(path), cut_off=["fc"])


def assert_is_network(found: tuple[tree.Params, tree.Params], network: nn.Module = NETWORK) -> None:
    """All of the network's tensors below the head, and nothing else."""
    expected = {name: x.detach() for name, x in network.state_dict().items() if not name.startswith("fc.")}
    ours = to_state_dict(*found, {})
    assert ours.keys() == {name for name in expected if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(x, expected[name]) for name, x in ours.items())


@pytest.mark.parametrize("entries", ENTRIES, ids=".".join)
def test_a_state_dict_is_found_in_its_entry_and_that_is_said(entries, tmp_path):
    content = ENTRIES[entries](NETWORK.state_dict())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert_is_network(flags_of(tmp_path, content))
    path = tmp_path / "a.pth"
    assert [str(w.message) for w in said] == [f"{path}: read from its entry {'.'.join(entries)}"] * bool(entries)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off_and_that_is_said(prefix, tmp_path):
    content = {prefix + name: x for name, x in NETWORK.state_dict().items()} | {"criterion.weight": torch.ones(7)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert_is_network(flags_of(tmp_path, content))
    told = " ".join(str(w.message) for w in said)
    assert all(f"{part}." in told for part in prefix.split(".")[:-1])
    assert "criterion.weight left out" in told


def test_a_model_that_torch_averaged_is_read(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(nn.DataParallel(NETWORK))
    with pytest.warns(UserWarning, match=r"module\. taken off its names"):
        assert_is_network(flags_of(tmp_path, averaged.state_dict()))


def test_the_averages_of_an_ema_come_first(tmp_path):
    """As in timm; behind a prefix too. Of other copies none is chosen."""
    other = torchvision.models.resnet18(num_classes=3)
    with pytest.warns(UserWarning, match=r"read from its entry state_dict_ema$"):
        assert_is_network(
            flags_of(tmp_path, {"state_dict": other.state_dict(), "state_dict_ema": NETWORK.state_dict()})
        )
    both = {f"ema_model.{name}": x for name, x in NETWORK.state_dict().items()}
    both |= {f"online_model.{name}": x for name, x in other.state_dict().items()}
    with pytest.warns(UserWarning, match=r"weights: ema_model\. taken off its names, online_model\.conv1\.weight"):
        assert_is_network(flags_of(tmp_path, both))
    pair = {f"{side}.{name}": x for side in ("student", "teacher") for name, x in NETWORK.state_dict().items()}
    with pytest.raises(cli.UsageError, match=r"holds this model several times, below student\., teacher\.$"):
        flags_of(tmp_path, pair)


def test_names_that_fall_together_are_refused(tmp_path):
    torch.save(TENSORS | {"module.fc.bias": torch.zeros(2)}, tmp_path / "a.pth")
    assert one_line(tmp_path / "a.pth") == "holds two tensors of one name, without module"


HEADS = {
    "of another width": {"fc.weight": torch.ones(40, 512), "fc.bias": torch.ones(40)},
    "none": {},
    "of two layers": {"fc.0.weight": torch.ones(9, 512), "fc.2.weight": torch.ones(3, 9)},
    "of another name": {"head.weight": torch.ones(40, 512), "classifier.1.bias": torch.ones(40)},
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.filterwarnings("ignore:weights")
def test_a_head_is_no_obstacle_where_it_is_cut_off(head, tmp_path):
    body = {name: x for name, x in NETWORK.state_dict().items() if not name.startswith("fc.")}
    assert_is_network(flags_of(tmp_path, body | HEADS[head]))


@pytest.mark.filterwarnings("ignore:weights")
@pytest.mark.parametrize("head", [{}, {"classifier.1.weight": torch.ones(3, 512, 1, 1)}, {"head.bias": torch.ones(3)}])
def test_a_detector_starts_from_a_squeezenet_of_any_head(head, tmp_path):
    path = tmp_path / "a.pth"
    params, _ = squeezenet((3, 32, 32), 5).init(generator(7))
    torch.save({f"features.{name}": x for name, x in tree.flatten(params["features"]).items()} | head, path)
    found, _ = backbones.weights_of(path, squeezenet((3, 64, 64), 1000), "a SqueezeNet", cut_off=("classifier",))
    assert found.keys() == {"features"}
    tree.map(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0), found["features"], params["features"])


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"layer4.0.se.weight": torch.ones(2)}, r"layer4\.0\.se\.weight \[2\] has no place in this model"),
        ({"layer4.1.bn2.bias": torch.ones(7)}, r"layer4\.1\.bn2\.bias is \[7\], this model has \[512\]"),
    ],
)
def test_what_is_not_the_head_must_fit(more, complaint, tmp_path):
    with pytest.raises(cli.UsageError, match=complaint):
        flags_of(tmp_path, NETWORK.state_dict() | more)


# Dtypes and gradients.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("to", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_weights_are_cast_as_load_state_dict_casts_them(dtype, to, name, tmp_path):
    given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in NETWORK.state_dict().items()}
    torch.save(given, tmp_path / name) if name == "a.pth" else save_file(given, tmp_path / name)
    reference = copy.deepcopy(NETWORK).to(to)
    reference.load_state_dict(given)
    ours = (tree.to(part, to) for part in SPEC.model(SPEC.shape, 7).init(generator(0)))
    found = to_state_dict(*from_state_dict(read(tmp_path / name), *ours))
    assert found.keys() == reference.state_dict().keys()
    for key, x in reference.state_dict().items():
        assert found[key].dtype == x.dtype
        assert torch.equal(found[key], x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64, torch.bool], ids=str)
def test_numbers_that_are_no_floats_are_refused_by_their_name(dtype, tmp_path):
    with pytest.raises(cli.UsageError, match=rf"conv1\.weight is of {dtype}, not of floating point"):
        flags_of(tmp_path, NETWORK.state_dict() | {"conv1.weight": NETWORK.conv1.weight.detach().to(dtype)})


def test_parameters_of_torch_leave_their_gradients_behind(tmp_path):
    """A loss that is computed from them without `grad` builds no graph."""
    for content in (dict(NETWORK.named_parameters()), NETWORK.state_dict(keep_vars=True)):
        buffers = dict(NETWORK.named_buffers())
        params, state, counts = from_state_dict(content | buffers, *SPEC.model(SPEC.shape, 7).init(generator(0)))
        leaves = tree.leaves(params) + tree.leaves(state) + tree.leaves(counts)
        assert {type(x) for x in leaves} == {Tensor}
        assert not any(x.requires_grad for x in leaves)
        maps, _ = SPEC.features(cut(SPEC, params), cut(SPEC, state), torch.ones(2, 3, 32, 32), train=True)
        assert maps.grad_fn is None
