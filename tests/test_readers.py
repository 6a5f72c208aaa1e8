"""Before every reader stands a limit; what comes back is the right content or a refusal in one line, nothing else."""

import contextlib
import gzip
import io
import json
import os
import random
import re
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import labs
from experiments.drill import spacing
from experiments.gallery import quiz
from experiments.note.__main__ import run_figures
from experiments.shared import attempts
from experiments.shared.cli import Config, UsageError
from experiments.shared.flags import as_flags
from experiments.train.folder import read_log
from fn import checkpoint, pretrained
from fn.checkpoint import CheckpointError, Progress
from fn.data import datasets, idx
from fn.data.cache import cached, fingerprint
from fn.data.datasets import DatasetUnavailable
from fn.data.images import ImageError, photograph
from fn.data.sequences import read_text
from fn.data.voc import read_voc
from fn.files import MOST_BYTES, parse_json, read_json
from fn.pretrained import PretrainedError


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail, rather than wait for ever, where a reader hangs; far above what any of them takes."""

    def late(*_: Any) -> None:
        raise AssertionError(f"it hangs: nothing has happened for {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Reader(NamedTuple):
    name: str
    """of the file"""
    content: Callable[[], bytes]
    """of a sound file"""
    read: Callable[[Path], Any]
    refusal: type[Exception]
    is_right: Callable[[Any], bool]
    """whether this is what a file of its kind may hold"""


def image_of(path: Path) -> np.ndarray:
    with photograph(path) as image:
        return np.array(image)


def encoded(suffix: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(9, 7, 3), dtype=np.uint8)).save(file, suffix)
    return file.getvalue()


XML = """<annotation><filename>a.png</filename><size><width>80</width><height>40</height></size>
<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object>
</annotation>"""


def idx_of(array: np.ndarray, kind: int = 8) -> bytes:
    sizes = b"".join(size.to_bytes(4) for size in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, train: int = 20, test: int = 10) -> Path:
    """Write sound files of MNIST's format, each image of its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", train), ("t10k", test)):
        images = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_of(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_of(np.arange(n) % 10))
    return folder


def read_labels(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what MNIST's reader makes of a file of 20 labels, with sound images beside it."""
    (path.parent / "train-images-idx3-ubyte").write_bytes(idx_of(np.zeros((20, 28, 28))))
    return idx.read_split(path.parent, "train")


def read_images(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what MNIST's reader makes of a file of 2 images, with sound labels beside it."""
    (path.parent / "train-labels-idx1-ubyte").write_bytes(idx_of(np.array([3, 7])))
    return idx.read_split(path.parent, "train")


def saved(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


def a_checkpoint() -> bytes:
    from safetensors.torch import save

    return save(TENSORS, {checkpoint.KEY: json.dumps({"version": 1, "progress": Progress()._asdict()})})


def load_checkpoint(path: Path) -> Any:
    return checkpoint.load(path, TENSORS)


def read_progress(path: Path) -> Any:
    return spacing.next_drill(["relu"], attempts.task_events(), 1e9), attempts.standings()


def drills_of(monkeypatch, path: Path) -> None:
    monkeypatch.setattr(attempts, "file", lambda: path)


EVENTS = [{"v": 1, "at": 1e9 + i, "drill": "relu", "event": "check", "passed": True} for i in range(3)]
SUMMARY = {
    "name": "lab1",
    "checks": [{"name": "x", "value": 0.9, "target": ">= 0.5", "ok": True, "spread": ""}],
    "seconds": 1.5,
    "command": "uv run python -m experiments.lab1_cnn",
}
READERS = {
    "png": Reader("a.png", lambda: encoded("PNG"), image_of, ImageError, lambda x: x.ndim == 3 and x.shape[2] == 3),
    "jpeg": Reader("a.jpg", lambda: encoded("JPEG"), image_of, ImageError, lambda x: x.ndim == 3 and x.shape[2] == 3),
    "webp": Reader("a.webp", lambda: encoded("WEBP"), image_of, ImageError, lambda x: x.ndim == 3 and x.shape[2] == 3),
    "gif": Reader("a.gif", lambda: encoded("GIF"), image_of, ImageError, lambda x: x.ndim == 3 and x.shape[2] == 3),
    "tiff": Reader("a.tif", lambda: encoded("TIFF"), image_of, ImageError, lambda x: x.ndim == 3 and x.shape[2] == 3),
    "xml": Reader(
        "a.xml", XML.encode, read_voc, DatasetUnavailable, lambda a: len(a.names) == len(a.boxes) and min(a.size) > 0
    ),
    "labels": Reader(
        "train-labels-idx1-ubyte",
        lambda: idx_of(np.arange(20) % 10),
        read_labels,
        ValueError,
        lambda split: len(split[1]) == 20 and int(split[1].max()) <= 9,
    ),
    "digits": Reader(
        "train-images-idx3-ubyte",
        lambda: idx_of(np.arange(2 * 28 * 28).reshape(2, 28, 28) % 256),
        read_images,
        ValueError,
        lambda split: split[0].shape == (2, 28, 28) and split[1].tolist() == [3, 7],
    ),
    "archive": Reader(
        "train-labels-idx1-ubyte.gz",
        lambda: gzip.compress(idx_of(np.arange(20) % 10), mtime=0),
        read_labels,
        ValueError,
        lambda split: len(split[1]) == 20 and int(split[1].max()) <= 9,
    ),
    "text": Reader(
        "a.txt", "déjà vu, 日本\n".encode, read_text, ValueError, lambda text: "\0" not in text and text != ""
    ),
    "json": Reader(
        "config.json",
        json.dumps({"seed": 3, "device": "cpu"}).encode,
        lambda path: as_flags(Config, path),
        UsageError,
        lambda flags: all(isinstance(flag, str) for flag in flags),
    ),
    "note": Reader("summary.json", json.dumps(SUMMARY).encode, lambda path: run_figures(path.parent), UsageError, bool),
    "log": Reader(
        "metrics.jsonl",
        lambda: b"".join(json.dumps(event).encode() + b"\n" for event in EVENTS),
        lambda path: read_log(path.parent, 3),
        UsageError,
        lambda found: len(found[1]) == 3,
    ),
    "safetensors": Reader(
        "a.safetensors", lambda: pretrained.save(TENSORS), pretrained.read, PretrainedError, lambda x: type(x) is dict
    ),
    "torch": Reader(
        "a.pth",
        lambda: saved(lambda file: torch.save(TENSORS, file)),
        pretrained.read,
        PretrainedError,
        lambda x: type(x) is dict,
    ),
    "checkpoint": Reader(
        "step-00000003-0123456789abcdef.safetensors", a_checkpoint, load_checkpoint, CheckpointError, lambda x: True
    ),
}


def refused(reader: Reader, path: Path) -> str:
    with pytest.raises(reader.refusal) as refusal, within(60):
        reader.read(path)
    message = str(refusal.value)
    assert message
    assert "\n" not in message
    return message


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as listener:  # its path may be 107 bytes
        listener.bind(path.name)


def make_vast(path: Path) -> None:
    """A file of a size beyond all limits, which takes no room."""
    with path.open("wb") as file:
        file.truncate(max(MOST_BYTES.values()) + 1)


def make_circle(path: Path) -> None:
    path.symlink_to(path.name)


ODD = {
    "a FIFO": (make_fifo, "a FIFO, not a regular file"),
    "a socket": (make_socket, "a socket, not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "a device, not a regular file"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "vast": (make_vast, rf"{max(MOST_BYTES.values()) + 1:,} bytes are more than [\d,]+"),
    "a link to itself": (make_circle, "Too many levels of symbolic links"),
    "nothing": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", READERS)
def test_no_reader_reads_what_is_no_regular_file_or_too_large(tmp_path, name, odd):
    reader, (make, reason) = READERS[name], ODD[odd]
    make(tmp_path / reader.name)
    message = refused(reader, tmp_path / reader.name)
    assert re.search(reason, message), message


@pytest.mark.parametrize("name", READERS)
def test_a_sound_file_is_read(tmp_path, name):
    reader = READERS[name]
    path = tmp_path / reader.name
    if name == "checkpoint":
        path = checkpoint.save(tmp_path, TENSORS, Progress(), keep=1)
    else:
        path.write_bytes(reader.content())
    assert reader.is_right(reader.read(path))


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return a file with a few bits flipped, cut off, doubled in part, or with bytes that readers stumble over."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, end = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
        odd = rng.choice((b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"-", b"NaN", b"1e999", b"\\ud800"))
        content = rng.choice(
            (
                content[:at],
                content[:at] + content[end:],
                content[:end] + content[at:],
                content[:at] + odd + content[at:],
                content[:at] + odd + content[at + len(odd) :],
                content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
                if at < len(content)
                else content,
            )
        )
    return content


def fuzz(reader: Reader, folder: Path, times: int) -> tuple[int, int]:
    """Return how many of so many damaged files were read, and how many refused."""
    content, rng, path, counts = reader.content(), random.Random(0), folder / reader.name, [0, 0]
    for _ in range(times):
        path.write_bytes(mutated(content, rng))
        try:
            with warnings.catch_warnings(), within(60):
                warnings.simplefilter("ignore")  # Pillow's, of damage that it reads past
                found = reader.read(path)
            assert reader.is_right(found), path.read_bytes()
            counts[0] += 1
        except reader.refusal as refusal:
            counts[1] += bool(str(refusal)) and "\n" not in str(refusal)
    return counts[0], counts[1]


@pytest.mark.parametrize("times", [300, pytest.param(5_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_right_or_refused_in_words(tmp_path, name, times):
    read, no = fuzz(READERS[name], tmp_path, times)
    assert read + no == times
    assert no


@pytest.mark.parametrize("times", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_the_progress_of_the_drills_survives_any_damage(monkeypatch, tmp_path, times):
    """It refuses nothing: lines that cannot be read are passed over."""
    monkeypatch.setattr(attempts, "file", lambda: tmp_path / "drills.jsonl")
    reader = Reader("drills.jsonl", READERS["log"].content, read_progress, ZeroDivisionError, lambda found: True)
    assert fuzz(reader, tmp_path, times) == (times, 0)


# JSON

NO_JSON = ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "[1, -1e999]", r'"\ud800"', r'{"\udfff": 1}']
NO_JSON += ["[" * 100_000, "9" * 5000, "", "{", "[1,]"]


@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: text[:12])
def test_what_is_no_strict_json_is_refused(text):
    with pytest.raises(ValueError, match=r"^\w.*$"):
        parse_json(text)


@pytest.mark.parametrize("value", [None, 1.5, -0.0, 10**30, "é😀", {"a": [1, {"b": "c"}]}, os.fsdecode(b"caf\xe9")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_strict_json_is_read_in_any_encoding_and_with_any_name_of_a_file(tmp_path, value, encoding):
    (tmp_path / "a.json").write_bytes(json.dumps(value).encode(encoding))
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("at", ["NaN", "Infinity", '"nan"', '"inf"', "1e999", "1e300", "-1", "null", "[]", '"\\ud800"'])
def test_a_time_that_is_none_does_not_count(monkeypatch, tmp_path, at):
    monkeypatch.setattr(attempts, "file", lambda: tmp_path / "drills.jsonl")
    good = '{"at": 5, "drill": "relu", "event": "start"}\n{"at": 65, "drill": "relu", "event": "check", "passed": true}'
    odd = f'{{"at": {at}, "drill": "relu", "event": "check", "passed": true}}'
    (tmp_path / "drills.jsonl").write_text(f"{odd}\n{good}\n{odd}\n")
    standing = attempts.standings()["relu"]
    assert (standing.attempts, standing.passes, standing.best) == (1, 1, 60.0)
    assert 65 < spacing.due(spacing.tries(attempts.task_events()))["relu"] < 65 + 30 * attempts.DAY


@pytest.mark.parametrize(
    "score", ['{"asked": 0, "right": 0}', '{"asked": 1e999, "right": 0}', '{"asked": 1, "right": 2}']
)
def test_a_score_that_cannot_be_is_refused(monkeypatch, tmp_path, score):
    (tmp_path / "quiz.json").write_text(f'{{"failures": {{"x": {score}}}}}')
    monkeypatch.setattr(quiz, "score_file", lambda: tmp_path / "quiz.json")
    with pytest.raises(UsageError, match=r"quiz.json cannot be read"):
        quiz.load_score()


@pytest.mark.parametrize(
    "summary",
    [
        "[]",
        '{"checks": [{"name": "\\ud800", "value": 1, "target": "", "ok": true}], "seconds": 1}',
        "{",
        '{"checks": 3}',
    ],
)
def test_a_damaged_summary_is_a_row_of_the_table(monkeypatch, tmp_path, capsys, summary):
    def run(command: list[str], **_: Any) -> Any:
        out = Path("runs") / command[2].removeprefix("experiments.")[:4]
        out.mkdir(parents=True)
        (out / "summary.json").write_text(summary)
        return type("Done", (), {"returncode": 0})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(labs.subprocess, "run", run)
    monkeypatch.setattr(labs.sys, "argv", ["labs"])
    assert labs.main() == 1
    assert capsys.readouterr().out.count("FAILED") == len(labs.LABS)


# Images


def png_of(width: int, height: int) -> bytes:
    """Return a PNG of zeros of that size, a thousandth as large."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    packer, row = zlib.compressobj(), bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row * min(10_000, height - i)) for i in range(0, height, 10_000)) + packer.flush()
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(1, 10_000_000), (100_000, 2), (9_500, 9_500), (13_400, 13_400)])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch, width, height):
    (tmp_path / "a.png").write_bytes(png_of(width, height))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it is decoded"))
    with pytest.raises(ImageError, match=r"pixels"):
        image_of(tmp_path / "a.png")


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"P7 332\n1 1 255\n0"]
)
def test_formats_that_no_camera_writes_are_not_tried(tmp_path, content):
    """PostScript would start another program."""
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match="cannot identify"):
        image_of(tmp_path / "a.png")


# MNIST


@pytest.fixture
def mnist_raw(monkeypatch, tmp_path):
    monkeypatch.setenv("FN_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "_torchvisions", lambda *_: pytest.fail("it would be downloaded"))
    return write_mnist(tmp_path / "MNIST" / "raw")


def test_mnist_is_its_bytes(mnist_raw):
    data = datasets.mnist()
    assert data.train.images.shape == (20, 1, 28, 28)
    assert data.train.labels.tolist() == [i % 10 for i in range(20)]
    levels = data.test.images[:, 0, 0, 0]
    assert ((levels - levels[0]) / (levels[1] - levels[0])).tolist() == pytest.approx(range(10), abs=1e-4)


FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@pytest.mark.parametrize("name", FILES)
def test_of_mnist_half_unpacked_the_archive_is_read(mnist_raw, name):
    """And without an archive the short file is named."""
    whole, path = datasets.mnist(), mnist_raw / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetUnavailable, match=rf"{name} cannot be read \(it holds [\d,]+ bytes, but says"):
        datasets.mnist()
    path.with_name(f"{name}.gz").write_bytes(gzip.compress(content))
    for _ in range(2):
        again = datasets.mnist()
        for one, other in zip(whole[:2], again[:2], strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train-labels-idx1-ubyte", idx_of(np.full(20, 10)), "label 0 is 10, not of 0 to 9"),
        ("train-labels-idx1-ubyte", idx_of(np.zeros(19)), "19 labels for the 20 images"),
        ("train-labels-idx1-ubyte", idx_of(np.zeros(20), kind=10), "type 0x0a, not bytes"),
        ("train-labels-idx1-ubyte", idx_of(np.zeros(20), kind=0x0D), "type 0x0d, not bytes"),
        ("train-labels-idx1-ubyte", b"<html>", "not begin with two zeros"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\xff\xff\xff\xff" + bytes(20), "says that they are 4,294,967,303"),
        ("train-labels-idx1-ubyte", idx_of(np.zeros(20)) + b"\0", "holds 29 bytes"),
        ("t10k-images-idx3-ubyte", idx_of(np.zeros((10, 28, 27))), "10×28×27 bytes, not of any×28×28"),
        ("t10k-images-idx3-ubyte", idx_of(np.zeros(10)), "an array of 10 bytes"),
        ("t10k-images-idx3-ubyte", b"", "not begin with two zeros"),
    ],
)
def test_files_of_mnist_that_are_damaged_are_named(mnist_raw, name, content, reason):
    (mnist_raw / name).write_bytes(content)
    with pytest.raises(DatasetUnavailable, match=reason) as refusal:
        datasets.mnist()
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(mnist_raw, monkeypatch):
    monkeypatch.setitem(MOST_BYTES, "idx", 30_000)
    (mnist_raw / FILES[0]).unlink()
    (mnist_raw / f"{FILES[0]}.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(DatasetUnavailable, match="unpacks to more than 30,000 bytes"):
        datasets.mnist()


# The cache


def test_what_is_no_file_in_the_cache_does_no_harm(tmp_path):
    build = lambda: {"x": torch.ones(3)}  # noqa: E731
    cached(build, {"of": 1}, tmp_path)
    [entry] = tmp_path.glob("*.safetensors")
    entry.unlink()
    os.mkfifo(entry)
    with within(60):
        assert cached(build, {"of": 1}, tmp_path)["x"].tolist() == [1, 1, 1]
        with pytest.raises(OSError, match="a device, not a regular file"):
            fingerprint(Path("/dev"), [Path("/dev/zero")])


# Texts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_text_is_read_by_its_byte_order_mark(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("déjà vu\r\n日本 😀\rx\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "déjà vu\n日本 😀\nx\n"


@pytest.mark.parametrize(
    "content",
    [
        *("plain".encode("utf-16-le"), "plain".encode("utf-16-be"), "слово".encode("utf-16-le")),
        *(bytes([97, control]) for control in range(32) if chr(control) not in "\t\n\v\f\r\x1a\x1b"),
        *(b"\xff\xfea", "a\0b".encode("utf-16")),
    ],
)
def test_a_text_with_control_characters_or_half_a_character_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.txt is no text in UTF-(8|16): ") as refusal:
        read_text(tmp_path / "a.txt")
    assert "\n" not in str(refusal.value)
