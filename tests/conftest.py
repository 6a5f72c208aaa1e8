"""Settings of the whole suite, and the function under test as a fixture."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from hypothesis import settings

from experiments.drill.catalogue import DRILLS
from experiments.drill.recorder import RECORDER

collect_ignore = ["drills"]  # answers, no tests: --doctest-modules would import them

settings.register_profile("fn", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("fn")
# for the processes that tests start too: to be the same to the bit, a run must go on with as many threads
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TERM"] = "xterm"  # on a dumb terminal no bar is drawn
for _name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):  # tests read printed tables, of rich's own width
    os.environ.pop(_name, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # on tensors this small, waking a second thread costs 5 ms an op: 100 times the work


BEGUN_FIRST = ("every_wrong_answer", "labs_hold", "lab_holds", "fifty", "compiled_step", "every_variant")
"""parts of the names of the tests that take half a minute and more"""


FORKS = ("test_distributed.py", "test_lab7.py", "test_gallery_mine.py", "lab7")
"""parts of the names of the tests that go on in a fork of their process"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put those that fork first: once jit has traced a step, autograd refuses to work in a fork of the process.

    Then the longest: at the end, one would hold a single worker while the others wait.
    """
    items.sort(key=lambda item: [not any(part in item.nodeid for part in parts) for parts in (FORKS, BEGUN_FIRST)])


@pytest.fixture(scope="session")
def under_test(pytestconfig) -> Callable[[Any], Any]:
    """under_test(f) is `f`, also in a `partial`: our function, or the answer that a drill's grader puts in its place.

    For tables of cases. A test of one function takes it as a fixture of that name: `def test_…(softmax)`.
    """
    recorder = pytestconfig.stash.get(RECORDER, None)

    def stand_in(f: Any) -> Any:
        if isinstance(f, partial):
            return partial(stand_in(f.func), *map(stand_in, f.args), **{k: stand_in(v) for k, v in f.keywords.items()})
        return recorder if recorder is not None and f is recorder.ours else f

    return stand_in


@pytest.fixture(scope="session")
def steps(pytestconfig) -> int:
    """For how many steps our optimizer is followed; fewer tell a wrong answer, while somebody waits for the verdict."""
    return 100 if pytestconfig.stash.get(RECORDER, None) is None else 40


def _fixture_of(where: str) -> Any:
    name = where.partition(":")[2]
    return pytest.fixture(lambda under_test: under_test(resolve_name(where)), scope="session", name=name)


for _drill in DRILLS.values():
    globals()[f"_{_drill.of}"] = _fixture_of(_drill.of)
