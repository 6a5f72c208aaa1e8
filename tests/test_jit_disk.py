"""A step that an earlier process compiled is run from the disk, and only if nothing that it hangs on has changed."""

import errno
import marshal
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fn import tree
from fn.jit import compiler, disk, jit
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.optim import adamw
from fn.rng import generator
from fn.train import TrainState, classifier_step, run_key

X = torch.arange(6.0)


@pytest.fixture
def traces(monkeypatch, tmp_path) -> list[int]:
    """Grows by one at each trace; the programs are kept in a folder of the test's own."""
    traces: list[int] = []
    trace = compiler._trace
    monkeypatch.setattr(compiler, "_trace", lambda *args: traces.append(1) or trace(*args))
    monkeypatch.setattr(disk, "folder", lambda: tmp_path)
    return traces


def classify(model, **options: Any) -> tuple[Callable, tuple, dict[str, Any]]:
    params, state = model.init(generator(0))
    rule = adamw(lr=1e-3)
    x, y = torch.randn(8, 1, 8, 8, generator=generator(1)), torch.arange(8)
    ts = TrainState(params, state, rule.init(params))
    return partial(jit, classifier_step(model, rule), **options), (ts, x, y), {"key": run_key(0)}


@pytest.mark.slow
@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("model", [mlp((1, 8, 8), 10, hidden=(16,)), cnn((1, 8, 8), 10)])
def test_from_the_disk_the_same_bits_as_compiled(traces, model, donate):
    wrap, (ts, *batch), named = classify(model, donate=donate)
    ends, traced, metrics = [], 0, {}
    for _ in range(2):
        step, new = wrap(), TrainState(**tree.map(torch.clone, ts._asdict()))
        for _ in range(3):
            new, metrics = step(new, *batch, **named)
        ends.append(tree.flatten({**new._asdict(), **metrics}))
        traced = traced or len(traces)
    assert len(traces) == traced
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


SECOND = """
import sys, torch
from fn.jit import jit
print(jit(lambda x: (x * 3 + 1).relu())(torch.arange(-2.0, 2.0)).tolist(), "torch._inductor" in sys.modules)
"""


@pytest.mark.slow
def test_the_next_process_does_not_import_the_compiler(tmp_path):
    def ran() -> subprocess.Popen[str]:
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        return subprocess.Popen([sys.executable, "-c", SECOND], env=env, stdout=subprocess.PIPE, text=True)

    both = [ran(), ran()]  # at once: neither reads half of what the other writes
    assert {process.communicate()[0].partition("]")[0] for process in both} == {"[0.0, 0.0, 1.0, 4.0"}
    assert ran().communicate()[0] == "[0.0, 0.0, 1.0, 4.0] False\n"
    assert len([*(tmp_path / "functional-torch").iterdir()]) == 2  # that of the step and that of its graph


@pytest.fixture
def compilations(monkeypatch) -> list[int]:
    """Grows by one whenever TorchInductor is asked."""
    compilations: list[int] = []
    compile_graph = compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda *args: compilations.append(1) or compile_graph(*args))
    return compilations


@pytest.mark.slow
def test_a_step_without_a_fingerprint_is_traced_each_time_but_its_graph_is_compiled_once(traces, compilations, capsys):
    def step(x: Tensor, n: float) -> Tensor:
        print("traced")
        return x * n + 1 if n else x.exp()

    def ran(x: Tensor, n: float) -> tuple[int, int]:
        torch.testing.assert_close(jit(step)(x, n), step(x, n), rtol=0, atol=0)
        return len(traces), len(compilations)

    assert [ran(X, 2.0), ran(X, 2.0)] == [(1, 1), (2, 1)]
    assert ran(X, 3.0) == (3, 2)  # another number
    assert ran(X.double(), 3.0) == (4, 3)
    assert ran(X.new_ones(2, 6), 3.0) == (5, 4)
    assert ran(X.new_ones(2, 6), 0.0)[1] == 5
    assert ran(X, 2.0)[1] == 5


@pytest.mark.slow
def test_a_graph_is_compiled_anew_for_other_settings_and_where_its_input_is_donated(traces, compilations):
    def step(x: Tensor) -> tuple[Tensor]:
        return (x * 1.25 + 0 * torch.initial_seed(),)  # for which it has no fingerprint

    def ran(*, donate: bool = False) -> int:
        x = X.clone()
        (y,) = jit(step, donate=donate)(x)
        assert (y is x) == donate
        return len(compilations)

    assert [ran(), ran(donate=True), ran(), ran(donate=True)] == [1, 2, 2, 2]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert ran() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_what_a_graph_holds_is_that_of_the_step_that_runs(traces, compilations):
    """Two steps with one graph, which hold different tensors, made while they are traced."""

    def step(numbers: list[float]) -> Tensor:
        return jit(lambda x: x.reshape(2, 3) * torch.tensor(numbers))(X)

    assert step([1.0, 2.0, 3.0])[0].tolist() == [0.0, 2.0, 6.0]
    assert step([0.0, 3.0, 0.5])[0].tolist() == [0.0, 3.0, 1.0]
    assert len(compilations) == 1


def test_a_step_that_leaves_something_behind_is_traced_anew(traces):
    """Its Python would not run in the next process."""
    shapes: list[int] = []

    def step(x: Tensor) -> Tensor:
        shapes.append(x.numel())
        return x * 2

    for n in (1, 2):
        shapes.clear()
        jit(step)(X)
        assert (shapes, len(traces)) == ([6], n)


def damage_entry(entry: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-1])


def flip_a_bit(entry: Path) -> None:
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)


def remove_kernel(entry: Path) -> None:
    for file, _ in pickle.loads(entry.read_bytes()[disk.DIGITS :])[1].kernels.values():
        Path(file).rename(file + ".away")


def change_kernel(entry: Path) -> None:
    for file, _ in pickle.loads(entry.read_bytes()[disk.DIGITS :])[1].kernels.values():
        copy = Path(file).read_bytes()
        Path(file).unlink()  # the one in memory stays as it is
        Path(file).write_bytes(copy + b"\0")


DAMAGES = [damage_entry, flip_a_bit, remove_kernel, change_kernel]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(traces, compilations, tmp_path, damage):
    scale = 1 + DAMAGES.index(damage) / 7

    def step(x: Tensor) -> Tensor:
        return x * scale + math.pi

    def ran() -> int:
        torch.testing.assert_close(jit(step)(X), step(X))
        return len(traces)

    assert (ran(), ran()) == (1, 1)
    entries = [*tmp_path.iterdir()]
    assert len(entries) == 2
    damaged = entries[:1] if damage in (remove_kernel, change_kernel) else entries  # both have the same kernels
    for entry in damaged:
        damage(entry)
    for entry in entries:
        assert disk.load(entry.name) is None
        assert not entry.exists()
    assert ran() == 2
    for entry in entries:
        assert entry.exists() == (damage is not remove_kernel)  # which this process still has in memory
    if damage is not remove_kernel:
        for entry in damaged:
            damage(entry)
        assert (ran(), len(compilations)) == (3, 3)  # jit meets the damage itself


WRITER = """
import marshal, sys, torch
from fn.jit import disk
found = []
for i in range(200):
    scale = torch.full((5_000,), float(i))
    disk.keep("a" * 64, disk.Parts(marshal.dumps((lambda self, leaves: leaves).__code__), {}, [scale]), ())
    (constant,) = disk.load("a" * 64).parts.constants
    assert constant.unique().numel() == 1
    found.append(float(constant[0]) == i)
print(sum(found))
"""


def test_two_processes_that_write_one_entry_each_read_a_whole_one(tmp_path):
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", WRITER], env=env, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    own = [int(process.communicate()[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(own)


def test_an_entry_of_another_step_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "folder", lambda: tmp_path)
    parts = disk.Parts(b"", {}, [])
    disk.keep("a" * 64, parts, ())
    (tmp_path / ("a" * 64)).rename(tmp_path / ("b" * 64))
    assert disk.load("b" * 64) is None


def test_the_entries_used_longest_ago_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "folder", lambda: tmp_path)
    monkeypatch.setattr(disk, "MANY", 3)
    for n, name in enumerate("abcd"):
        disk.keep(name * 64, disk.Parts(b"", {}, []), ())
        os.utime(tmp_path / (name * 64), (n, n))
    disk.keep("e" * 64, disk.Parts(b"", {}, []), ())
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["c", "d", "e"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a FIFO")
def test_what_is_no_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "folder", lambda: tmp_path)
    os.mkfifo(tmp_path / ("a" * 64))
    assert disk.load("a" * 64) is None


@pytest.mark.slow
def test_an_entry_is_read_where_nothing_can_be_written(traces, monkeypatch):
    def refuse(*args: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    jit(lambda x: x * 5 - 1)(X)
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert jit(lambda x: x * 5 - 1)(X).tolist() == (X * 5 - 1).tolist()
    assert len(traces) == 1


def test_nothing_is_kept_where_inductor_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "folder", lambda: tmp_path)
    disk.keep("a" * 64, disk.Parts(marshal.dumps(compile("0", "", "eval")), {}, []), ())
    assert disk.load("a" * 64)
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    disk.keep("b" * 64, disk.Parts(b"", {}, []), ())
    assert disk.load("a" * 64) is None
    assert [path.name for path in tmp_path.iterdir()] == ["a" * 64]


def test_a_folder_that_cannot_be_written_to_costs_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(disk, "folder", lambda: tmp_path / "file" / "folder")
    disk.keep("a" * 64, disk.Parts(b"", {}, []), ())
    assert disk.load("a" * 64) is None


@pytest.mark.parametrize("step", [lambda x: x, lambda x: x[1:], lambda x: (y := x + 1, y[1:])])
def test_results_that_share_memory_do_so_in_every_run(traces, step):
    def memory(results: Tensor | tuple[Tensor, ...]) -> list[int]:
        """For the argument and each result, the first of them with the same storage."""
        tensors = [x, *(results if isinstance(results, tuple) else [results])]
        pointers = [t.untyped_storage().data_ptr() for t in tensors]
        return [pointers.index(pointer) for pointer in pointers]

    for _ in range(2):
        x = X.clone()
        results, expected = jit(step)(x), step(x)
        torch.testing.assert_close(results, expected, rtol=0, atol=0)
        assert memory(results) == memory(expected)
    assert not [*disk.folder().iterdir()]


def test_a_tensor_that_the_step_makes_of_numbers_is_kept_with_it(traces):
    def step(x: Tensor) -> Tensor:
        return x.reshape(2, 3) + torch.tensor([[0.5], [7.0]]) * torch.tensor([1.0, 2.0, 3.0])

    for _ in range(2):
        torch.testing.assert_close(jit(step)(X), step(X), rtol=0, atol=0)
    assert len(traces) == 1


def test_a_leaf_that_requires_a_gradient_enters_as_a_value(traces):
    weight = torch.ones(6, 6, requires_grad=True)
    for _ in range(2):
        result = jit(lambda w, x: torch.addmm(x, w, w))(weight, X)
        assert not result.requires_grad
        torch.testing.assert_close(result, torch.full((6, 6), 6.0) + X)
