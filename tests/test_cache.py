"""The cache returns the tensors that a build returns, whatever happens to its files; digests show every damage."""

import errno
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fn.data import cache
from fn.data.cache import cached, fingerprint, user_cache
from fn.files import is_sound, remove_leftovers, write_digested
from fn.rng import generator

TENSORS = {
    "bytes": torch.randint(256, (50, 3, 7), generator=generator(0), dtype=torch.uint8).transpose(0, 2),
    "floats": torch.randn(40, 30, generator=generator(1)),
    "labels": torch.arange(50),
}


class Build:
    """Returns TENSORS and counts the calls."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.times += 1
        return TENSORS


@pytest.fixture
def build() -> Build:
    return Build()


def assert_equal_tensors(tensors: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert tensors[name].dtype == x.dtype
        assert torch.equal(tensors[name], x)


def only_file(folder: Path) -> Path:
    """Return the one file of the folder; ValueError if there are more or none."""
    (file,) = folder.iterdir()
    return file


def test_each_parameters_are_built_once(build, tmp_path):
    for parameters in ({"a": 1, "b": "x"}, {"b": "x", "a": 1}, {"a": 1, "b": "x"}):
        assert_equal_tensors(cached(build, parameters, tmp_path))
    assert build.times == 1
    for n, parameters in enumerate([{"a": 2, "b": "x"}, {"a": 1}, {"a": 1, "c": "x"}, {"a": "1", "b": "x"}, {}], 2):
        assert_equal_tensors(cached(build, parameters, tmp_path))
        assert build.times == n
        assert len(list(tmp_path.iterdir())) == n
    assert all(map(is_sound, tmp_path.iterdir()))


def test_entries_are_in_the_users_cache_unless_told(build, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    assert user_cache() == tmp_path / "here" / "functional-torch"
    cached(build, {})
    assert is_sound(only_file(user_cache() / "tensors"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache() == tmp_path / "home" / ".cache" / "functional-torch"


def flip_bit(content: bytes, at: int, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[at] ^= 1 << bit
    return bytes(damaged)


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content + b"\0",
        *(lambda content, at=at: flip_bit(content, at, 0) for at in (0, 7, 8, 30, 500, -1)),
    ],
)
def test_a_damaged_entry_is_built_anew(build, tmp_path, damage):
    assert_equal_tensors(cached(build, {}, tmp_path))
    entry, content = only_file(tmp_path), only_file(tmp_path).read_bytes()
    entry.write_bytes(damage(content))
    for _ in range(2):
        assert_equal_tensors(cached(build, {}, tmp_path))
        assert build.times == 2
    assert only_file(tmp_path) == entry
    assert entry.read_bytes() == content


def test_an_entry_of_another_digest_does_not_stay(build, tmp_path):
    cached(build, {}, tmp_path)
    entry = only_file(tmp_path)
    entry.rename(tmp_path / f"{entry.stem.split('-')[0]}-{'0' * 16}{entry.suffix}")
    assert_equal_tensors(cached(build, {}, tmp_path))
    assert only_file(tmp_path) == entry


def test_a_pickle_in_place_of_an_entry_is_not_unpickled(build, tmp_path):
    cached(build, {}, tmp_path / "cache")
    only_file(tmp_path / "cache").write_bytes(pickle.dumps(Touch(tmp_path / "harm")))
    assert_equal_tensors(cached(build, {}, tmp_path / "cache"))
    assert build.times == 2
    assert not (tmp_path / "harm").exists()


def is_mapped(x: torch.Tensor, file: Path) -> bool:
    """Return whether the memory of x is a mapping of `file`."""
    spans = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    ends = [[int(end, base=16) for end in span.split("-")] for span in spans]
    return any(low <= x.data_ptr() and x.data_ptr() + x.nbytes <= high for low, high in ends)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not say what is mapped")
def test_an_entry_is_memory_mapped_from_the_first_call_on(build, tmp_path):
    for _ in range(2):
        tensors = cached(build, {}, tmp_path)
        assert all(is_mapped(x, only_file(tmp_path)) for x in tensors.values())
    assert not is_mapped(TENSORS["floats"], only_file(tmp_path))


def test_writing_into_a_tensor_does_not_reach_the_file(build, tmp_path):
    for _ in range(2):
        for x in cached(build, {}, tmp_path).values():
            x.zero_()
        assert is_sound(only_file(tmp_path))
    assert_equal_tensors(cached(build, {}, tmp_path))
    assert build.times == 1


def build_at_once(folder: Path, barrier) -> None:
    """Build an entry; the barrier lets no process write before both have missed it."""

    def build():
        barrier.wait()
        return TENSORS

    assert_equal_tensors(cached(build, {}, folder))


@pytest.mark.slow
def test_two_processes_may_build_one_entry_at_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2, timeout=600)  # both first import torch
    processes = [spawn.Process(target=build_at_once, args=(tmp_path, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert is_sound(only_file(tmp_path))


def test_an_entry_may_appear_while_it_is_being_built(build, tmp_path):
    assert_equal_tensors(cached(lambda: cached(build, {}, tmp_path), {}, tmp_path))
    assert_equal_tensors(cached(build, {}, tmp_path))
    assert build.times == 1
    assert is_sound(only_file(tmp_path))


@pytest.mark.parametrize(
    "found", [lambda entry: entry.unlink() or False, lambda entry: entry.unlink() or is_sound(entry)]
)
def test_an_entry_may_vanish_while_it_is_being_judged(build, monkeypatch, tmp_path, found):
    """Another process found it damaged, too."""
    cached(build, {}, tmp_path)
    monkeypatch.setattr(cache, "is_sound", found)
    assert_equal_tensors(cached(build, {}, tmp_path))
    assert build.times == 2
    assert is_sound(only_file(tmp_path))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_where_nothing_can_be_written_only_time_is_lost(build, monkeypatch, tmp_path, number):
    def fail(*args, **options):
        raise OSError(number, os.strerror(number))

    cached(build, {}, tmp_path)
    only_file(tmp_path).write_bytes(b"damaged")
    monkeypatch.setattr(cache, "write_digested", fail)
    monkeypatch.setattr(Path, "unlink", fail)
    for times in (2, 3):
        assert_equal_tensors(cached(build, {}, tmp_path))
        assert build.times == times


def test_what_cannot_be_built_is_not_cached(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cached(lambda: {"x": torch.tensor(1 // 0)}, {}, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def write_files(root: Path, **contents: bytes) -> list[Path]:
    """Write a file per keyword: `a1=b"x"` is file 1 in folder a."""
    for (folder, name), content in contents.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(content)
    return [root / folder / name for folder, name in contents]


def test_a_fingerprint_is_of_names_and_contents_alone(tmp_path):
    files = write_files(tmp_path / "one", a1=b"x", a2=b"yz", b1=b"")
    expected = fingerprint(tmp_path / "one", files)
    os.utime(files[0], (0, 0))
    assert fingerprint(tmp_path / "one", reversed(files)) == expected
    assert fingerprint(tmp_path / "two", write_files(tmp_path / "two", b1=b"", a2=b"yz", a1=b"x")) == expected
    others = [
        {"a1": b"x", "a2": b"yz"},  # a file less
        {"a1": b"x", "a2": b"yZ", "b1": b""},  # other content
        {"a1": b"yz", "a2": b"x", "b1": b""},  # exchanged
        {"a1": b"xy", "a2": b"z", "b1": b""},  # another border
        {"a1": b"x", "a3": b"yz", "b1": b""},  # another name
        {"a1": b"x", "a2": b"yz", "c1": b""},  # another folder
    ]
    found = [
        fingerprint(root, write_files(root, **other)) for i, other in enumerate(others) for root in [tmp_path / f"_{i}"]
    ]
    assert len({expected, *found}) == 1 + len(others)


# Files whose names hold the digest of their content.


def test_the_name_of_a_file_is_its_sha256(tmp_path):
    """FIPS 180-2, appendix B.1: the digest of abc is ba7816bf 8f01cfea …"""
    path = write_digested(tmp_path / "new", "x-y", ".bin", b"abc")
    assert path == tmp_path / "new" / "x-y-ba7816bf8f01cfea.bin"
    assert path.read_bytes() == b"abc"
    assert is_sound(path)


@given(st.binary(min_size=1, max_size=300), st.data())
def test_any_damage_shows(tmp_path_factory, content, data):
    folder = tmp_path_factory.getbasetemp() / "damage"
    path = write_digested(folder, "x", ".bin", content)
    assert is_sound(path)
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    bit = flip_bit(content, data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7)))
    for damaged in (cut, bit, content + b"\0"):
        path.write_bytes(damaged)
        assert not is_sound(path)
    path.unlink()


@pytest.mark.parametrize("name", ["x.bin", "x-ba7816bf8f01cfe.bin", "ba7816bf8f01cfea.bin", "x-ba7816bf8f01cfeb.bin"])
def test_a_file_whose_name_does_not_say_is_not_sound(tmp_path, name):
    (tmp_path / name).write_bytes(b"abc")
    assert not is_sound(tmp_path / name)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        is_sound(tmp_path / "x-ba7816bf8f01cfea.bin")


def test_what_a_killed_writer_left_is_removed_when_it_is_old(monkeypatch, tmp_path):
    """A kill leaves no time to tidy up: neither to rename nor to remove."""
    kept = [tmp_path / ".x", tmp_path / "y", write_digested(tmp_path, "x", ".bin", b"abc")]
    for path in kept[:2]:
        path.touch()

    def kill(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as late:
        late.setattr(Path, "replace", kill)
        late.setattr(Path, "unlink", lambda *args, **options: None)
        with pytest.raises(KeyboardInterrupt):
            write_digested(tmp_path, "x", ".bin", b"abcd")
    (aside,) = set(tmp_path.iterdir()) - set(kept)
    remove_leftovers(tmp_path)
    assert aside.exists()
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == set(kept)
