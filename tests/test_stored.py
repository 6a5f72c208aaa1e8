"""Photographs that stay on the disk give what those in memory give, to the bit."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.train import build
from fn.data import datasets
from fn.data.cache import cached_rows
from fn.data.datasets import Dataset, DatasetUnavailable, folder
from fn.data.loader import batches
from fn.data.stored import Stored, exact_stats
from fn.data.transforms import random_crop
from tests.test_trainer import read_log, run_trainer

SIZE, STATS = 8, ([120.0, 110.0, 100.0], [60.0, 61.0, 62.0])
assert run_trainer  # a fixture


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "functional-torch" / "tensors"


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Return two classes of 30, of random pixels."""
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "photographs" / f"class {i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photographs"


def assert_same(memory: Dataset, disk: Dataset) -> None:
    """An epoch has the same batches, and whoever prepares them, and the parts of the split too."""
    options = {"seed": 3, "epoch": 2, "augment": random_crop_2}
    for a, b, workers in ((memory.train, disk.train, 1), (memory.train, disk.train, 0), (memory.test, disk.test, 0)):
        pairs = zip(batches(a, 7, **options), batches(b, 7, **options, workers=workers), strict=True)
        assert all(torch.equal(x, x_) and torch.equal(y, y_) for (x, y), (x_, y_) in pairs)


def random_crop_2(x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return random_crop(x, key, padding=2)


def test_batches_from_the_disk_are_those_from_memory(photographs):
    memory, disk = (folder(photographs, image_size=SIZE, stats=STATS, most_bytes=most) for most in (None, 0))
    assert isinstance(disk.train.images, Stored)
    assert disk.shape == memory.shape
    assert_same(memory, disk)
    assert isinstance(folder(photographs, image_size=SIZE, most_bytes=60 * 4 * 3 * SIZE**2).train.images, torch.Tensor)


def test_a_split_of_its_own_stays_on_the_disk_too(photographs):
    for name, other in (("train", "class 0"), ("test", "class 1")):
        shutil.move(photographs / other, photographs / name / "a")
        (photographs / name / "b").mkdir()
        Image.new("RGB", (SIZE, SIZE), (9, 9, 9)).save(photographs / name / "b" / "x.png")
    assert_same(*(folder(photographs, image_size=SIZE, stats=STATS, most_bytes=most) for most in (None, 0)))


def stored(photographs: Path) -> Stored:
    images = folder(photographs, image_size=SIZE, most_bytes=0).train.images
    assert isinstance(images, Stored)
    return images


def test_the_statistics_are_exact(photographs, monkeypatch):
    monkeypatch.setattr("fn.data.stored.CHUNK", 7)
    images = stored(photographs)
    std, mean = torch.std_mean(images.bytes().double(), dim=(0, 2, 3), correction=0)
    for found, expected in zip(exact_stats(images), (mean, std), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=6e-8, atol=0)
    torch.testing.assert_close(images.read().mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)


def test_squares_are_decoded_once_and_a_damaged_file_again(photographs, own_cache, monkeypatch):
    first = stored(photographs).bytes()
    [file] = own_cache.glob("*.rows")
    monkeypatch.setattr(datasets, "map_ahead", pytest.fail)
    assert torch.equal(stored(photographs).bytes(), first)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache.parents[1]))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert torch.equal(stored(photographs).bytes(), first)
    assert file.read_bytes() == content
    assert [path.name for path in own_cache.iterdir()] == [file.name]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def rows():
        yield b"one"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cached_rows(rows, {}, tmp_path / "rows")
    assert list((tmp_path / "rows").iterdir()) == []


def test_what_cannot_be_decoded_or_written_is_one_line(photographs, monkeypatch):
    bad = photographs / "class 0" / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(DatasetUnavailable, match=r"bad.png cannot be read as an image"):
        folder(photographs, image_size=SIZE, most_bytes=0)
    bad.unlink()
    monkeypatch.setattr(datasets, "cached_rows", full_disk)
    with pytest.raises(DatasetUnavailable, match=r"^folder: .* has no room for its squares, .*No space left on device"):
        folder(photographs, image_size=SIZE, most_bytes=0)


def full_disk(*_) -> Path:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_from_the_disk_resumes_and_refuses_other_images(photographs, run_trainer, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "IN_MEMORY", 0)
    flags = ["--model", "mlp", "--hidden", "8", "--dataset", "folder", "--root", str(photographs), "--image-size", "8"]
    flags += ["--epochs", "2", "--batch-size", "16", "--augment", "flip"]
    status, _, err = run_trainer(*flags)
    assert status == 0, err
    log = read_log(tmp_path / "run")
    for later in sorted((tmp_path / "run" / "checkpoints").glob("*step-*"))[1:]:
        later.unlink()
    status, _, err = run_trainer("--resume", str(tmp_path / "run"))
    assert status == 0, err
    assert read_log(tmp_path / "run") == log
    Image.new("RGB", (9, 9)).save(photographs / "class 0" / "00.png")
    status, _, err = run_trainer("--resume", str(tmp_path / "run"))
    assert status == 2
    assert "was trained on other data than folder now holds" in err
