"""Losses beside torch's, metrics beside scikit-learn's, over random cases; ties, NaN and refusals by their laws."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
import torchvision.ops
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from fn.layers import embedding
from fn.losses import cross_entropy, mse_loss, penalty_reduced_focal_loss, sigmoid_focal_loss, smooth_l1_loss
from fn.metrics import confusion_matrix, count_examples, count_targets, exact_match
from fn.rng import generator
from tests.strategies import Case, agree, lifts, made_by, tensor

REDUCTIONS = st.sampled_from(["mean", "sum", "none"])


@st.composite
def classified(draw: st.DrawFn, counted: int = 0) -> Case:
    """Logits and targets, some ignored: by a number beyond the classes, or by one of them. Some `counted`, if asked."""
    batch, classes = draw(st.tuples(st.integers(1, 5), st.integers(1, 6)))
    positions = draw(st.sampled_from([(), (3,), (2, 3)]))
    ignore_index = draw(st.sampled_from([-100, -1, 0, classes - 1, classes]))
    logits = draw(st.sampled_from([1, 30])) * draw(tensor(batch, classes, *positions))
    target = draw(tensor(batch, *positions, below=classes))
    ignored = draw(tensor(batch, *positions, below=draw(st.sampled_from([1, 2, 10**6])))) == 0
    ignored.view(-1)[:counted] = False
    target = torch.where((target == ignore_index) & ~ignored, (target + 1) % classes, target) if counted else target
    options = {"ignore_index": ignore_index, "reduction": draw(REDUCTIONS)}
    smoothing = draw(st.just(0.0) | st.floats(0, 1))
    return Case((logits, torch.where(ignored, ignore_index, target)), options | {"label_smoothing": smoothing})


@settings(max_examples=40)
@given(made_by(lambda t, a, b, c: (t(a, b + 1, c), t(a, c, below=b + 1))))
def test_cross_entropy_of_logits_and_classes_is_torchs(cross_entropy, tensors):
    agree(cross_entropy, F.cross_entropy, *tensors)


@settings(max_examples=40)
@given(classified(counted=1))
def test_the_options_of_cross_entropy_are_torchs(cross_entropy, case: Case):
    assume((case.tensors[1] != case.options["ignore_index"]).any())
    agree(partial(cross_entropy, **case.options), partial(F.cross_entropy, **case.options), *case.tensors)


@given(classified())
def test_cross_entropy_is_torchs(cross_entropy, case: Case):
    agree(partial(cross_entropy, **case.options), partial(F.cross_entropy, **case.options), *case.tensors)


@given(classified(), st.data())
def test_classes_have_the_weights_of_torchs(case: Case, data):
    """0 too, short of smoothing the labels of nothing: that is ∞ here, NaN there. torch's has no gradient for them."""
    weight = data.draw(tensor(case.tensors[0].shape[1])).abs()  # pyright: ignore[reportOptionalMemberAccess]
    if not case.options["label_smoothing"]:
        weight[: data.draw(st.integers(0, 1))] = 0
    ours, torchs = (
        lambda x, y, f=f: f(x, y, weight.to(x.dtype), **case.options) for f in (cross_entropy, F.cross_entropy)
    )
    agree(ours, torchs, *case.tensors)


@given(classified(), st.booleans(), st.data())
def test_a_target_may_be_probabilities_as_torchs(case: Case, weighted, data):
    """Any numbers in place of probabilities; `ignore_index` is for indices."""
    (logits, _), options = case.tensors, {k: x for k, x in case.options.items() if k != "ignore_index"}
    assert logits is not None
    given = (logits, data.draw(tensor(*logits.shape)), *([data.draw(tensor(logits.shape[1]))] if weighted else []))
    agree(partial(cross_entropy, **options), partial(F.cross_entropy, **options), *given)


@given(made_by(lambda t, a, b, c: (t(a, b, c), t(a, b, c))), REDUCTIONS)
def test_mse_loss_is_torchs(tensors, reduction):
    agree(partial(mse_loss, reduction=reduction), partial(F.mse_loss, reduction=reduction), *tensors)


@given(made_by(lambda t, a, b, c: (t(a, b, c), t(a, b, c))), REDUCTIONS, st.sampled_from([0.0, 0.11, 1.0, 3]))
def test_smooth_l1_loss_is_torchs(tensors, reduction, beta):
    options = {"reduction": reduction, "beta": beta}
    agree(partial(smooth_l1_loss, **options), partial(F.smooth_l1_loss, **options), *tensors)


def softly(targets: Tensor) -> Tensor:
    """N(0, 1) -> targets in [0, 1], a third of each end."""
    return (targets + 0.5).clamp(0, 1).detach()


@given(
    made_by(lambda t, a, b, c: (10 * t(a, b, c), softly(t(a, b, c)))),
    REDUCTIONS,
    st.sampled_from([-1, 0, 0.25, 1]),
    st.sampled_from([0, 0.5, 2]),
)
def test_sigmoid_focal_loss_is_torchvisions(tensors, reduction, alpha, gamma):
    inputs, targets = tensors
    ours, reference = (
        lambda x, f=f: f(x, targets.to(x.dtype), alpha=alpha, gamma=gamma, reduction=reduction)
        for f in (sigmoid_focal_loss, torchvision.ops.sigmoid_focal_loss)
    )
    # gamma below 1 has a slope of 0 to a negative power where p is exactly the target
    agree(ours, reference, inputs, tol={torch.float64: 1e-8})


@pytest.mark.parametrize("alpha", [2, -0.5])
def test_sigmoid_focal_loss_refuses_an_alpha_that_is_no_share(alpha):
    with pytest.raises(TypeCheckError, match="'alpha'"):
        sigmoid_focal_loss(torch.zeros(1), torch.zeros(1), alpha=alpha)


def penalty_reduced(inputs: Tensor, targets: Tensor) -> Tensor:
    """Equation 1 of CornerNet, its two cases put together by masks."""
    centre = (targets == 1).to(inputs)
    at = (1 - inputs.sigmoid()) ** 2 * F.logsigmoid(inputs)
    away = (1 - targets) ** 4 * inputs.sigmoid() ** 2 * F.logsigmoid(-inputs)
    return -(centre * at + (1 - centre) * away)


@given(made_by(lambda t, a, b, c: (10 * t(a, b, c), softly(t(a, b, c)))), REDUCTIONS)
def test_penalty_reduced_focal_loss_is_equation_1(tensors, reduction):
    inputs, targets = tensors
    reduce = {"none": lambda x: x, "sum": torch.sum, "mean": torch.mean}[reduction]
    agree(
        lambda x: penalty_reduced_focal_loss(x, targets.to(x.dtype), reduction=reduction),
        lambda x: reduce(penalty_reduced(x, targets.to(x.dtype))),
        inputs,
    )


@pytest.mark.parametrize("loss", [sigmoid_focal_loss, penalty_reduced_focal_loss])
def test_focal_losses_stay_finite_for_logits_of_any_size(loss):
    inputs, targets = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True), torch.tensor([0.0, 1, 1, 0])
    loss(inputs, targets).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.isfinite().all()
    torch.testing.assert_close(loss(inputs, targets)[2:], torch.zeros(2))


LOSSES: dict[str, tuple[Any, Any]] = {
    "cross_entropy": (
        partial(cross_entropy, ignore_index=1, label_smoothing=0.2),
        lambda t, a, b, c: (t(a, 4, b), t(a, b, below=3)),
    ),
    "cross_entropy, weighted": (
        lambda x, y, w, **options: cross_entropy(x, y, w, **options),
        lambda t, a, b, c: (t(a, 4, b), t(a, b, below=4), t(4).abs()),
    ),
    "cross_entropy, probabilities": (
        partial(cross_entropy, label_smoothing=0.2),
        lambda t, a, b, c: (t(a, 4, b), t(a, 4, b).abs()),
    ),
    "mse_loss": (mse_loss, lambda t, a, b, c: (t(a, b), t(a, b))),
    "smooth_l1_loss": (smooth_l1_loss, lambda t, a, b, c: (t(a, b), t(a, b))),
    "sigmoid_focal_loss": (sigmoid_focal_loss, lambda t, a, b, c: (t(a, b), t(a, b).clamp(0.1, 0.9))),
    "penalty_reduced_focal_loss": (penalty_reduced_focal_loss, lambda t, a, b, c: (t(a, b), t(a, b).clamp(0, 1))),
}


@pytest.mark.parametrize(("loss", "maker"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@settings(max_examples=5)
@given(data=st.data())
def test_lifts(loss, maker, reduction, data):
    lifts(partial(loss, reduction=reduction), *data.draw(made_by(maker)))


@pytest.mark.parametrize("logits", [[1.0, 2.0, -math.inf], [1.7e308, -1.7e308, 0.0]], ids=["masked", "huge"])
def test_an_impossible_class_costs_nothing_without_smoothing(cross_entropy, logits):
    x, target = torch.tensor([logits], dtype=torch.float64), torch.tensor([0])
    agree(cross_entropy, F.cross_entropy, x, target, tol={torch.float64: 1e-10})


def test_the_loss_of_even_odds_is_the_log_of_their_number(cross_entropy):
    for smoothing in (0.0, 0.3, 1.0):
        loss = cross_entropy(torch.zeros(4, 10), torch.arange(4), label_smoothing=smoothing)
        assert float(loss) == pytest.approx(math.log(10))


def test_mse_loss_refuses_a_column_beside_a_row():
    column, row = torch.ones(3, 1), torch.ones(3)
    for pair in ((column, row), (row, column)):
        with pytest.raises(TypeCheckError, match="mse_loss"):
            mse_loss(*pair)


def test_a_target_that_is_no_class_is_refused(cross_entropy):
    for target in (3, -1):
        with pytest.raises((ValueError, IndexError, RuntimeError), match=f"target: index {target} is none of 3 rows"):
            cross_entropy(torch.ones(1, 3), torch.tensor([target]))


NARROW = [torch.int8, torch.int16, torch.int32]


@pytest.mark.parametrize("dtype", NARROW)
def test_targets_of_any_int_are_classes(cross_entropy, accuracy, top_k_accuracy, dtype):
    """Of int8 a product with 100 classes overflows, and -1 equals 255; torch gathers by int64 alone."""
    logits, target = torch.randn(300, 100, generator=generator(0)), torch.arange(300) % 100
    ops = [cross_entropy, accuracy, partial(top_k_accuracy, k=3), exact_match, confusion_matrix]
    ops += [lambda _, target: count_targets(target), lambda _, target: count_examples(target)]
    for op in ops:
        assert torch.equal(op(logits, target.to(dtype)), op(logits, target))
    assert int(count_targets(torch.tensor([-1, 3], dtype=dtype), ignore_index=255)) == 2


@pytest.mark.parametrize("dtype", NARROW)
def test_an_index_of_any_int_is_a_row(dtype):
    table, x = torch.randn(200, 3, generator=generator(0)), torch.tensor([0, 100, 127])
    assert torch.equal(embedding(x.to(dtype), table), table[x])


@st.composite
def scored(draw: st.DrawFn, fewest: int = 1, ties: bool | None = None) -> tuple[Tensor, Tensor]:
    """Scores, with many ties or with none, or as often with as without, and targets."""
    batch, classes = draw(st.tuples(st.integers(1, 12), st.integers(fewest, 6)))
    ties = draw(st.booleans()) if ties is None else ties
    return draw(tensor(batch, classes, ties=ties)), draw(tensor(batch, below=classes))


with_and_without_ties = pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])


@with_and_without_ties
@settings(max_examples=100)
@given(data=st.data())
def test_accuracy_is_scikit_learns(accuracy, ties, data):
    scores, target = data.draw(scored(ties=ties))
    first = np.argmax(scores.numpy(), axis=1)
    assert float(accuracy(scores, target)) == pytest.approx(sklearn.metrics.accuracy_score(target, first))


def test_accuracy_over_positions_is_that_of_all_their_targets(accuracy):
    rng = generator(0)
    scores, target = torch.randn(4, 3, 5, 2, generator=rng), torch.randint(3, (4, 5, 2), generator=rng)
    first = scores.movedim(1, -1).flatten(0, -2).argmax(dim=1)
    expected = sklearn.metrics.accuracy_score(target.flatten(), first)
    assert float(accuracy(scores, target)) == pytest.approx(expected)


def test_accuracy_leaves_out_what_is_ignored(accuracy):
    """Of images: where all that is right is ignored, nothing is left; and one more target, right, is all of it."""
    rng = generator(0)
    scores, target = torch.randn(4, 3, 5, 2, generator=rng), torch.randint(3, (4, 5, 2), generator=rng)
    first = scores.movedim(1, -1).flatten(0, -2).argmax(dim=1)
    right = first.reshape(target.shape) == target
    target[right] = -100
    assert float(accuracy(scores, target)) == 0
    target[1, 1, 1] = scores[1, :, 1, 1].argmax()
    assert float(accuracy(scores, target)) == pytest.approx(1 / int((target != -100).sum()))


@with_and_without_ties
@settings(max_examples=100)
@given(data=st.data())
def test_top_k_accuracy_is_scikit_learns(top_k_accuracy, ties, data):
    """Of equal scores scikit-learn ranks the higher class first (a stable sort, reversed): its classes are reversed."""
    scores, target = data.draw(scored(fewest=3, ties=ties))
    classes = scores.shape[1]
    k = data.draw(st.integers(1, classes - 1))
    flipped = {"y_true": classes - 1 - target, "y_score": scores.flip(1), "labels": range(classes)}
    expected = sklearn.metrics.top_k_accuracy_score(**flipped, k=k)
    assert float(top_k_accuracy(scores, target, k)) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(scored(), st.data())
def test_confusion_matrix_is_scikit_learns(case, data):
    """Of the targets that count; one at least, as scikit-learn takes no empty set."""
    scores, target = case
    first = torch.from_numpy(np.argmax(scores.numpy(), axis=1))
    ignored = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(target), max_size=len(target))))
    ignored[data.draw(st.integers(0, len(target) - 1))] = False
    expected = sklearn.metrics.confusion_matrix(target[~ignored], first[~ignored], labels=range(scores.shape[1]))
    assert confusion_matrix(scores, torch.where(ignored, -100, target)).tolist() == expected.tolist()


@given(scored())
def test_the_metrics_hang_together(accuracy, top_k_accuracy, case):
    """The first of k outrank the others, all k = classes are right, and the diagonal counts the accurate rows."""
    scores, target = case
    curve = [float(top_k_accuracy(scores, target, k)) for k in range(1, scores.shape[1] + 1)]
    assert curve == sorted(curve)
    assert curve[-1] == 1
    right = float(confusion_matrix(scores, target).trace()) / len(target)
    assert curve[0] == pytest.approx(right)
    assert float(accuracy(scores, target)) == pytest.approx(right)


@with_and_without_ties
@settings(max_examples=100)
@given(case=classified(), data=st.data())
def test_metrics_over_positions_count_what_is_not_ignored(accuracy, top_k_accuracy, ties, case, data):
    """By the definition, one target at a time: fewer than k classes outrank it."""
    (scores, target), ignore_index = case.tensors, case.options["ignore_index"]
    scores = scores.round() if ties else scores
    k = data.draw(st.integers(1, scores.shape[1]))
    rows = scores.flatten(2) if scores.ndim > 2 else scores[..., None]
    examples = [
        [rank(rows[i, :, j].tolist(), t) for j, t in enumerate(wanted) if t != ignore_index]
        for i, wanted in enumerate(target.reshape(len(target), -1).tolist())
    ]
    ranks = [r for example in examples for r in example]
    options = {"ignore_index": ignore_index}
    counting = [example for example in examples if example]
    exact = sum(all(r == 0 for r in example) for example in counting) / len(counting) if counting else math.nan
    assert float(exact_match(scores, target, **options)) == pytest.approx(exact, nan_ok=True)
    expected = sum(r < k for r in ranks) / len(ranks) if ranks else math.nan
    assert float(top_k_accuracy(scores, target, k, **options)) == pytest.approx(expected, nan_ok=True)
    if ignore_index == -100:
        first = float(top_k_accuracy(scores, target, 1))
        assert float(accuracy(scores, target)) == pytest.approx(first, nan_ok=True)


def rank(scores: list[float], target: int) -> int:
    """Return how many classes outrank the target; of equal scores the lower class does."""
    return sum((-s, c) < (-scores[target], target) for c, s in enumerate(scores))


def test_of_equal_scores_the_lower_class_outranks(top_k_accuracy):
    even = torch.zeros(4, 4)
    assert [float(top_k_accuracy(even, torch.arange(4), k)) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1]


@given(scored(fewest=2), st.data())
def test_a_nan_score_is_never_right(accuracy, top_k_accuracy, case, data):
    """Short of k = classes, where nothing is left to be wrong about."""
    scores, target = case
    k = data.draw(st.integers(1, scores.shape[1] - 1))
    own = scores.scatter(1, target.unsqueeze(1), math.nan)
    assert float(top_k_accuracy(own, target, k)) == 0
    assert float(accuracy(torch.full_like(scores, math.nan), target)) == 0


def test_a_nan_score_predicts_nothing(accuracy):
    scores, target = torch.tensor([[math.nan, 1.0], [0.0, 1.0]]), torch.tensor([0, 1])
    assert accuracy(scores, target) == 0.5
    with pytest.raises(ValueError, match="a score is NaN"):
        confusion_matrix(scores, target)


@pytest.mark.parametrize("k", [0, 4])
def test_top_k_accuracy_refuses_a_k_beyond_the_classes(top_k_accuracy, k):
    with pytest.raises((ValueError, TypeCheckError), match=rf"k={k} is not between 1 and 3|'k'"):
        top_k_accuracy(torch.ones(2, 3), torch.tensor([0, 1]), k)


def test_an_empty_batch_has_no_exact_match():
    target = torch.zeros(0, 4, dtype=torch.int64)
    assert exact_match(torch.zeros(0, 3, 4), target).isnan()
    assert count_examples(target) == 0
