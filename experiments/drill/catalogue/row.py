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
LOOPS = "tests/test_loops.py::"
GRADCHECK = "tests/test_gradcheck.py::"
PARITY = f"{LAYERS}test_is_torchs"
FOLLOWS = f"{OPTIM}test_follows_torch_for_100_steps"


class Drill(NamedTuple):
    of: str
    """our function, module:name"""
    topic: str
    difficulty: int
    """1 to 3"""
    tests: tuple[str, ...]
    hints: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    """that an answer must not call: a bare name is part of one in torch, a dotted one is a function or a module"""
    given: tuple[str, ...] = ()
    """functions beside ours that the answer may use"""


def cases(test: str, *cases: str) -> tuple[str, ...]:
    return tuple(f"{test}[{case}]" for case in cases)
