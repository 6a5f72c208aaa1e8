from typing import NamedTuple

LAYERS = "tests/test_layers.py::"
CONV = "tests/test_conv.py::"
ATTENTION = "tests/test_attention.py::"
LOSSES = "tests/test_losses_metrics.py::"
OPTIM = "tests/test_optim.py::"
POSITIONS = "tests/test_positions.py::"
TRAIN = "tests/test_train.py::"
FREEZING = "tests/test_freezing.py::"
CHECKPOINT = "tests/test_checkpoint.py::"
BOXES = "tests/test_boxes.py::"
DATA = "tests/test_data.py::"
LOOPS = "tests/test_lab0_loops.py::"
GRADCHECK = "tests/test_gradcheck.py::"
LAB7 = "tests/test_lab7.py::"
PARITY = f"{LAYERS}test_is_torchs"
ODD = f"{LAYERS}test_odd_entries_are_treated_as_torch_does"
FOLLOWS = f"{OPTIM}test_follows_torch_for_100_steps"
FOLLOWS_ROUGHLY = f"{OPTIM}test_follows_torch_to_four_digits"


class Drill(NamedTuple):
    of: str
    """our function, module:name"""
    topic: str
    difficulty: int
    """1 to 3"""
    tests: tuple[str, ...]
    """of the main thing, on ordinary input"""
    hints: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    """that an answer must not call: a bare name is part of one in torch, a dotted one is a function or a module"""
    given: tuple[str, ...] = ()
    """functions beside ours that the answer may use"""
    options: tuple[str, ...] = ()
    """tests of its other arguments: they belong to a pass too"""
    edges: tuple[str, ...] = ()
    """tests of what is rare, such as ties, NaN or nothing at all, and of what is refused: they earn a star"""

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Return the tests in the order in which they run."""
        return {"main": self.tests, "options": self.options, "edges": self.edges}


def cases(test: str, *cases: str) -> tuple[str, ...]:
    return tuple(f"{test}[{case}]" for case in cases)
