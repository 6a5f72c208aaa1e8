"""A checkpoint is loaded bit for bit, or refused in one line; a failed write leaves the earlier files whole."""

import hashlib
import json
import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save as to_bytes

from fn import checkpoint, rng, tree
from fn.checkpoint import CheckpointError, Progress

TENSORS = {
    "params": {"fc": {"weight": torch.randn(3, 5).T, "bias": torch.zeros(3).expand(3)}, "scale": torch.tensor(2.0)},
    "state": {},
    "opt_state": {"step": torch.tensor(7), "mask": torch.tensor([True, False]), "half": torch.randn(4).bfloat16()},
}
TIED = torch.randn(6)
PROGRESS = Progress(7, 1, 2, {"examples": 128, "loss": 0.1 + 0.2}, 9, 1 / 3, 1, {"any": [1, None, 2.5]})


def save_at(folder: Path, step: int = 7, *, keep: int = 3, best: bool = False, save: Any = checkpoint.save) -> Path:
    return save(folder, TENSORS, PROGRESS._replace(step=step), keep=keep, best=best)


def write_named(folder: Path, content: bytes) -> Path:
    """Write a file under a name that fits its content."""
    path = folder / f"step-00000007-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    path.write_bytes(content)
    return path


def overwrite(folder: Path, content: bytes) -> Path:
    """Save a checkpoint, then replace its content but not its name."""
    path = save_at(folder)
    path.write_bytes(content)
    return path


def load_refused(path: Path, like: Any = TENSORS) -> str:
    """Return the one-line message with which loading the file is refused."""
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(path, like)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_what_is_saved_comes_back_bit_for_bit(save, tmp_path):
    tensors = TENSORS | {"tied": {"a": TIED, "b": TIED[2:]}}
    path = save(tmp_path, tensors, PROGRESS, keep=1)
    back, progress = checkpoint.load(path, tensors)
    tree.map(lambda a, b: None if torch.equal(a, b) and a.dtype == b.dtype else pytest.fail(f"{a} {b}"), tensors, back)
    assert progress == PROGRESS
    assert all(x.is_contiguous() and x.data_ptr() % 64 == 0 for x in tree.leaves(back))
    assert save(tmp_path / "again", back, progress, keep=1).name == path.name


def test_the_last_few_and_the_best_are_kept(save, tmp_path):
    for step in range(1, 9):
        save_at(tmp_path, step, best=step in (2, 5), keep=3, save=save)
    assert [checkpoint.step_of(path) for path in checkpoint.find(tmp_path)] == [6, 7, 8]
    assert [checkpoint.step_of(path) for path in checkpoint.find(tmp_path, "best")] == [5]
    assert len(list(tmp_path.iterdir())) == 4
    assert checkpoint.load_newest(tmp_path, TENSORS)[1].step == 8


def test_steps_beyond_eight_digits_are_still_in_order(save, tmp_path):
    for step in (100_000_000, 99_999_999):
        save_at(tmp_path, step, save=save)
    assert checkpoint.load_newest(tmp_path, TENSORS)[1].step == 100_000_000


def test_any_flipped_bit_is_noticed(tmp_path):
    content = save_at(tmp_path).read_bytes()
    places = random.Random(0).sample(range(8 * len(content)), 100)
    for place in [*range(64), *places]:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        assert re.search("is damaged|is a pickle", load_refused(overwrite(tmp_path, bytes(damaged))))


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, -1])
def test_a_truncated_file_is_noticed(tmp_path, left):
    content = save_at(tmp_path).read_bytes()[:left]
    assert ("is empty" if not left else "is damaged") in load_refused(overwrite(tmp_path, content))


def test_a_sound_file_may_begin_as_a_pickle_does(tmp_path):
    """With the length of its header, of which one byte in 32 is 0x80, pickle's first."""
    paths = [
        checkpoint.save(tmp_path / f"{n}", TENSORS, PROGRESS._replace(data="x" * 8 * n), keep=1) for n in range(32)
    ]
    [alike] = [path for path in paths if path.read_bytes()[:1] == b"\x80"]
    assert checkpoint.load(alike, TENSORS)[1].step == PROGRESS.step


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [None, 2, 4, 5])
@pytest.mark.parametrize("under", [write_named, overwrite])
def test_a_pickle_under_our_name_is_not_opened(tmp_path, protocol, under):
    bomb = Bomb(tmp_path / "executed")
    if protocol is None:
        torch.save({"step": bomb}, tmp_path / "archive")
        content = (tmp_path / "archive").read_bytes()
    else:
        content = pickle.dumps(bomb, protocol)
    assert "is a pickle, which could run code if it were opened: it was not" in load_refused(under(tmp_path, content))
    assert not (tmp_path / "executed").exists()


def header(**values: Any) -> bytes:
    """Return the bytes of a sound file with other values in its header."""
    body = {"version": checkpoint.VERSION, "progress": PROGRESS._asdict()} | values
    return to_bytes({"w": torch.ones(1)}, {checkpoint.KEY: json.dumps(body)})


def progress(**values: Any) -> bytes:
    """Return the bytes of a sound file with other values in its progress."""
    return header(progress=PROGRESS._asdict() | values)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff" * 100, "is not a safetensors file"),
        (b"{}", "is not a safetensors file"),
        ((10).to_bytes(8, "little") + b'{"a":[[[[[', "is not a safetensors file"),
        (b"[" * 100_000, "is not a safetensors file"),
        (to_bytes({"w": torch.ones(1)}), "holds tensors, but is not a checkpoint"),
        (to_bytes({"w": torch.ones(1)}, {"format": "pt"}), "holds tensors, but is not a checkpoint"),
        (header(version=2), "is of version 2 of the format, not 1"),
        (header(version=None), "is of version None of the format, not 1"),
        (header(progress=[1, 2]), "does not say where its run stood"),
        (header(progress={"step": 1}), "does not say where its run stood"),
        (to_bytes({"w": torch.ones(1)}, {checkpoint.KEY: "[" * 100_000}), "does not say where its run stood"),
        (to_bytes({"w": torch.ones(1)}, {checkpoint.KEY: "3"}), "does not say where its run stood"),
        (progress(data=3), "says that data is '3'"),
        (progress(step=-1), "says that step is '-1'"),
        (progress(epoch="one"), "says that epoch is 'one'"),
        (progress(totals={"examples": 3, "loss": "0"}), "says that totals is"),
        (progress(generators=None), "says that generators is 'None'"),
        (progress(best="__import__('os')"), "says that best is"),
    ],
)
def test_a_hostile_file_of_the_right_name_is_refused_in_words(tmp_path, content, reason):
    assert reason in load_refused(write_named(tmp_path, content))


@pytest.mark.parametrize(
    ("name", "leaf", "reason"),
    [
        ("params.fc.weight", torch.ones(3, 5), "params.fc.weight is float32[5, 3] in it, float32[3, 5] in this one"),
        ("params.scale", torch.tensor(2.0).double(), "params.scale is float32[] in it, float64[] in this one"),
        ("params.more", torch.ones(1), "params.more is missing in it, float32[1] in this one"),
        ("opt_state.step", None, "opt_state.step is int64[] in it, missing in this one"),
    ],
)
def test_another_models_checkpoint_is_refused_by_its_first_difference(tmp_path, name, leaf, reason):
    other = {n: x for n, x in (tree.flatten(TENSORS) | {name: leaf}).items() if x is not None}
    assert f"is of another model: {reason}" in load_refused(save_at(tmp_path), tree.unflatten(other))


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    assert "cannot be read (No such file or directory)" in load_refused(
        tmp_path / "step-00000001-0123456789abcdef.safetensors"
    )
    assert "cannot be read" in load_refused(tmp_path)


def test_the_newest_sound_checkpoint_is_offered(tmp_path):
    paths = [save_at(tmp_path, step) for step in (1, 2, 3)]
    for path in paths[1:]:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=f"{paths[2].name} is damaged.*; the newest sound one is .*{paths[0].name}$"
    ):
        checkpoint.load_newest(tmp_path, TENSORS)
    paths[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"none of the others is sound$"):
        checkpoint.load_newest(tmp_path, TENSORS)
    with pytest.raises(CheckpointError, match=r"holds no checkpoint$"):
        checkpoint.load_newest(tmp_path / "elsewhere", TENSORS)


@pytest.mark.parametrize("best", [False, True])
def test_a_write_that_fails_leaves_what_was_there(save, monkeypatch, tmp_path, best):
    save_at(tmp_path, 1, best=True, keep=1, save=save)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_at(tmp_path, 2, best=best, keep=1, save=save)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_generator_goes_on_where_it_stood():
    draws = lambda: [torch.rand(3).tolist(), random.random(), random.gauss(), numpy.random.rand(), numpy.random.randn()]  # noqa: E731
    rng.seed_global_state(3)
    draws()
    state = json.loads(json.dumps(rng.global_state()))
    expected = draws()
    rng.seed_global_state(4)
    assert draws() != expected
    rng.set_global_state(state)
    assert draws() == expected
