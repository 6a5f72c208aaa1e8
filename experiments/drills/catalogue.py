"""What there is to write from memory. Each row is cut from a function of ours and graded by the tests that hold it.

A new drill is one row here, and one file of tests/drills: an answer in another style, and what people write instead.
"""

from typing import NamedTuple


class Drill(NamedTuple):
    of: str
    """where ours stands"""
    topic: str
    difficulty: int
    """1 to 3"""
    tests: tuple[str, ...]
    hints: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    """torch's ways to do it: the name of an op, or the dotted path of a function"""
    given: tuple[str, ...] = ()
    """functions beside ours that the answer may use"""


def _cases(test: str, *cases: str) -> tuple[str, ...]:
    return tuple(f"{test}[{case}]" for case in cases)


LAYERS, CONV, ATTENTION = "tests/test_layers.py::", "tests/test_conv.py::", "tests/test_attention.py::"
PARITY = f"{LAYERS}test_is_torchs"

DRILLS = {
    "linear": Drill(
        "fn.layers:linear",
        "Lab 0 · layers",
        1,
        _cases(PARITY, "linear", "linear, no bias", "linear, one row", "linear, sequences"),
        (
            "Which axis of x meets which axis of the weight? Read the annotations: the name that both have is summed.",
            "The weight is (d_out, d_in), so it is transposed; the bias broadcasts over every axis of the batch.",
            "y = x @ weight.T, plus the bias if there is one",
        ),
        ("linear", "addmm"),
    ),
    "relu": Drill(
        "fn.layers:relu",
        "Lab 0 · layers",
        1,
        (*_cases(PARITY, "relu"), f"{LAYERS}test_odd_entries_are_treated_as_torch_does"),
        (
            "Two things are asked for beside max(x, 0): the slope at exactly 0, and what becomes of NaN.",
            "torch.maximum shares the gradient of a tie between both arguments: a slope of one half at 0.",
            "torch.where(x <= 0, 0.0, x): a NaN is not <= 0, and the constant has slope 0",
        ),
        ("relu", "relu_", "threshold", "hardtanh", "leaky_relu", "prelu", "rrelu"),
    ),
    "softmax": Drill(
        "fn.layers:softmax",
        "Lab 0 · layers",
        1,
        (*_cases(PARITY, "softmax", "softmax, last"), f"{LAYERS}test_odd_entries_are_treated_as_torch_does"),
        (
            "exp of 1000 is infinite. Which number may be subtracted from every entry without changing the result?",
            "The largest along `dim`, with keepdim=True so that it broadcasts; it needs no gradient.",
            "e = torch.exp(x - x.detach().amax(dim, keepdim=True)), over its sum along dim",
        ),
        ("softmax", "log_softmax", "special_softmax", "softmin", "logsumexp"),
    ),
}
