"""jit: the same results, errors and purity as the step, without its Python."""

import ast
import math
import os
import platform
import shutil
import subprocess
import sys
import threading
import traceback
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor, vmap
from torch.func import grad

from fn import jit as jit_module
from fn import train, tree
from fn.data.datasets import Split
from fn.data.loader import batches
from fn.gradcheck import largest
from fn.jit import JitError, compiler, contents, jit
from fn.layers import relu
from fn.losses import cross_entropy
from fn.models import Model
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.optim import adamw, clip_by_global_norm, cosine_schedule
from fn.rng import generator, uniform
from fn.rng import key as rng_key
from fn.train import TrainState, classification_loss, classifier_step, run_key
from fn.train_variants import accumulated_step, mixed_precision
from fn.train_variants import compiled as compile_for_batches

MODELS = {
    "mlp": mlp((1, 8, 8), 10, hidden=(12,), dropout_p=0.3),
    "cnn": cnn((1, 8, 8), 10, widths=(3, 5), dropout_p=0.3),
}
OPTIMIZER = clip_by_global_norm(adamw(lr=partial(cosine_schedule, lr=1e-2, total_steps=60)), 1.0)


def examples(n: int, seed: int = 0) -> Split:
    rng = generator(seed)
    return Split(torch.rand(n, 1, 8, 8, generator=rng), torch.randint(10, (n,), generator=rng))


def start(model: Model) -> TrainState:
    return train.init_train_state(model, OPTIMIZER, seed=0)


class Watched:
    """Counts how often the Python of an objective runs."""

    def __init__(self, model: Model) -> None:
        self.model, self.runs = model, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return classification_loss(*args, apply=self.model.apply, **kwargs)


def watched_step(model: Model) -> tuple[Watched, Any]:
    objective = Watched(model)
    return objective, partial(train.train_step, objective=objective, optimizer=OPTIMIZER)


def largest_gap(a: TrainState, b: TrainState) -> float:
    gaps = tree.map(lambda x, y: (x.double() - y.double()).abs().max(), a._asdict(), b._asdict())
    return largest(tree.leaves(gaps))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accumulate"), [("mlp", 1), pytest.param("cnn", 2, marks=pytest.mark.longest)])
def test_fifty_steps_agree_with_the_step_and_run_none_of_its_python(name, accumulate):
    """Dropout, clipping and a schedule included; every batch another."""
    model = MODELS[name]
    objective, step = watched_step(model)
    eager = classifier_step(model, OPTIMIZER)
    if accumulate > 1:
        in_parts = partial(accumulated_step, parts=accumulate)
        step, eager = partial(in_parts, **step.keywords), classifier_step(model, OPTIMIZER, step=in_parts)
    compiled = jit(step)
    a = b = start(model)
    traced = 0
    for i in range(50):
        x, y = examples(12, seed=i)
        a, metrics = compiled(a, x, y, key=run_key(0))
        b, metrics_ = eager(b, x, y, key=run_key(0))
        torch.testing.assert_close(metrics, metrics_, rtol=1e-4, atol=1e-5)
        traced = traced or objective.runs
    assert largest_gap(a, b) <= 1e-5
    assert largest_gap(a, start(model)) > 1e-2
    assert objective.runs == traced


@pytest.mark.slow
def test_mixed_precision_compiles():
    model, (x, y) = MODELS["cnn"], examples(12)
    step = classifier_step(model._replace(apply=mixed_precision(model.apply, torch.bfloat16)), OPTIMIZER)
    results = [f(start(model), x, y, key=run_key(0))[1] for f in (step, jit(step))]
    torch.testing.assert_close(*results, rtol=0.02, atol=0.02)
    whole = classifier_step(model, OPTIMIZER)(start(model), x, y, key=run_key(0))[1]
    assert float(whole["loss"]) != float(results[1]["loss"])


@pytest.mark.parametrize(
    "shape", [*(pytest.param(shape, marks=pytest.mark.slow) for shape in ((), (1000,), (12, 80))), (3, 5, 7)]
)
def test_draws_are_the_same_bits(shape):
    draw = jit(lambda key: uniform(key, shape))
    for seed in (0, 2**61):
        assert torch.equal(draw(rng_key(seed)), uniform(rng_key(seed), shape))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn", marks=pytest.mark.longest)])
def test_a_donated_state_is_overwritten_with_the_same_steps(name):
    model = MODELS[name]
    step = classifier_step(model, OPTIMIZER)
    kept, donated = jit(step), jit(step, donate=True)
    a, (b, _) = start(model), donated(start(model), *examples(12), key=run_key(0))
    a, _ = kept(a, *examples(12), key=run_key(0))
    given = tree.leaves(b._asdict())
    for i in range(5):
        a, metrics = kept(a, *examples(12, seed=i), key=run_key(0))
        b, metrics_ = donated(b, *examples(12, seed=i), key=run_key(0))
        torch.testing.assert_close(metrics, metrics_, rtol=1e-5, atol=1e-6)
    assert largest_gap(a, b) <= 1e-6
    assert all(x is y for x, y in zip(tree.leaves(b._asdict()), given, strict=True))


@pytest.mark.parametrize("donate", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_target_that_is_no_class_is_refused_in_the_steps_own_words(donate):
    """In several threads too, where an error inside the compiled code would end the process."""
    step = jit(lambda w, x, y: (w - grad(lambda w: cross_entropy(x @ w, y))(w),), donate=donate)
    threads, y = torch.get_num_threads(), torch.arange(9).repeat(2000)
    x = torch.randn(len(y), 5, generator=generator(0))
    torch.set_num_threads(2)
    try:
        (w,) = step(torch.zeros(5, 9), x, y)
        for target in (9, -1, 2**40):
            with pytest.raises(ValueError, match=rf"cross_entropy: target: index {target} is none of 9 rows"):
                step(w, x, torch.where(y == 3, target, y))
        step(w, x, torch.where(y == 3, -100, y))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_an_index_of_each_member_of_an_ensemble_is_looked_at():
    losses = jit(vmap(grad(cross_entropy)))
    logits, targets = torch.zeros(2, 3, 4), torch.tensor([[0, 1, 2], [0, 3, 1]])
    torch.testing.assert_close(losses(logits, targets), vmap(grad(cross_entropy))(logits, targets))
    with pytest.raises(ValueError, match="target: index 4 is none of 4 rows"):
        losses(logits, targets + 1)


@pytest.mark.parametrize(
    "step", [lambda x: x.sum(), lambda x: (x.double(), x), lambda x: ({"x": x}, x), lambda x: [x], lambda x: 3]
)
def test_what_is_donated_must_come_back_alike(step):
    with pytest.raises(JitError, match="donate: the first result must have the tree"):
        jit(step, donate=True)(X.clone())


@pytest.mark.slow
def test_what_torch_cannot_fuse_is_compiled_unfused():
    """The gradient of a softmax is written over its input, github.com/pytorch/pytorch/issues/196570."""
    logits, target = torch.randn(32, 10, generator=generator(0)), torch.arange(32) % 10
    new = logits - grad(cross_entropy)(logits, target)
    (donated,) = jit(lambda x, y: (x - grad(cross_entropy)(x, y),), donate=True)(logits, target)
    torch.testing.assert_close(donated, new)
    assert donated is logits


def test_what_is_donated_shares_its_memory_with_nothing():
    step, x, both = jit(lambda pair, y: ((pair[0] + y, pair[1] * 3),), donate=True), X.clone(), torch.zeros(6)
    for pair, y in [((x, x), X), ((both[:3], both[3:]), X), ((X.clone(), both[:3]), both[3:])]:
        with pytest.raises(JitError, match="shares its memory"):
            step(pair, y)
    ((a, b),) = step((x, X.clone()), X)
    assert a is x
    assert a.tolist() == [2.0] * 3
    assert b.tolist() == [3.0] * 3
    with pytest.raises(JitError, match="by position"):
        jit(lambda pair: pair, donate=True)(pair=X)


@pytest.mark.parametrize(
    "step",
    [
        lambda p: {"a": p["b"], "b": p["a"]},
        lambda p: {"a": p["a"] - 1, "b": p["a"]},
        lambda p: {"a": p["a"] - 1, "b": p["a"].clone()},
        lambda p: ({"a": p["a"] - 1, "b": p["b"]}, p["a"]),
        lambda p: {"a": p["a"], "b": p["b"].T.clone()},
    ],
)
def test_a_result_that_would_be_read_after_it_was_overwritten_is_refused(step):
    with pytest.raises(JitError, match="donate: a result is a tensor of the first argument"):
        jit(step, donate=True)({"a": torch.ones(2, 2), "b": torch.zeros(2, 2)})


def test_a_donated_leaf_may_stay_as_it_is():
    a, b = torch.ones(2), torch.zeros(2)
    new = jit(lambda p: {"a": p["a"], "b": p["b"] + p["a"]}, donate=True)({"a": a, "b": b})
    assert new["a"] is a
    assert new["b"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("op", "layout"), [("conv2d", torch.channels_last), ("add", torch.contiguous_format)])
def test_images_are_laid_channels_last_where_they_are_convolved(monkeypatch, op, layout):
    """Traced once if so, twice if not; the strides are those that the graph was traced with."""
    traces = []
    trace = compiler._trace
    monkeypatch.setattr(compiler, "_trace", lambda *args: traces.append(1) or trace(*args))
    monkeypatch.setattr(compiler, "_compile_once", lambda graph, laid, constants: (laid, None))
    monkeypatch.setattr(compiler, "fingerprint", lambda step: None)
    x, weight = torch.rand(2, 3, 5, 5), torch.rand(4, 3, 3, 3)
    step = torch.conv2d if op == "conv2d" else lambda x, weight: (x + 1, weight + 1)
    program = compiler.compile_step(step, (x, weight), {})
    assert program.strides == [t.contiguous(memory_format=layout).stride() for t in (x, weight)]
    assert len(traces) == (1 if op == "conv2d" else 2)


def test_what_enters_is_not_written_to():
    model, (x, y) = MODELS["mlp"], examples(12)
    ts, compiled = start(model), jit(classifier_step(model, OPTIMIZER))
    before = tree.map(torch.clone, ts._asdict()), x.clone(), y.clone()
    compiled(ts, x, y, key=run_key(0))
    torch.testing.assert_close((ts._asdict(), x, y), before, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("leaf", "bad", "expected"),
    [
        (("fc1", "weight"), torch.zeros(12, 63), r"fn\.layers\.linear(.|\n)*'weight'(.|\n)*d_in=64"),
        (("fc1", "bias"), torch.zeros(11), r"fn\.layers\.linear(.|\n)*'bias'(.|\n)*d_out=12"),
        (("fc2", "weight"), torch.zeros(10, 12, dtype=torch.int64), r"fn\.layers\.linear(.|\n)*'weight'"),
    ],
)
def test_a_shape_error_is_the_one_without_jit_and_leaves_nothing_behind(leaf, bad, expected):
    model, x = MODELS["mlp"], examples(12).images
    ts, (layer, name) = start(model), leaf
    params = ts.params | {layer: ts.params[layer] | {name: bad}}
    apply = partial(model.apply, train=False)
    said = []
    for f in (apply, compiled := jit(apply)):
        with pytest.raises(TypeCheckError, match=expected) as caught:
            f(params, {}, x)
        said.append(str(caught.value))
    assert said[0] == said[1]
    torch.testing.assert_close(compiled(ts.params, {}, x), apply(ts.params, {}, x))


@pytest.fixture
def compilations(monkeypatch) -> list[Any]:
    """Grows by one at each compilation, of which none is made."""
    made: list[Any] = []
    nothing = jit_module.Program(None, [], None)
    monkeypatch.setattr(jit_module, "compile_step", lambda *args, donate: made.append(args) or nothing)
    return made


class Pair(NamedTuple):
    first: Any
    second: Any


X = torch.ones(3)


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.ones(4)},
        {"x": torch.ones(3, 1)},
        {"x": X.double()},
        {"by": 2},
        {"by": 1.0},  # equal to 1 and hashed alike, but not the same
        {"by": True},
        {"by": None},
        {"more": {"b": X}},
        {"more": {"a": {"c": X}}},
        {"more": {"a": (X,)}},
        {"more": {"a": [X]}},
        {"x": torch.ones(3, device="meta")},
    ],
    ids=str,
)
def test_whatever_changes_the_computation_is_a_new_signature(compilations, other):
    given = {"x": X, "by": 1, "more": {"a": X}}
    f = jit(lambda x, by, more: x)
    f(**given)
    f(**given | {"x": X + 1})
    f(**given | {"x": torch.ones(6)[::2]})
    assert len(compilations) == 1
    f(**given | other)
    assert len(compilations) == 2
    f(**given)
    f(**given | other)
    assert len(compilations) == 2


def test_trees_of_one_content_but_other_kinds_differ(compilations):
    f = jit(lambda tree: X)
    for given in ((X, X), [X, X], Pair(X, X), {"first": X, "second": X}, ((X,), X), (X, (X,)), ((X, X),)):
        f(given)
    assert len(compilations) == 7


def test_many_signatures_are_warned_of_once(compilations):
    f = jit(lambda x, lr: x * lr)
    for i in range(7):
        f(X, 0.1 * i)
    with pytest.warns(UserWarning, match="8 signatures of <lambda>.* should be a tensor"):
        f(X, 7.0)
    for i in range(20):
        f(X, 8.0 + i)


def test_whatever_a_step_returns_comes_back_in_its_tree():
    f = jit(lambda x, s: Pair({"a": x * 2, "b": [x, None, "text"]}, (s, (x + 1, 3), Pair(x.sum(), ()))))
    result, expected = f(X, 4), Pair({"a": X * 2, "b": [X, None, "text"]}, (4, (X + 1, 3), Pair(X.sum(), ())))
    assert str(result) == str(expected)
    assert type(result.second[2]) is Pair


def test_a_view_that_negates_what_it_reads_is_an_input():
    assert jit(lambda x: x + 1)(torch.tensor(1 + 2j).conj().imag).item() == -1


def test_inputs_of_any_layout_give_the_same():
    f = jit(lambda x, y: x @ y)
    x, y = torch.rand(4, 6, generator=generator(0)), torch.rand(6, 5, generator=generator(1))
    for a in (x, x.T.contiguous().T, torch.stack([x, x], dim=-1)[..., 1], x.double().float()):
        torch.testing.assert_close(f(a, y), x @ y)
    torch.testing.assert_close(f(x.expand(4, 6), y[:, :1].expand(6, 5)), x @ y[:, :1].expand(6, 5))


@pytest.mark.slow
def test_convolutions_keep_their_layout_from_step_to_step(monkeypatch):
    """Laid out once, at the first call; what a step returns is as the next one wants it."""
    model, laid = MODELS["cnn"], []
    step, (x, y) = jit(classifier_step(model, OPTIMIZER)), examples(12)
    ts, _ = step(start(model), x, y, key=run_key(0))
    lay = jit_module.lay
    monkeypatch.setattr(jit_module, "lay", lambda x, strides: laid.append(x) or lay(x, strides))
    ts, _ = step(ts, x, y, key=run_key(0))
    assert len(laid) <= 1  # the images of the batch
    assert ts.params["conv2"]["weight"].stride() == (27, 1, 9, 3)


def test_of_a_relu_its_result_is_kept_and_not_its_argument_too():
    """The gradient reads y; both are the same to the bit, at 0, -0, infinity and NaN too."""

    def step(x):
        return grad(lambda x: (relu(3 * x) ** 2).sum())(x)

    x = torch.tensor([1.0, 0.1, 0.0, -0.0, -2.0, math.inf, -math.inf, math.nan])
    torch.testing.assert_close(jit(step)(x), step(x), rtol=0, atol=0, equal_nan=True)
    graph, *_ = compiler._trace(step, (x,), {}, [x], False)
    [y] = [n for n in graph.graph.nodes if n.target is torch.ops.aten.where.self and "mul" in n.args[2].name][:1]
    assert set(y.args[2].users) == {y, y.args[0]}
    assert set(y.args[0].users) == {y}


HEAP = """
import ctypes, torch
from fn.jit import jit

FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Heap = type("Heap", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in FIELDS]})
heap = ctypes.CDLL(None).mallinfo2
heap.restype = Heap

def freed():
    before = heap()
    x = torch.zeros(10_000_000)
    during = heap()
    del x
    return during.hblkhd - before.hblkhd, heap().fordblks

print(freed())
jit(lambda x: x + 1)(torch.zeros(3))
print(freed())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to keep memory")
def test_what_a_step_frees_is_there_for_the_next():
    """Before the first jit a large tensor is memory of its own, which the system gets back; then it is of the heap.

    In a process of its own: where many tests ran before, the heap has other free places to take from.
    """
    ran = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, check=True)
    (mapped, free_before), (mapped_after, free) = map(ast.literal_eval, ran.stdout.splitlines())
    assert mapped >= 40_000_000
    assert mapped_after == 0
    assert free_before < 39_000_000
    assert free >= 39_000_000  # some of it may go to a small object meanwhile


def test_under_grad_vmap_and_another_jit_it_is_the_step_itself(compilations):
    square = jit(lambda x: (x**3).sum())
    torch.testing.assert_close(grad(square)(X), 3 * X**2)
    torch.testing.assert_close(vmap(square)(torch.ones(4, 3)), 3 * torch.ones(4))
    assert not compilations


def test_a_jit_within_a_jit_is_part_of_it():
    runs = []
    inner = jit(lambda x: runs.append(1) or x * 2)
    outer = jit(lambda x: inner(x) + 1)
    for _ in range(3):
        torch.testing.assert_close(outer(X), torch.full((3,), 3.0))
    assert len(runs) == 1


class Scale:
    def __init__(self, by: Any) -> None:
        self.by = by

    def times(self, x: Tensor) -> Tensor:
        return x * self.by[0]


def nested(depth: int) -> Scale:
    scale = Scale(1)
    for _ in range(depth):
        scale = Scale(scale)
    return scale


FROZEN = torch.ones(3)


@pytest.mark.parametrize(
    ("step", "args", "complaint"),
    [
        (lambda x: x * x.sum().item(), (X,), "needs the values of a tensor"),
        (lambda x: x if x.sum() > 0 else -x, (X,), "needs the values of a tensor"),
        (lambda x: x[x > 0], (X,), "needs the values of a tensor"),
        (lambda x: x * FROZEN, (X,), "not among its arguments"),
        (lambda x, s: x, (X, Scale(X)), "a tensor in an object would be frozen"),
        (lambda x, s: x, (X, nested(5_000)), "the Scale is nested too deep"),
        (lambda x, lock: x, (X, threading.Lock()), "cannot see whether the lock changes"),
        (lambda x: x.add_(1), (X,), "writes to an argument"),
        (lambda x: x[1:].mul_(2), (X,), "writes to an argument"),
        (lambda x: OrderedDict(a=x + 1), (X,), "returns a OrderedDict"),
    ],
)
def test_a_step_that_cannot_be_traced_says_what_to_change(step, args, complaint):
    with pytest.raises(JitError, match=complaint):
        jit(step)(*args)


def minus_mean(x):
    x -= x.mean()
    return x


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (lambda x: relu(x.add_(1)) * 2, "x.add_(1)"),
        (minus_mean, "x -= x.mean()"),
        (lambda x: x[x > 0].sum() * 2, "x[x > 0]"),
    ],
)
def test_a_refusal_ends_at_the_line_of_the_step(step, code):
    with pytest.raises(JitError) as refused:
        jit(step)(X)
    cause = refused.value.__cause__ or refused.value
    own = [frame for frame in traceback.extract_tb(cause.__traceback__) if frame.filename == __file__]
    assert code in str(own[-1].line)


@pytest.mark.parametrize(
    ("one", "other"),
    [(0.0, -0.0), (1, True), (1, 1.0), (0.0, False), ("1", 1), (0j, -0j), ((1,), (1.0,)), ({1: 2}, {True: 2})],
    ids=repr,
)
def test_values_that_are_equal_but_not_the_same_are_told_apart(one, other):
    signatures = [[], []]
    for value, signature in zip((one, other), signatures, strict=True):
        compiler.flatten_call(value, [], signature)
    assert tuple(signatures[0]) != tuple(signatures[1])


class Slots:
    __slots__ = ("by",)

    def __init__(self, by: Any) -> None:
        self.by = by


class Secret(Scale):
    """Leaves out of its copies what it scales by."""

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return Secret, (1,)


def scale_by(by: list[float]) -> Callable[[Tensor], Tensor]:
    def scale(x: Tensor) -> Tensor:
        return x * by[0]

    return scale


def wrapped(by: Any) -> Callable[[Tensor], Tensor]:
    @wraps(relu)
    def scaled(x: Tensor) -> Tensor:
        return relu(x) * by[0]

    return scaled


def with_attribute(by: Any) -> Callable[[Tensor], Tensor]:
    def plain(x: Tensor) -> Tensor:
        return x

    plain.by = by  # pyright: ignore[reportFunctionMemberAccess]
    return plain


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "attribute": Scale,
    "slot": Slots,
    "secret": Secret,
    "deep": lambda by: Scale({"deep": [Scale(by)]}),
    "two slots": lambda by: Slots(Slots(by)),
    "partial": lambda by: partial(torch.add, alpha=by),
    "deque": lambda by: deque([by]),
    "defaultdict": lambda by: defaultdict(list, first=by),
    "method": lambda by: Scale(by).times,
    "dict": lambda by: {1: Scale(by)},
    "cell": scale_by,
    "cell of a wrapper": wrapped,
    "default": lambda by: lambda x, by=by: x,
    "attribute of a function": with_attribute,
    "vmap": lambda by: vmap(partial(torch.add, alpha=by)),
    "grad of a method": lambda by: grad(Scale(by).times),
    "class": lambda by: type("Config", (), {"by": by}),
    "attribute of its class": lambda by: type("Config", (), {"by": by})(),
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_an_object_that_changed_is_another_argument(compilations, holder):
    by = numpy.ones(2_000)
    f, given = jit(lambda x, s: x), holder(by)
    f(X, given)
    f(X, given)
    assert len(compilations) == 1
    by[1_000] = -2.0
    f(X, given)
    assert len(compilations) == 2


def test_a_value_is_told_from_the_one_that_had_its_place(compilations):
    """Each lambda and each class may lie where the last one lay."""
    f = jit(lambda x, s: x)
    for sin in (math.sin, torch.sin):
        f(X, lambda x: x)
        f(X, type("Made", (), {}))
        f(X, Scale(sin))
    assert len(compilations) == 6


@pytest.mark.parametrize("n", range(1, 20))
def test_one_part_twice_is_told_from_two_parts(n):
    """A part that came before is not taken for a list of as many parts as its number."""
    empty, signatures = [], ([], [])
    contents.append_contents([empty, empty, list(range(n))], signatures[0])
    contents.append_contents([empty, [empty, *range(n - 1)], n - 1], signatures[1])
    assert signatures[0] != signatures[1]


def test_a_checked_function_is_an_argument(compilations):
    f = jit(lambda x, g: x)
    f(X, relu)
    f(X, relu)
    f(X, cross_entropy)
    assert len(compilations) == 2


def test_an_object_that_holds_itself_is_an_argument(compilations):
    f, loop = jit(lambda x, s: x), Scale([1])
    loop.by.append(loop)
    f(X, loop)
    f(X, loop)
    assert len(compilations) == 1


def test_nan_does_not_compile_anew_at_every_call(compilations):
    f = jit(lambda x, a: x + a)
    for _ in range(3):
        f(torch.ones(1), float("nan"))
    assert len(compilations) == 1


def test_a_shorter_last_batch_does_not_compile_anew(compilations):
    model, ts = MODELS["mlp"], start(MODELS["mlp"])
    step = compile_for_batches(classifier_step(model, OPTIMIZER), 8)
    for epoch in range(3):
        ts, _ = train.train_one_epoch(ts, batches(examples(20), 8, seed=0, epoch=epoch), step=step, seed=0)
    assert len(compilations) == 1
    assert int(ts.opt_state["step"]) == 9


def test_a_compiled_run_that_diverges_stops_with_the_same_words():
    model, (x, y) = MODELS["mlp"], examples(12)
    x[0] = torch.nan
    said = []
    for step in (eager := classifier_step(model, OPTIMIZER), compile_for_batches(eager, 12)):
        with pytest.raises(FloatingPointError, match=r"first non-finite update in fc1\.weight") as caught:
            train.check_finite(step)(start(model), x, y, key=run_key(0))
        said.append(str(caught.value))
    assert said[0] == said[1]


KEPT = """
import torch
from torch._dynamo.utils import counters
from fn.jit import jit

x = torch.arange(4.0)
assert torch.equal(jit(lambda x: x * 3 + 1)(x), x * 3 + 1)
print(counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.longest
@pytest.mark.slow
def test_a_graph_that_we_did_not_keep_is_taken_from_inductors_cache_unless_it_is_damaged_there(tmp_path):
    def hits() -> str:
        shutil.rmtree(tmp_path / "functional-torch", ignore_errors=True)
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        return subprocess.run([sys.executable, "-c", KEPT], env=env, capture_output=True, text=True, check=True).stdout

    assert hits() == "0\n"
    assert hits() == "1\n"
    entries = [path for path in (tmp_path / "fxgraph").rglob("*") if path.is_file()]
    assert entries
    for path in entries:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert hits() == "0\n"


NO_COMPILER = """
import torch
from fn.jit import jit
f = jit(lambda x: x * 3)
print([f(torch.ones(n)).tolist() for n in (1, 1, 2)], jit(lambda x: x + 1)(torch.ones(1)).tolist())
"""
BROKEN = '#!/bin/sh\ncase "$*" in *--version*) exec g++ --version;; esac\nexit 1\n'


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["missing", "broken"])
def test_without_a_compiler_there_is_one_warning_and_the_step_runs(tmp_path, compiler):
    path = tmp_path / "g++"
    if compiler == "broken":
        path.write_text(BROKEN)
        path.chmod(0o755)
    env = os.environ | {"CXX": str(path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ran = subprocess.run([sys.executable, "-c", NO_COMPILER], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout == "[[3.0], [3.0], [3.0, 3.0]] [2.0]\n"
    assert ran.stderr.count("UserWarning: jit: no C++ compiler that works") == 1
    assert "Traceback" not in ran.stderr
