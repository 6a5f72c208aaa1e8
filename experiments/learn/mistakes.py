"""Named mistakes: how the grader names each, and what brings the idea back: a failure, a question, a drill."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from experiments.learn.concepts import case


class Mistake(NamedTuple):
    said: str
    """what a verdict says of it, as a regular expression"""
    failure: str
    """of the gallery; "" if there is none"""
    question: str
    drill: str


MISTAKES = {
    "softmax over the wrong axis": Mistake("sums to one along", "softmax_wrong_axis", "softmax", "softmax"),
    "an axis is reduced, or is not": Mistake(
        "an axis is reduced|an axis that should have been reduced|axis too many or too few|wrong shape|shape \\(",
        "silent_broadcast",
        "broadcasting",
        "box_iou",
    ),
    "axes are swapped": Mistake(
        "transposed|are swapped|mat1 and mat2 shapes|split, merged or ordered another way",
        "channels_last",
        "linear",
        "linear",
    ),
    "no gradient passes": Mistake(
        "no gradient (reaches|passes)|detached", "detached_loss", "gradients", "two_layer_grads"
    ),
    "a wrong slope": Mistake("the gradient of `", "gradients_vanish", "relu", "relu"),
    "changed in place": Mistake("changed in place|in-place operation", "wrong_checkpoint", "checkpoints", "sgd"),
    "comes back as it was": Mistake(
        "comes back as it was|stays as it was", "frozen_statistics", "transfer", "batch_norm"
    ),
    "a step of the wrong size": Mistake("a step by|a step in the opposite", "rate_too_high", "optimizers", "adam"),
    "a term of the wrong sign, or missing": Mistake("the term `|sign is reversed", "zero_init", "linear", "linear"),
    "what is ignored counts": Mistake("ignore_index|-100", "per_batch_mean", "cross_entropy", "cross_entropy"),
    "a mean over the wrong number": Mistake("off by a constant factor", "per_batch_mean", "training", "eval_one_epoch"),
    "a mask the wrong way round": Mistake(
        "mask`? is (True|False)|inverted|above the diagonal|attn_mask", "wrong_axis", "attention", "causal_mask"
    ),
    "overflow": Mistake("NaN where a number|infinity where a number", "fp16_overflow", "softmax", "softmax"),
    "another dtype": Mistake("dtype torch", "float64_creeps_in", "numbers", "cross_entropy"),
    "training is not evaluation": Mistake("training=|running_", "batch_norm_trains", "norms", "batch_norm"),
    "of equal ones the wrong one": Mistake(
        "right indices in another order|of equal scores", "", "accuracy", "top_k_accuracy"
    ),
}
"""of two that one line names, the first"""


def named(lines: Sequence[str]) -> str | None:
    """Return the mistake that the first line of a refusal names, or the next that names one; None if none does."""
    told = [line for line in lines if not line.startswith("  ")]
    return next((name for line in told for name, m in MISTAKES.items() if re.search(m.said, line)), None)


def remedies(mistake: str) -> list[str]:
    """Return the tasks that bring the idea behind a mistake back."""
    m = MISTAKES[mistake]
    return [*([f"failure:{case(m.failure)}"] if m.failure else []), f"question:{m.question}", m.drill]
