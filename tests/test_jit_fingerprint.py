"""The fingerprint of a step changes with whatever could change its graph; where that is not certain there is none."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import beartype
import einops
import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fn.detection.train import detector_step
from fn.ensemble import ensemble_step
from fn.jit import compiler
from fn.jit.fingerprint import _versions, fingerprint
from fn.models.centernet import centernet
from fn.models.cnn import cnn
from fn.models.mlp import mlp
from fn.models.resnet import resnet
from fn.models.ssd import ssd
from fn.models.transformer import transformer
from fn.optim import adam, adamw, clip_by_global_norm, cosine_schedule, lr_by_prefix, sgd
from fn.train import classification_loss, classifier_step
from fn.train_variants import accumulated_step, several_steps
from fn.transfer import freeze

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
METHOD: Any = inner
BACKENDS: Any = torch.backends
ONEDNN = BACKENDS.mkldnn.matmul
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
    "its precision in oneDNN": (outer, lambda m: setattr(ONEDNN, "fp32_precision", "bf16")),
    "whether there are gradients": (outer, lambda m: torch.set_grad_enabled(False)),
    "whether oneDNN is used": (outer, lambda m: torch._C._set_mkldnn_enabled(False)),
    "whether bits must be the same": (outer, lambda m: torch.use_deterministic_algorithms(True)),
    "whether shapes are checked": (outer, lambda m: jaxtyping.config.update("jaxtyping_disable", True)),
    "a version": (outer, lambda m: m.setattr("fn.jit.fingerprint._versions", lambda: ("another",))),
}


@pytest.fixture
def settings() -> Iterator[None]:
    dtype, threads, precision = torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    disabled = jaxtyping.config.jaxtyping_disable
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    ONEDNN.fp32_precision = "none"
    torch.set_autocast_enabled("cpu", False)
    torch.set_grad_enabled(True)
    torch._C._set_mkldnn_enabled(True)
    torch.use_deterministic_algorithms(False)
    jaxtyping.config.update("jaxtyping_disable", disabled)


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


def test_the_fingerprint_changes_in_inference_mode_and_there_is_none_under_a_mode_of_functions():
    before = fingerprint(outer)
    with torch.no_grad():
        without = fingerprint(outer)
    with torch.inference_mode():
        assert fingerprint(outer) not in (None, before, without)
    with torch.device("meta"):
        assert fingerprint(outer) is None
    assert fingerprint(outer) == before


def test_the_sources_of_the_compiler_are_among_the_versions():
    folder = Path(str(compiler.__file__)).parent
    for file in (*folder.glob("*.py"), folder.parent / "checks.py", folder.parent / "indices.py"):
        assert sha256(file.read_bytes()).hexdigest() in _versions()


def test_the_versions_and_the_processor_are_among_the_versions():
    told = _versions()
    assert {sys.version, torch.version.git_version, einops.__version__, beartype.__version__} <= {*told}
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        features = [line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))]
        assert {*features} <= {*told}


def made(n: float, f: Callable) -> Callable:
    def step(x: Tensor) -> Tensor:
        return f(x) * n

    return step


def test_the_fingerprint_tells_what_a_function_closes_over():
    step = made(2, inner)
    assert fingerprint(step) == fingerprint(made(2, inner)) is not None
    others = made(3, inner), made(2, other), made(2.0, inner)
    assert len({fingerprint(f) for f in (step, *others)}) == 4


def holding(value: Any) -> Callable:
    return lambda x: (x, value)


def with_attribute(n: int) -> Callable:
    def f(x: Tensor) -> Tensor:
        return x

    vars(f)["n"] = n
    return f


def with_class(base: type = object, **attributes: Any) -> Callable:
    return holding(type("A", (base,), attributes))


PAIRS: dict[str, tuple[Any, Any]] = {
    "the method that is called": (lambda x: x.sin(), lambda x: x.cos()),
    "the operation": (lambda x: x + x, lambda x: x * x),
    "a constant": (lambda x: x * 2, lambda x: x * 3),
    "an int and a float": (lambda x: x * 2, lambda x: x * 2.0),
    "0.0 and -0.0": (lambda x: x * 0.0, lambda x: x * -0.0),
    "the order of the arguments": (lambda x, y: x - y, lambda y, x: x - y),
    "a default": (lambda x, k=1: x * k, lambda x, k=2: x * k),
    "a default by name": (lambda x, *, k=1: x * k, lambda x, *, k=2: x * k),
    "an attribute of a function": (with_attribute(1), with_attribute(2)),
    "the base of a class": (with_class(Layer), with_class(Counter)),
    "an attribute of a class": (with_class(n=1), with_class(n=2)),
    "a property": (with_class(n=property(inner)), with_class(n=property(other))),
    "a static method": (with_class(n=staticmethod(inner)), with_class(n=staticmethod(other))),
    "a method, static or of the class": (with_class(n=staticmethod(METHOD)), with_class(n=classmethod(METHOD))),
    "what a set holds": (holding({1, 2}), holding({1, 3})),
    "where a tuple ends": (holding(((1,), 2)), holding(((1, 2),))),
    "what a slice holds": (holding(slice(1)), holding(slice(2))),
    "a range": (holding(range(3)), holding(range(4))),
    "a dict that is read only": (holding(MappingProxyType({"n": 1})), holding(MappingProxyType({"n": 2}))),
    "the limits of a dtype": (holding(torch.finfo(torch.half)), holding(torch.finfo(torch.float))),
    "a keyword of a partial": (partial(inner, n=1), partial(inner, n=2)),  # pyright: ignore[reportCallIssue]
    "an exception": (holding(ValueError), holding(KeyError)),
    "whether it donates": ((inner, False), (inner, True)),
}


@pytest.mark.parametrize("what", PAIRS)
def test_two_steps_that_differ_in_one_thing_have_two_fingerprints(what):
    one, two = map(fingerprint, PAIRS[what])
    assert one is not None
    assert two is not None
    assert one != two


def writes(x: Tensor) -> Tensor:
    global FACTOR
    FACTOR = 3.0
    return x


def imports(x: Tensor) -> Tensor:
    from fn.rng import generator

    return x + len(str(generator(0)))


class Named:
    def __reduce__(self) -> str:
        return "NAMED"


NAMED, HELD = Named(), torch.ones(3)
UNKNOWN: dict[str, Callable] = {
    "the time": lambda x: x + time.time(),
    "a random number": lambda x: x + random.random(),
    "an environment variable": lambda x: x + len(os.environ["HOME"]),
    "a file": lambda x: x + open(x),  # noqa: PTH123, SIM115
    "what is printed": lambda x: print(x.shape) or x,
    "a held tensor": lambda x: x + HELD,
    "an object that pickle tells by name": lambda x: (x, NAMED),
    "a tensor in an object": SimpleNamespace(x=HELD).__eq__,
    "a global that is written": writes,
    "an import of ours": imports,
    "a module that is handed on": lambda x: str(HELPERS),
    "a library that may do anything": lambda x: x + pytest.approx(1.0).expected,
    "a name that is nowhere": lambda x: x + nowhere,  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
    "a generator": (n for n in range(3)).__next__,
    "eval": lambda x: eval("x + 1"),
    "which process this is": lambda x: x[torch.distributed.get_rank() :],
    "a file of torch's": lambda x: x * torch.load("file"),
    "the seed of torch": lambda x: x * torch.initial_seed(),
    "a setting of torch": lambda x: x * torch.backends.cudnn.benchmark,
    "torch handed on": lambda x: str(torch),
    "an operation that a library registers": lambda x: torch.ops.mine.scale(x),
    "what a function reads": lambda x: x * inner.__globals__["FACTOR"],
    "its documentation": lambda x: x * len(str(inner.__doc__)),
    "the classes that inherit": lambda x: x * len(Counter.__subclasses__()),
    "an attribute by a word": lambda x: getattr(x, "s" + "in")(),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_no_fingerprint_with(what):
    assert fingerprint(UNKNOWN[what]) is None


@pytest.mark.parametrize("rule", [sgd, adam, adamw])
@pytest.mark.parametrize("build", [mlp, cnn, resnet, transformer])
def test_the_step_of_every_model_and_optimizer_has_a_fingerprint(build, rule):
    model = build((8,) if build is transformer else (1, 8, 8), 10)
    assert fingerprint(classifier_step(model, rule(lr=0.1)))


CNN = cnn((1, 8, 8), 10)
OF_SCRIPTS: dict[str, Callable] = {
    "a part of it frozen": classifier_step(freeze(CNN, ["fc"]), adamw(lr=0.1)),
    "a rate for each part": classifier_step(CNN, lr_by_prefix(adamw, lr=0.1, scales={"fc": 0.1})),
    "a schedule, clipped": classifier_step(
        CNN, clip_by_global_norm(adamw(lr=partial(cosine_schedule, lr=0.1, total_steps=9)), 1.0)
    ),
    "in parts": classifier_step(CNN, adamw(lr=0.1), step=partial(accumulated_step, parts=2)),
    "several": partial(several_steps, step=classifier_step(CNN, adamw(lr=0.1))),
    "an ensemble": partial(
        ensemble_step, objective=partial(classification_loss, apply=CNN.apply, label_smoothing=0.1), optimizer=adamw
    ),
    "SSD": detector_step(ssd((1, 32, 32), 3, width=4), adamw(lr=0.1)),
    "CenterNet": detector_step(centernet((1, 32, 32), 3, width=4), adamw(lr=0.1)),
}


@pytest.mark.parametrize("kind", OF_SCRIPTS)
def test_the_step_of_every_script_has_a_fingerprint(kind):
    assert fingerprint(OF_SCRIPTS[kind])


# In each stands a value that is another in the second process.
SOURCES = {
    "a method that a tensor was given": """
        Tensor.twice = lambda self: self * VALUE
        def step(x): return x.twice()""",
    "a method of a tensor that was replaced": """
        Tensor.sinc = lambda self: self * VALUE
        def step(x): return x.sinc()""",
    "a function that torch was given": """
        torch.mine = lambda x: x * VALUE
        def step(x): return torch.mine(x)""",
    "a function that torch calls": """
        torch.relu = lambda x: x * VALUE
        def step(x): return torch.nn.functional.relu(x)""",
    "torch by another name": """
        torch.mine = lambda x: x * VALUE
        def step(x):
            t = torch
            return t.mine(x)""",
    "a builtin of ours": """
        builtins.mine = lambda x: x * VALUE
        def step(x): return mine(x)""",
    "a builtin that was replaced": """
        builtins.sum = lambda x: x * VALUE
        def step(x): return sum(x)""",
    "an object that wraps a function": """
        class Scaled:
            def __init__(self, f): functools.update_wrapper(self, f); self.f = f
            def __call__(self, x): return self.f(x) * VALUE
        @Scaled
        def f(x): return x + 1
        def step(x): return f(x)""",
    "a partial that wraps a function": """
        def f(x, n): return x * n
        g = functools.update_wrapper(functools.partial(f, n=VALUE), f)
        def step(x): return g(x)""",
    "a decorator": """
        def scaled(f):
            @functools.wraps(f)
            def g(x): return f(x) * VALUE
            return g
        @scaled
        def f(x): return x
        def step(x): return f(x)""",
    "a class that keeps a protocol": """
        class P(typing.Protocol):
            def f(self, x): ...
        class A(P):
            def f(self, x): return x * VALUE
        a = A()
        def step(x): return a.f(x)""",
    "a generic class": """
        T = typing.TypeVar("T")
        class A(typing.Generic[T]):
            def f(self, x): return x * VALUE
        B = A[int]
        def step(x): return B().f(x)""",
    "a new type": """
        class A:
            def __init__(self, x): self.x = x * VALUE
        B = typing.NewType("B", A)
        def step(x): return B.__supertype__(x).x""",
    "a class of classes that is called": """
        class M(type):
            def __call__(cls, x): return x * VALUE
        class A(metaclass=M): pass
        def step(x): return A(x)""",
    "an attribute of a class of classes": """
        class M(type): n = VALUE
        class A(metaclass=M): pass
        def step(x): return x * A.n""",
    "what counts as an instance": """
        class A(abc.ABC): pass
        if VALUE > 2: A.register(int)
        def step(x): return x * (2 if isinstance(1, A) else 3)""",
    "how torch takes an object apart": """
        from torch.utils import _pytree
        class A:
            def __init__(self, x): self.x = x
        _pytree.register_pytree_node(A, lambda a: ([a.x * VALUE], None), lambda xs, _: A(*xs))
        def step(x): return torch.func.vmap(lambda a: a.x)(A(x))""",
    "an operation of a library": """
        library = torch.library.Library("told", "FRAGMENT")
        library.define("scale(Tensor x) -> Tensor")
        library.impl("scale", lambda x: x * VALUE, "CompositeImplicitAutograd")
        def step(x): return torch.ops.told.scale(x)""",
    "one function for each class": """
        @functools.singledispatch
        def f(x): return x
        @f.register
        def _(x: Tensor): return x * VALUE
        def step(x): return f(x)""",
    "a default that is made": """
        @dataclasses.dataclass
        class A:
            n: list = dataclasses.field(default_factory=lambda: [VALUE])
        def step(x): return x * A().n[0]""",
    "a frozen dataclass": """
        @dataclasses.dataclass(frozen=True)
        class A:
            n: float = VALUE
        a = A()
        def step(x): return x * a.n""",
    "slots": """
        class A:
            __slots__ = ("n",)
            def __init__(self): self.n = VALUE
        a = A()
        def step(x): return x * a.n""",
    "an attribute that is not there": """
        class A:
            def __getattr__(self, name): return VALUE
        a = A()
        def step(x): return x * a.n""",
    "a descriptor": """
        class D:
            def __get__(self, a, cls): return VALUE
        class A: n = D()
        def step(x): return x * A.n""",
    "the value of an enum": """
        class E(enum.Enum): A = VALUE
        def step(x): return x * E.A.value""",
    "the method of an enum": """
        class E(enum.IntEnum):
            A = 1
            def f(self, x): return x * VALUE
        def step(x): return E.A.f(x)""",
    "a dict with a default": """
        found = collections.defaultdict(lambda: VALUE)
        def step(x): return x * found["n"]""",
    "a number of a class of its own": """
        class N(float):
            def __reduce__(self): return N, ()
        n = N(VALUE)
        def step(x): return x * n""",
    "a context": """
        @contextlib.contextmanager
        def context(): yield VALUE
        def step(x):
            with context() as n: return x * n""",
    "a gradient of ours": """
        class F(torch.autograd.Function):
            generate_vmap_rule = True
            @staticmethod
            def forward(x): return x * 2
            @staticmethod
            def setup_context(ctx, inputs, output): pass
            @staticmethod
            def backward(ctx, g): return g * VALUE
        def step(x): return torch.func.grad(lambda x: F.apply(x).sum())(x)""",
    "a class attribute of torch": """
        torch.nn.Module.mine = VALUE
        class M(torch.nn.Module):
            def forward(self, x): return x * self.mine
        m = M()
        def step(x): return m(x)""",
    "a function within functions": """
        n = VALUE
        def step(x): return sum([[(lambda: y * n)() for y in [x]][0]])""",
    "the frame of the caller": """
        import inspect
        n = VALUE
        def step(x): return x * inspect.currentframe().f_globals["n"]""",
}
RUN = """
import abc, builtins, collections, contextlib, dataclasses, enum, functools, json, sys, textwrap, types, typing
import torch
from torch import Tensor
from fn.jit.fingerprint import fingerprint
sources, value = json.load(sys.stdin)
names, total = dict(globals()), sum
holders = torch, Tensor, torch.nn.Module
before = [dict(vars(holder)) for holder in holders]

def restore():
    for holder, old in zip(holders, before):
        for name, value in dict(vars(holder)).items():
            if name not in old: delattr(holder, name)
            elif value is not old[name]: setattr(holder, name, old[name])

for name, source in sources.items():
    module = types.ModuleType("program")
    module.__file__ = "program.py"
    sys.modules["program"] = module
    vars(module).update({n: v for n, v in names.items() if not n.startswith("__")})
    exec(compile(textwrap.dedent(source).replace("VALUE", value), "program.py", "exec"), vars(module))
    result = module.step(torch.ones(2)).tolist()
    print(json.dumps([name, fingerprint(module.step), result]))
    builtins.sum = total
    restore()
"""


@pytest.mark.slow
def test_no_other_program_has_the_fingerprint_in_another_process():
    """Two processes, that run the same programs but for one value."""

    def ran(value: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", RUN], input=json.dumps([SOURCES, value]), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    first, again, second = ran("2.0"), ran("2.0"), ran("3.0")
    assert first == again
    assert [name for name, *_ in first] == list(SOURCES)
    for (name, one, before), (_, two, after) in zip(first, second, strict=True):
        assert before != after, name
        assert one is None or one != two, name
