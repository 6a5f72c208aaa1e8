"""Whatever number a function of fn is given, it answers, or refuses it in an error that names the argument.

Every argument in the table of numbers, tests.test_domains.NUMBERS, is given nonsense: what lies outside its domain is
refused before anything is computed; what lies inside is answered, or refused by name for how it goes with the others.
tests/test_invalid_numbers_torch.py holds the answers to torch's.
"""

import inspect
import math
import re
from collections.abc import Callable, Generator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype.door import is_bearable
from jaxtyping import AnnotationError, TypeCheckError

from fn.attention import multi_head_attention, multi_head_attention_init
from fn.backbones import BACKBONES
from fn.checkpoint import Progress
from fn.conv import axis_entries, conv2d_init, output_size
from fn.curvature import gradient_noise_scale, hvp, per_sample_grads, sharpness
from fn.data.datasets import Split
from fn.data.scenes import Scenes
from fn.data.sequences import TOYS
from fn.detection.boxes import nms
from fn.ensemble import ensemble_batches, ensemble_key, member, stack
from fn.generation import require_logits, sample
from fn.gradcheck import largest, relative_error
from fn.layers import batch_norm
from fn.losses import cross_entropy
from fn.metrics import accuracy, confusion_matrix, exact_match, top_k_accuracy
from fn.models.cnn import cnn, cnn_init
from fn.models.mlp import mlp
from fn.models.pyramid import small_backbone
from fn.models.resnet import resnet, resnet_init
from fn.models.transformer import transformer
from fn.optim import adam_init, sgd, sgd_init, sgd_update
from fn.rng import generator
from tests.test_domains import EXAMPLES, NUMBERS, TOWER
from tests.test_shape_checks import CHECKED, PERCEPTRON_AT_REST, SMALL_BACKBONE, WEIGHTS, Watch, name_of, valid

SCENES = Scenes(torch.zeros(2, 1, 8, 8), torch.tensor([[[0.0, 0, 4, 4, 0]]] * 2))
SPLIT = Split(torch.zeros(2, 1, 3, 3), torch.zeros(2).long())
RESNET8 = BACKBONES["resnet8"]
ANYTHING = [0, 1, 1.0, "none", "fan_in", (4, 4, 4), (4, 4), ((1.0, 1.0),), (((1.0, 1.0),),), {}]
ANYTHING += [None, torch.ones(2, 2), generator(0), sgd(lr=1.0), SPLIT, SCENES, SMALL_BACKBONE, len, mlp((3,), 2)]
# What cannot be guessed from the annotations, of functions that take no tensor.
GIVEN: dict[str, dict[str, Any]] = {
    "fn.checkpoint.save": {"progress": Progress()},
    "fn.backbones.head_model": {"spec": RESNET8},
    "fn.backbones.transfer_model": {"spec": RESNET8, "weights": None},
    "fn.conv.pool_padding": {"shape": (6, 6)},
    "fn.data.sequences.toy_examples": {"toy": TOYS["copy"]},
    "fn.draw.labels.place_labels": {"boxes": [[1, 2, 3, 4]], "texts": ["a"], "image": (99.0, 99.0), "size": 8.0},
    "fn.ensemble.ensemble_init": {"optimizer": sgd},
    "fn.ensemble.member": {"ts": stack([PERCEPTRON_AT_REST] * 2)},
    "fn.gradcheck.numerical_grad": {"f": lambda params: params["w"].sum(), "params": WEIGHTS},
    "fn.metrics.add_examples": {"totals": {}, "metrics": {"loss": 1.0}},
    "fn.models.resnet.resnet_init": {"blocks": (1, 1), "widths": (2, 3)},
    "fn.models.resnet.resnet_network": {"depth": 8},
    "fn.models.pyramid.backbone_init": {"widths": (2,) * 6},
    "fn.optim.clip_grad_norm": {"grads": WEIGHTS},
    "fn.positions.sinusoidal_encoding": {"d_model": 4},
    "fn.train.is_overfit": {"metrics": {"accuracy": 1.0, "loss": 0.0}},
    "fn.train.train_one_epoch": {"ts": PERCEPTRON_AT_REST, "batches": []},
}
FILES = "reads or writes files"
NOT_RUN = {
    "fn.checkpoint.save": FILES,
    "fn.data.datasets.folder": FILES,
    "fn.data.voc.voc": FILES,
    "fn.data.scenes.digits": FILES,
    "fn.data.loader.batches.workers": "starts processes",
    "fn.rng.seed_global_state": "sets the generators of the whole process",
}
"""functions, or an argument of one, to which only what lies outside the domain is given, and why"""


def fit(annotation: Any) -> Any:
    """Return a value that the annotation accepts."""
    if inspect.isclass(annotation) and hasattr(annotation, "_fields"):
        return next((x for x in ANYTHING if isinstance(x, annotation)), None)
    choices = [*ANYTHING, False, Path(), EXAMPLES["Bands"].inside[0]]
    return next(x for x in choices if is_bearable(x, annotation, conf=TOWER))


@cache
def given_to(f: Callable) -> dict[str, Any]:
    """Return arguments that `f` accepts."""
    if f in CHECKED:
        return valid(f)[0]
    given = dict(GIVEN.get(name_of(f), {}))
    for name, parameter in inspect.signature(f).parameters.items():
        if parameter.default is not parameter.empty:
            given.setdefault(name, parameter.default)
        elif parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and name not in given:
            given[name] = fit(parameter.annotation)
    return given


def call(f: Callable, parameter: str, number: Any) -> Any:
    given = given_to(f)
    if inspect.signature(f).parameters[parameter].kind is inspect.Parameter.VAR_POSITIONAL:
        return f(*given.values(), number)
    result = f(**given | {parameter: number})
    return next(result, None) if isinstance(result, Generator) else result


def names(error: Exception, parameter: str) -> bool:
    """Return whether the error is about this argument, by a type that is not fulfilled or in its words."""
    text = str(error)
    if isinstance(error, TypeCheckError):
        blamed = re.search(r"typechecking parameter '(\w+)'", text)
        expected = re.search(r"Expected type: (.*)", text)
        return any(part and re.search(rf"\b{parameter}\b", part[1]) for part in (blamed, expected))
    return re.search(rf"\b{parameter}\b", text) is not None


def refuse_outside(f: Callable, parameter: str, number: Any) -> None:
    given_to(f)
    with Watch() as watch, pytest.raises((TypeCheckError, AnnotationError)) as refusal:
        call(f, parameter, number)
    assert not watch.ran, "it was refused, but not before this was computed"
    if parameter == "groups" and "{groups}" in str(
        inspect.signature(f)
    ):  # the axis channels//{groups} of the weight is read first, and blamed
        assert "channels//{groups}" in str(refusal.value)
        return
    assert f"checking the parameters of {name_of(f)}.\n" in str(refusal.value)
    assert f"typechecking parameter '{parameter}'.\n" in str(refusal.value)


def outside(f: Callable, parameter: str, domain: str) -> list[Any]:
    """Return what the annotation does not take: None may be a default, a word a way to pad."""
    annotation = inspect.signature(f).parameters[parameter].annotation
    return [x for x in EXAMPLES[domain].outside if not is_bearable(x, annotation, conf=TOWER)]


def some(items: list[Any], count: int, seed: str) -> list[Any]:
    """Return so many of the items, others for another seed, but the same in every run."""
    start = sum(map(ord, seed))
    return [items[(start + i * len(items) // count) % len(items)] for i in range(min(count, len(items)))]


ROWS = {f: [row for row in NUMBERS if row[0] is f] for f in dict.fromkeys(f for f, *_ in NUMBERS)}


@pytest.mark.parametrize("f", ROWS, ids=name_of)
def test_a_number_outside_is_refused_before_anything_is_computed(f):
    """An argument of each function; the slow test below takes all."""
    [(_, parameter, domain)] = some(ROWS[f], 1, name_of(f))
    [number] = some(outside(f, parameter, domain), 1, name_of(f))
    refuse_outside(f, parameter, number)


@pytest.mark.slow
@pytest.mark.parametrize(("f", "parameter", "domain"), NUMBERS, ids=name_of)
def test_every_argument_refuses_numbers_outside(f, parameter, domain):
    """Three of those that its annotation does not take; why it is refused is the same for all."""
    for number in some(outside(f, parameter, domain), 3, name_of(f) + parameter):
        refuse_outside(f, parameter, number)


RUN = [row for row in NUMBERS if not {name_of(row[0]), f"{name_of(row[0])}.{row[1]}"} & NOT_RUN.keys()]


def answer_or_name(f: Callable, parameter: str, number: Any) -> None:
    refusal: Exception | None = None
    try:
        call(f, parameter, number)
    except (ValueError, TypeCheckError) as error:
        refusal = error
    assert refusal is None or names(refusal, parameter), refusal


@pytest.mark.slow
@pytest.mark.parametrize(("f", "parameter", "domain"), RUN, ids=name_of)
def test_a_number_inside_is_answered_or_refused_by_name(f, parameter, domain):
    for number in EXAMPLES[domain].inside:
        answer_or_name(f, parameter, number)


def test_every_function_with_a_number_is_given_nonsense():
    with_numbers, run = ({name_of(f) for f, *_ in rows} for rows in (NUMBERS, RUN))
    assert len(with_numbers) > 180
    assert with_numbers - run == {name for name in NOT_RUN if name in with_numbers}


LOGITS, X = torch.zeros(2, 3), torch.zeros(2, 5, 8)
NO_STATISTICS = (torch.zeros(3), torch.ones(3))
HEADS = multi_head_attention_init(generator(0), 8)
OBJECTIVE = lambda params, state, x, y: (x.sum(), ({}, state))  # noqa: E731
METRICS: dict[str, Callable] = {f.__name__: f for f in (cross_entropy, accuracy, exact_match, confusion_matrix)}
METRICS |= {"top_k_accuracy": partial(top_k_accuracy, k=2)}
# Faults that were found: each ended in another error, or in an answer.
FOUND: dict[str, tuple[Callable[[], Any], str]] = {
    "no stride": (lambda: output_size(32, 3, 0), "stride"),
    "no window": (lambda: conv2d_init(generator(0), 1, 1, 0), "kernel_size"),
    "groups that do not divide": (lambda: conv2d_init(generator(0), 3, 4, 3, groups=2), "groups"),
    "no such axis": (lambda: axis_entries(torch.zeros(4, 4), 9, 2), "dim"),
    "a negative eps": (lambda: batch_norm(LOGITS, *NO_STATISTICS, training=True, eps=-2.0), "eps"),
    "a NaN momentum": (lambda: batch_norm(LOGITS, *NO_STATISTICS, training=True, momentum=math.nan), "momentum"),
    "a NaN threshold": (lambda: nms(torch.ones(1, 4), torch.ones(1), math.nan), "iou_threshold"),
    "a mask of the examples or of the heads": (
        lambda: multi_head_attention(X, X, X, 2, **HEADS, attn_mask=torch.ones(2, 5, 5).bool()),
        "attn_mask",
    ),
    **{
        f"{name}, target {target}": (partial(metric, LOGITS, torch.tensor([0, target])), "target")
        for name, metric in METRICS.items()
        for target in (-1, 3, 2**40)
    },
    "a target under vmap": (lambda: torch.func.vmap(cross_entropy)(LOGITS[None], torch.tensor([[0, 3]])), "target"),
    "a target under grad": (lambda: torch.func.grad(cross_entropy)(LOGITS, torch.tensor([0, -1])), "target"),
    "the state of nothing": (lambda: adam_init({}), "params"),
    "the state of nothing, sgd": (lambda: sgd_init({}), "params"),
    "an update of nothing": (lambda: sgd_update({}, {}, {}, lr=0.1), "params"),
    "the noise of nothing": (lambda: gradient_noise_scale({}), "grads"),
    "the curvature of nothing": (lambda: sharpness(lambda p: torch.zeros(()), {}, key=torch.tensor(0)), "params"),
    "the Hessian of nothing": (lambda: hvp(lambda p: torch.zeros(()), {}, {}), "params"),
    "gradients of nothing": (lambda: per_sample_grads(OBJECTIVE, {}, {}, LOGITS, torch.tensor([0, 1])), "params"),
    "the error of nothing": (lambda: relative_error({}, {}), "tree1"),
    "the largest of none": (lambda: largest([]), "values"),
    "a class of none": (lambda: sample(torch.zeros(0), torch.tensor(0)), "logits"),
    "logits of none": (lambda: require_logits(torch.zeros(0)), "logits"),
    "the keys of none": (lambda: ensemble_key([]), "seeds"),
    "the batches of none": (lambda: ensemble_batches(3, 2, seeds=[], epoch=0), "seeds"),
    "an ensemble of none": (lambda: stack([]), "members"),
    "no such member": (lambda: member(stack([PERCEPTRON_AT_REST]), 1), "k"),
    "nesterov without a momentum": (lambda: sgd(lr=0.1, nesterov=True), "nesterov"),
    "no block": (lambda: cnn_init(generator(0), (1, 8, 8), 3, ()), "widths"),
    "too few widths": (lambda: small_backbone(1, widths=(4, 4)), "widths"),
    "no stage": (lambda: resnet_init(generator(0), 1, 3, blocks=(), widths=()), "widths"),
}


LAYERED: dict[str, tuple[Any, str]] = {
    "mlp": (mlp((1, 8, 8), 3, hidden=(4, 4)), "layers"),
    "cnn": (cnn((1, 8, 8), 3, widths=(4, 4)), "blocks"),
    "text": (transformer((6,), 3, d_model=8, layers=2), "layers"),
    "images": (transformer((1, 8, 8), 3, d_model=8, layers=2), "layers"),
    "resnet": (resnet((1, 8, 8), 3, depth=8), "blocks"),
}
"""a model, and the argument that says how many layers it has"""


@pytest.mark.parametrize("change", [-1, 1], ids=["fewer", "more"])
@pytest.mark.parametrize("name", LAYERED)
def test_another_number_of_layers_than_the_parameters_hold_is_refused(name, change):
    model, argument = LAYERED[name]
    params, state = model.init(generator(0))
    said = model.apply.keywords[argument]
    other = said + change if isinstance(said, int) else (*said[:-1], said[-1] + change)
    x = torch.zeros(2, 6).long() if name == "text" else torch.zeros(2, 1, 8, 8)
    model.apply(params, state, x, train=False)
    with pytest.raises(ValueError, match=f"{argument}.* but the parameters hold"):
        model.apply(params, state, x, train=False, **{argument: other})


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_refused_by_name(name):
    do, parameter = FOUND[name]
    with pytest.raises((ValueError, TypeCheckError)) as refusal:
        do()
    assert names(refusal.value, parameter)


def test_a_target_that_is_ignored_may_be_no_class():
    for ignored in (-100, 7):
        target = torch.tensor([0, ignored])
        options: dict[str, Any] = {"ignore_index": ignored}
        assert cross_entropy(LOGITS, target, **options) == torch.nn.functional.cross_entropy(LOGITS, target, **options)
        assert top_k_accuracy(LOGITS, target, 1, **options) == exact_match(LOGITS, target, **options) == 1
        assert confusion_matrix(LOGITS, target, **options).sum() == 1


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (2, 3, 0, 4)])
def test_an_empty_batch_trains_batch_norm_as_torchs(shape):
    """It is empty, and moves no statistics."""
    mean, var = (t.clone() for t in NO_STATISTICS)
    expected = torch.nn.functional.batch_norm(torch.zeros(shape), mean, var, training=True)
    y, state = batch_norm(torch.zeros(shape), *NO_STATISTICS, training=True)
    assert y.shape == expected.shape
    assert torch.equal(state["running_mean"], mean)
    assert torch.equal(state["running_var"], var)


def test_a_mask_with_all_axes_is_for_an_example_or_for_a_head():
    seen = torch.ones(5, 5).bool().tril()
    whole, _ = multi_head_attention(X, X, X, 2, **HEADS, attn_mask=seen)
    for mask in (seen[None], seen.expand(2, 1, 5, 5), seen.expand(1, 2, 5, 5), seen.expand(2, 2, 5, 5)):
        assert torch.equal(multi_head_attention(X, X, X, 2, **HEADS, attn_mask=mask)[0], whole)
    alone, _ = multi_head_attention(X[0], X[0], X[0], 2, **HEADS, attn_mask=seen.expand(2, 5, 5))
    assert torch.equal(alone, whole[0])
