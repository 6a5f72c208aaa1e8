"""A step that an earlier process compiled is run from the disk, and only if nothing that it hangs on has changed."""

import math
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fn import tree
from fn.jit import compiler, disk, jit
from fn.jit.fingerprint import fingerprint
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
    assert len([*(tmp_path / "functional-torch").iterdir()]) == 1


FACTOR = 2.0
TABLE = {"relu": torch.relu}
HELPERS = ModuleType("helpers")
vars(HELPERS).update(__file__="helpers.py", scale=lambda x: 2 * x)
DEPTH, DEEPER = ContextVar("DEPTH", default=1), ContextVar("DEPTH", default=2)


def inner(x: Tensor) -> Tensor:
    return x + 1


def outer(x: Tensor) -> Tensor:
    return inner(x)


@cache
def remembered(n: int) -> int:
    return n + 1


class Layer(NamedTuple):
    width: int

    def apply(self, x: Tensor) -> Tensor:
        return x * self.width


class Counter:
    def __init__(self) -> None:
        self.count = 1

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.count


COUNTER = Counter()


def other(x: Tensor) -> Tensor:
    return x + 2


OTHER = other.__code__
STEPS: dict[str, tuple[Callable, Callable[[pytest.MonkeyPatch], Any]]] = {
    "a function that is called": (outer, lambda m: m.setattr(sys.modules[__name__], "inner", other)),
    "its code": (outer, lambda m: m.setattr(inner, "__code__", OTHER)),
    "its annotations": (outer, lambda m: m.setattr(inner, "__annotations__", {"x": int})),
    "a number read by name": (lambda x: x * FACTOR, lambda m: m.setattr(sys.modules[__name__], "FACTOR", 3.0)),
    "a function in a table": (lambda x: TABLE["relu"](x), lambda m: m.setitem(TABLE, "relu", torch.tanh)),
    "a function of a module": (lambda x: HELPERS.scale(x), lambda m: m.setattr(HELPERS, "scale", other)),
    "a function of torch": (lambda x: F.relu(x), lambda m: m.setattr(F, "relu", other)),
    "a function in a function": (lambda x: [outer(y) for y in x], lambda m: m.setattr(inner, "__code__", OTHER)),
    "a default": (partial(lambda x, f=inner: f(x)), lambda m: m.setattr(inner, "__code__", OTHER)),
    "a remembered function": (lambda x: x * remembered(1), lambda m: m.setattr(remembered, "__wrapped__", other)),
    "a method": (lambda x: Layer(2).apply(x), lambda m: m.setattr(Layer, "apply", lambda self, x: x)),
    "an attribute": (lambda x: COUNTER(x), lambda m: m.setattr(COUNTER, "count", 2)),
    "a bound method": (COUNTER.__call__, lambda m: m.setattr(COUNTER, "count", 2)),
    "the call of an object": (COUNTER, lambda m: m.setattr(Counter, "__call__", lambda self, x: x)),
    "a context variable": (
        lambda x: x * DEPTH.get(),
        lambda m: m.setattr(sys.modules[__name__], "DEPTH", DEEPER),
    ),
    "the default dtype": (lambda x: x + torch.ones(1), lambda m: torch.set_default_dtype(torch.float64)),
    "the threads": (outer, lambda m: torch.set_num_threads(torch.get_num_threads() + 1)),
    "an option of the compiler": (outer, lambda m: m.setenv("TORCHINDUCTOR_CPP_GEMM_MAX_K_SLICES", "2")),
    "autocast": (outer, lambda m: torch.set_autocast_enabled("cpu", True)),
    "the precision of matmul": (outer, lambda m: torch.set_float32_matmul_precision("medium")),
}


@pytest.fixture
def settings() -> Iterator[None]:
    dtype, threads, precision = torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_autocast_enabled("cpu", False)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("what", STEPS)
def test_the_fingerprint_changes_with(what):
    step, change = STEPS[what]
    before = fingerprint(step)
    assert before is not None
    assert fingerprint(step) == before
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        assert fingerprint(step) != before


def made(n: float, f: Callable) -> Callable:
    def step(x: Tensor) -> Tensor:
        return f(x) * n

    return step


def test_the_fingerprint_tells_what_a_function_closes_over():
    step = made(2, inner)
    assert fingerprint(step) == fingerprint(made(2, inner)) is not None
    others = made(3, inner), made(2, other), made(2.0, inner)
    assert len({fingerprint(f) for f in (step, *others)}) == 4


def writes(x: Tensor) -> Tensor:
    global FACTOR
    FACTOR = 3.0
    return x


def imports(x: Tensor) -> Tensor:
    from fn.rng import generator

    return x + len(str(generator(0)))


HELD = torch.ones(3)
UNKNOWN: dict[str, Callable] = {
    "the time": lambda x: x + time.time(),
    "a random number": lambda x: x + random.random(),
    "an environment variable": lambda x: x + len(os.environ["HOME"]),
    "a file": lambda x: x + open(x),  # noqa: PTH123, SIM115
    "what is printed": lambda x: print(x.shape) or x,
    "a held tensor": lambda x: x + HELD,
    "a tensor in an object": SimpleNamespace(x=HELD).__eq__,
    "a global that is written": writes,
    "an import of ours": imports,
    "a module that is handed on": lambda x: str(HELPERS),
    "a library that may do anything": lambda x: x + pytest.approx(1.0).expected,
    "a name that is nowhere": lambda x: x + nowhere,  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    "a generator": (n for n in range(3)).__next__,
    "eval": lambda x: eval("x + 1"),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_no_fingerprint_with(what):
    assert fingerprint(UNKNOWN[what]) is None


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
def test_what_is_damaged_is_made_again(traces, tmp_path, damage):
    scale = 1 + DAMAGES.index(damage) / 7

    def step(x: Tensor) -> Tensor:
        return x * scale + math.pi

    def ran() -> int:
        torch.testing.assert_close(jit(step)(X), step(X))
        return len(traces)

    assert (ran(), ran()) == (1, 1)
    [entry] = tmp_path.iterdir()
    damage(entry)
    assert disk.load(entry.name) is None
    assert not entry.exists()
    assert ran() == 2
    assert entry.exists() == (damage is not remove_kernel)  # which this process still has in memory


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
