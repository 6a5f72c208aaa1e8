"""Boxes are torchvision's, anchors and heat maps keep their laws, average precision is pycocotools'."""

import contextlib
import io
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.ops as ops
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.func import vmap

import fn.detection.average_precision
from fn.detection import boxes as ours
from fn.detection.anchors import anchor_grid, hard_negatives, sizes_by_ratio
from fn.detection.average_precision import AT_50, AT_75, SIZES, THRESHOLDS, average_precision_naive, summarize
from fn.detection.boxes import box_convert, clip_boxes_to_image, nms_naive, remove_small_boxes
from fn.detection.heatmaps import center_heatmap, gaussian_radius, peaks
from fn.rng import generator
from tests.strategies import LAYOUTS, agree, lifts

FORMATS = st.sampled_from(["xyxy", "xywh", "cxcywh"])


def random_boxes(rng: torch.Generator, n: int, span: float = 100.0, largest: float = 40.0) -> Tensor:
    corner, size = torch.rand(2, n, 2, generator=rng, dtype=torch.float64)
    return torch.cat([span * corner, span * corner + largest * size], dim=1)


@st.composite
def boxes(draw: st.DrawFn, sound: bool = False) -> Tensor:
    """Random ones in any layout; unless `sound`, with some that touch, coincide, nest, are huge or flat; or none"""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    first = random_boxes(rng, draw(st.integers(1, 6)))
    if sound:
        return LAYOUTS[draw(st.sampled_from(["contiguous", "transposed", "every other"]))](first)
    odd = {
        "flat": [[10, 10, 10, 30], [5, 5, 5, 5]],
        "touching": [[0, 0, 10, 10], [10, 0, 20, 10]],
        "nested": [[0, 0, 40, 40], [10, 10, 20, 20], [0, 0, 40, 40]],
        "huge": [[-1e6, -1e6, 1e6, 1e6]],
        "reversed": [[30, 30, 10, 10]],
        "none": [],
    }
    kinds = draw(st.lists(st.sampled_from(list(odd)), unique=True))
    parts = [torch.tensor(odd[kind], dtype=torch.float64).reshape(-1, 4) for kind in kinds]
    first = torch.cat([first, *parts]) if "none" not in kinds else first[:0]
    return LAYOUTS[draw(st.sampled_from(["contiguous", "transposed", "every other"]))](first)


@given(boxes(), FORMATS, st.sampled_from([torch.float16, torch.bfloat16]))
def test_a_format_converted_to_itself_keeps_every_bit(first, fmt, dtype):
    first = first.to(dtype)
    assert torch.equal(box_convert(first, fmt, fmt).view(torch.int16), first.contiguous().view(torch.int16))


@given(boxes(), FORMATS, FORMATS)
def test_box_convert_is_torchvisions(first, in_fmt, out_fmt):
    convert = partial(ops.box_convert, in_fmt=in_fmt, out_fmt=out_fmt)
    agree(partial(box_convert, in_fmt=in_fmt, out_fmt=out_fmt), convert, first)


@given(boxes(), st.tuples(st.integers(1, 80), st.integers(1, 80)), st.sampled_from([0, 1, 20]))
def test_area_clipping_and_small_boxes_are_torchvisions(first, size, least):
    agree(ours.box_area, ops.box_area, first)
    agree(partial(clip_boxes_to_image, size=size), partial(ops.clip_boxes_to_image, size=size), first)
    assert torch.equal(remove_small_boxes(first, least), ops.remove_small_boxes(first, least))


@pytest.mark.parametrize("name", ["box_iou", "generalized_box_iou"])
@given(boxes(), boxes())
def test_overlaps_are_torchvisions(under_test, name, first, others):
    overlap = under_test(getattr(ours, name))
    agree(overlap, getattr(ops, name), first, others, tol={torch.float64: 1e-10})
    together = torch.cat([first, others])
    agree(overlap, getattr(ops, name), together, together, tol={torch.float32: 1e-5})


@pytest.mark.parametrize("name", ["box_intersection", "box_iou", "generalized_box_iou"])
@settings(max_examples=5)
@given(boxes(sound=True), boxes(sound=True))
def test_lifts(name, first, others):
    lifts(getattr(ours, name), first, others)


@given(boxes(sound=True), boxes(sound=True))
def test_what_is_shared_is_what_both_have(first, others):
    """By counting: corners are rounded, and a pixel is in a box or not."""
    first, others = first.round(), others.round()
    pixels = torch.arange(150) + 0.5
    inside = [
        ((b[:, :1] < pixels) & (pixels < b[:, 2:3])).unsqueeze(1)
        & ((b[:, 1:2] < pixels) & (pixels < b[:, 3:])).unsqueeze(2)
        for b in (first, others)
    ]
    shared = (inside[0].unsqueeze(1) & inside[1]).sum(dim=(2, 3))
    assert torch.equal(ours.box_intersection(first, others), shared.double())


def candidates(seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return (boxes, scores, classes, threshold).

    From none to hundreds, in a crowd or far apart; every other time with ties
    in the scores, and whole corners, so that overlaps equal the threshold."""
    rng = generator(seed)
    n = int(torch.randint(400 if seed % 10 == 0 else 60, (), generator=rng))
    first = random_boxes(rng, n, span=(10.0, 100.0, 1000.0)[seed % 3])
    scores = torch.rand(n, generator=rng, dtype=torch.float64)
    if seed % 2:
        first, scores = first.round(), (10 * scores).round() / 10
    classes = torch.randint(3 if seed % 5 else 40, (n,), generator=rng)
    return first, scores, classes, (0.0, 0.3, 0.5, 0.75)[seed % 4]


@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 1000), marks=pytest.mark.slow)], ids=["the first", "the rest"]
)
def test_nms_is_torchvisions_on_a_thousand_sets(nms, batched_nms, monkeypatch, seeds):
    """Index for index. Of equal scores the earlier box comes first: what a stable sort gives."""
    blocks, kept = (16, 64, ours.BLOCK), 0
    for seed in seeds:
        monkeypatch.setattr(ours, "BLOCK", blocks[seed % 3])
        first, scores, classes, threshold = candidates(seed)
        expected = ops.nms(first, scores, threshold)
        assert torch.equal(nms(first, scores, threshold), expected), seed
        assert torch.equal(nms(first.float(), scores, threshold), ops.nms(first.float(), scores.float(), threshold))
        by_class = ops.batched_nms(first, scores, classes, threshold)
        assert torch.equal(batched_nms(first, scores, classes, threshold), by_class), seed
        kept += len(expected)
    assert kept > 10 * len(seeds)


def test_the_naive_nms_is_torchvisions_on_240_sets():
    for seed in range(240):
        first, scores, _, threshold = candidates(seed)
        assert torch.equal(nms_naive(first, scores, threshold), ops.nms(first, scores, threshold)), seed
        expected = ops.nms(first.float(), scores.float(), threshold)
        assert torch.equal(nms_naive(first.float(), scores, threshold), expected), seed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_of_half_precision_boxes_the_overlaps_are_in_float32_as_torchvisions(nms, batched_nms, dtype):
    """torchvision's kernel for CPUs takes no halves, so its answer is that for the same numbers in float32."""
    for seed in range(60):
        first, scores, classes, threshold = candidates(seed)
        first, scores = first.to(dtype), scores.to(dtype)
        wide = first.float(), scores.float()
        expected = ops.nms(*wide, threshold)
        for suppress in (nms, nms_naive):
            assert torch.equal(suppress(first, scores, threshold), expected), seed
        by_class = ops.batched_nms(*wide, classes, threshold)
        assert torch.equal(batched_nms(first, scores, classes, threshold), by_class), seed
    square = torch.tensor([[0, 0, 300, 300], [0, 0, 300, 150]], dtype=dtype)  # 90000 is beyond float16
    for overlap in ("box_area", "box_iou", "generalized_box_iou"):
        given = [square] * (1 if overlap == "box_area" else 2)
        torch.testing.assert_close(getattr(ours, overlap)(*given), getattr(ops, overlap)(*given))


@pytest.mark.parametrize("bad", [0, 1])
def test_nms_refuses_nan(nms, bad):
    boxes, scores = given = torch.ones(2, 4), torch.ones(2)
    given[bad][0] = math.nan
    with pytest.raises(ValueError, match="a box or a score is NaN"):
        nms(boxes, scores, 0.5)
    with pytest.raises(ValueError, match="a box or a score is NaN"):
        nms_naive(boxes, scores, 0.5)


def test_boxes_without_an_area_strike_nobody_out(nms):
    assert nms(torch.ones(3, 4), torch.tensor([0.1, 0.3, 0.2]), 0.0).tolist() == [1, 2, 0]
    assert nms_naive(torch.ones(3, 4), torch.tensor([0.1, 0.3, 0.2]), 0.0).tolist() == [1, 2, 0]


# anchors


def test_anchors_are_centred_on_their_cells():
    anchors = anchor_grid((40, 60), (2, 3), sizes_by_ratio((10, 20), ratios=(0.5, 1, 2)))
    cx, cy, w, h = box_convert(anchors, "xyxy", "cxcywh").reshape(2, 3, 6, 4).unbind(-1)
    torch.testing.assert_close(cx, torch.tensor([10.0, 30, 50]).view(1, 3, 1).expand_as(cx))
    torch.testing.assert_close(cy, torch.tensor([10.0, 30]).view(2, 1, 1).expand_as(cy))
    torch.testing.assert_close((w * h).sqrt()[0, 0], torch.tensor([10.0] * 3 + [20] * 3))
    torch.testing.assert_close((h / w)[1, 2], torch.tensor([0.5, 1, 2, 0.5, 1, 2]))


@given(boxes(sound=True), st.integers(0, 100))
def test_decode_undoes_encode(encode, decode, first, seed):
    anchors = random_boxes(generator(seed), len(first)) + torch.tensor([0.0, 0, 5, 5])
    torch.testing.assert_close(decode(encode(first, anchors), anchors), first)
    offsets = torch.randn(len(first), 4, generator=generator(seed), dtype=torch.float64)
    torch.testing.assert_close(encode(decode(offsets, anchors), anchors), offsets)


def test_an_offset_of_one_is_a_tenth_and_a_fifth(decode):
    anchor = torch.tensor([[10.0, 20, 30, 60]])
    moved = decode(torch.tensor([[1.0, 0, 0, 1]]), anchor)
    cx, cy, w, h = box_convert(moved, "xyxy", "cxcywh")[0].tolist()
    assert (cx, cy, w, h) == pytest.approx((22, 40, 20, 40 * math.exp(0.2)))


def matched_by_loops(anchors: Tensor, first: Tensor, present: Tensor, threshold: float) -> list[int]:
    """Return as the paper says it, one anchor and one object at a time."""
    overlap, match = ops.box_iou(first, anchors).tolist(), [-1] * len(anchors)
    for a in range(len(anchors)):
        for o in range(len(first)):
            best = max((overlap[k][a] for k in range(o) if present[k]), default=-1)
            if present[o] and overlap[o][a] >= threshold and overlap[o][a] > best:
                match[a] = o
    for o in range(len(first)):
        if present[o]:
            match[overlap[o].index(max(overlap[o]))] = o
    return match


@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.7]))
def test_matching_is_the_best_anchor_of_each_object_and_all_above_the_threshold(match_anchors, seed, threshold):
    rng = generator(seed)
    anchors = anchor_grid((100, 100), (4, 4), sizes_by_ratio((20, 35), (0.5, 1))).double()
    first = random_boxes(rng, int(torch.randint(1, 6, (), generator=rng)), span=80)
    present = torch.rand(len(first), generator=rng) < 0.7
    first[~present] = 0
    match = match_anchors(anchors, first, present, threshold=threshold)
    assert match.tolist() == matched_by_loops(anchors, first, present, threshold)
    assert len(set(match.tolist()) - {-1}) <= int(present.sum())
    both = vmap(partial(match_anchors, threshold=threshold), in_dims=(None, 0, 0))(
        anchors, torch.stack([first, first.flip(0)]), torch.stack([present, present.flip(0)])
    )
    assert both[0].tolist() == match.tolist()


def test_where_two_objects_want_one_anchor_the_later_has_it(match_anchors):
    anchors = torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60]])
    first = torch.tensor([[0.0, 0, 10, 9], [0.0, 0, 9, 10], [0.0, 0, 0, 0]])
    assert match_anchors(anchors, first, torch.tensor([True, True, False])).tolist() == [1, -1]
    assert match_anchors(anchors, first, torch.tensor([False] * 3)).tolist() == [-1, -1]


def test_an_object_that_overlaps_no_anchor_has_none(match_anchors):
    anchors = torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60]])
    first = torch.tensor([[20.0, 20, 30, 30], [5.0, 5, 5, 9], [51.0, 51, 53, 53]])
    assert match_anchors(anchors, first, torch.tensor([True] * 3)).tolist() == [-1, 2]


@given(st.integers(0, 1000))
def test_hard_negatives_are_the_worst_three_for_each_positive(seed):
    rng = generator(seed)
    loss = (3 * torch.rand(30, generator=rng)).round()
    positive = torch.rand(30, generator=rng) < 0.2 * (seed % 3)
    mined = hard_negatives(loss, positive)
    count = min(3 * max(int(positive.sum()), 1), int((~positive).sum()))
    worst = sorted((i for i in range(30) if not positive[i]), key=lambda i: -loss[i])[:count]
    assert mined.nonzero().squeeze(1).tolist() == sorted(worst)


# heat maps


@given(st.floats(1, 200), st.floats(1, 200), st.sampled_from([0.3, 0.5, 0.7, 0.9]))
def test_at_the_radius_the_worst_move_leaves_the_overlap_asked_for(width, height, t):
    size = torch.tensor([[width, height]], dtype=torch.float64)
    box, r = torch.tensor([[0, 0, width, height]], dtype=torch.float64), float(gaussian_radius(size, t))
    moves = {"alike": [r, r, r, r], "inwards": [r, r, -r, -r], "outwards": [-r, -r, r, r]}
    left = [float(ops.box_iou(box, box + torch.tensor(move))) for move in moves.values()]
    assert r > 0
    assert min(left) == pytest.approx(t, abs=1e-6)


def test_a_heat_map_is_one_at_its_centres_and_falls_off():
    centres, sizes = torch.tensor([[4.2, 6.9], [12.0, 3.0], [4.9, 6.1], [0, 0]]), torch.full((4, 2), 40.0)
    labels, present = torch.tensor([0, 2, 2, 1]), torch.tensor([True, True, True, False])
    heat = center_heatmap(centres, sizes, labels, present, classes=3, height=10, width=16)
    assert [(c, y, x) for c, y, x in (heat == 1).nonzero().tolist()] == [(0, 6, 4), (2, 3, 12), (2, 6, 4)]
    assert not heat[1].any()
    sigma = (2 * float(gaussian_radius(sizes[0])) + 1) / 6
    assert sigma > 1
    assert float(heat[0, 6, 7]) == pytest.approx(math.exp(-(3**2) / (2 * sigma**2)))
    assert float(heat[2, 4, 9]) == pytest.approx(math.exp(-10 / (2 * sigma**2)))  # of two the nearer
    none = center_heatmap(centres[:0], sizes[:0], labels[:0], present[:0], classes=3, height=2, width=2)
    assert torch.equal(none, torch.zeros(3, 2, 2))


def test_a_centre_outside_the_map_goes_to_the_nearest_cell():
    heat = center_heatmap(
        torch.tensor([[16.0, -3.0]]), torch.ones(1, 2), torch.tensor([0]), torch.tensor([True]),
        classes=1, height=10, width=16,
    )  # fmt: skip
    assert (heat == 1).nonzero().tolist() == [[0, 0, 15]]


@given(st.integers(0, 1000))
def test_peaks_are_where_no_neighbour_is_hotter(seed):
    heat = torch.rand(2, 2, 5, 6, generator=generator(seed))
    for (b, c, y, x), kept in np.ndenumerate(peaks(heat).numpy()):
        around = heat[b, c, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert kept == (heat[b, c, y, x] if heat[b, c, y, x] == around.max() else 0)


# average precision


@pytest.fixture
def average_precision(monkeypatch, area_under_curve):
    """Return ours, over the function under test."""
    monkeypatch.setattr("fn.detection.average_precision.area_under_curve", area_under_curve)
    return fn.detection.average_precision.average_precision


def random_case(seed: int) -> dict[str, Any]:
    """Up to five images, empty ones among them, up to four classes, a fifth of the objects crowds of them; every third
    time whole corners, and every other time ties in the scores."""
    rng = generator(seed)
    number = lambda n: int(torch.randint(n, (), generator=rng))  # noqa: E731
    images, classes, objects, detections = 1 + number(5), 1 + number(4), number(40), number(120)
    truth, first = random_boxes(rng, objects, 150, 150), random_boxes(rng, detections, 150, 150)
    if objects:
        near = torch.rand(detections, generator=rng) < 0.7
        moved = truth[torch.randint(objects, (detections,), generator=rng)]
        moved = moved + 6 * torch.randn(detections, 4, generator=rng, dtype=torch.float64)
        first = torch.where(near.unsqueeze(1), moved, first)
        first = torch.cat([torch.minimum(first[:, :2], first[:, 2:]), torch.maximum(first[:, :2], first[:, 2:])], dim=1)
    scores = torch.rand(detections, generator=rng, dtype=torch.float64)
    return {
        "boxes": first.round() if seed % 3 == 0 else first,
        "scores": (10 * scores).round() / 10 if seed % 2 else scores,
        "labels": torch.randint(classes, (detections,), generator=rng),
        "images": torch.randint(images, (detections,), generator=rng),
        "object_boxes": truth.round() if seed % 3 == 0 else truth,
        "object_labels": torch.randint(classes, (objects,), generator=rng),
        "object_images": torch.randint(images, (objects,), generator=rng),
        "crowd": torch.rand(objects, generator=rng) < 0.2,
        "classes": classes,
        "max_detections": (100, 3)[seed % 5 == 0],
    }


def pycocotools_ap(case: dict[str, Any]) -> Tensor:
    """Return (thresholds, sizes, classes), NaN where pycocotools says -1."""
    xywh = {name: ops.box_convert(case[name], "xyxy", "xywh").tolist() for name in ("boxes", "object_boxes")}
    common = {"images": [{"id": i} for i in range(5)], "categories": [{"id": c} for c in range(case["classes"])]}
    tables = []
    for rows in (
        zip(
            xywh["object_boxes"], *(case[c].tolist() for c in ("object_labels", "object_images", "crowd")), strict=True
        ),
        zip(xywh["boxes"], *(case[c].tolist() for c in ("labels", "images", "scores")), strict=True),
    ):
        tables.append(COCO())
        tables[-1].dataset = common | {
            "annotations": [
                {
                    "id": i,
                    "bbox": b,
                    "area": b[2] * b[3],
                    "category_id": c,
                    "image_id": m,
                    "score": s,
                    "iscrowd": int(s),
                }
                for i, (b, c, m, s) in enumerate(rows, start=1)
            ]
        }
    gt, dt = tables
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        dt.createIndex()
        evaluation = COCOeval(gt, dt, "bbox")
        evaluation.params.maxDets = [case["max_detections"]]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = torch.from_numpy(evaluation.eval["precision"])[..., 0]  # threshold, recall, class, size
    return torch.where(precision[:, 0] > -1, precision.mean(dim=1), torch.nan).transpose(1, 2)


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 300), marks=pytest.mark.slow)], ids=["the first", "the rest"]
)
def test_average_precision_is_pycocotools_on_300_cases(average_precision, seeds):
    graded = 0
    for seed in seeds:
        case = random_case(seed)
        ap = average_precision(**case)
        torch.testing.assert_close(ap, pycocotools_ap(case), rtol=0, atol=1e-6, equal_nan=True, msg=f"seed {seed}")
        graded += int(((ap > 0) & (ap < 1)).sum())
    assert graded > 12 * len(seeds)


def test_average_precision_is_the_naive_one_of_each_class_and_threshold():
    compared = 0
    for seed in range(30):
        case = random_case(seed) | {"crowd": None, "max_detections": 1000}
        ap = fn.detection.average_precision.average_precision(**case)[:, 0]
        for c in range(case["classes"]):
            own, objects = case["labels"] == c, case["object_labels"] == c
            rows = case["boxes"][own], case["scores"][own], case["images"][own]
            rows += case["object_boxes"][objects], case["object_images"][objects]
            for t in (AT_50, AT_75):
                naive = average_precision_naive(*rows, threshold=THRESHOLDS[t])
                assert naive == pytest.approx(float(ap[t, c]), abs=1e-12, nan_ok=True), (seed, c, t)
                compared += 0 < naive < 1
    assert compared > 60


def test_of_equal_overlaps_the_later_object_is_found(average_precision):
    """The first detection overlaps both objects alike; the second fits the first object alone, which is left for it."""
    truth = torch.tensor([[0.0, 0, 10, 10], [2.0, 0, 12, 10]]).double()
    first, zeros = torch.tensor([[1.0, 0, 11, 10], [0.0, 0, 10, 10]]).double(), torch.zeros(2, dtype=torch.int64)
    case: dict[str, Any] = {
        "boxes": first,
        "scores": torch.tensor([0.9, 0.8]).double(),
        "labels": zeros,
        "images": zeros,
    }
    case |= {"object_boxes": truth, "object_labels": zeros, "object_images": zeros, "crowd": zeros.bool()}
    ap = average_precision(**case, classes=1)
    torch.testing.assert_close(ap, pycocotools_ap(case | {"classes": 1, "max_detections": 100}), equal_nan=True)
    assert ap[6, 0] == 1  # at 0.8


def test_the_perfect_and_the_empty_detector(average_precision):
    case = random_case(7)
    case["crowd"] = torch.zeros_like(case["crowd"])
    perfect, nothing, no_objects = case.copy(), case.copy(), case.copy()
    perfect["scores"] = torch.linspace(0.1, 1, len(case["object_boxes"]), dtype=torch.float64)
    for name in ("boxes", "labels", "images"):
        perfect[name] = case[f"object_{name}"]
        nothing[name], no_objects[f"object_{name}"] = case[name][:0], case[f"object_{name}"][:0]
    nothing["scores"], no_objects["crowd"] = case["scores"][:0], case["crowd"][:0]
    assert summarize(average_precision(**perfect)) == {"AP": 1, "AP50": 1, "AP75": 1}
    assert summarize(average_precision(**nothing)) == {"AP": 0, "AP50": 0, "AP75": 0}
    assert average_precision(**no_objects).isnan().all()


def test_average_precision_by_hand(average_precision):
    """Two objects; the best of three detections is right, the next one wrong, the third right: 51 + 50 · 2/3 of 101."""
    truth = torch.tensor([[0.0, 0, 10, 10], [20.0, 20, 30, 30]])
    first = torch.tensor([[0.0, 0, 10, 10], [50.0, 50, 60, 60], [20.0, 20, 30, 30]])
    zeros = torch.zeros(3, dtype=torch.int64)
    ap = average_precision(
        first, torch.tensor([0.9, 0.8, 0.7]), zeros, zeros, truth, zeros[:2], zeros[:2], classes=1, sizes=SIZES
    )
    assert ap[:, 0, 0].tolist() == pytest.approx([(51 + 50 * 2 / 3) / 101] * 10)
    assert ap[:, 2:].isnan().all()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scores": torch.tensor([math.nan])}, "a score is NaN"),
        ({"boxes": torch.full((1, 4), math.nan)}, "a detection has a box with reversed corners or NaN"),
        ({"object_boxes": torch.tensor([[5.0, 0, 0, 5]])}, "an object has a box with reversed corners or NaN"),
        ({"labels": torch.tensor([2])}, "a detection is of a class that is not among the 2"),
        ({"object_labels": torch.tensor([-1])}, "an object is of a class that is not among the 2"),
    ],
)
def test_average_precision_refuses_what_has_no_meaning(average_precision, change, complaint):
    one, box = torch.zeros(1, dtype=torch.int64), torch.tensor([[0.0, 0, 1, 1]])
    case: dict[str, Any] = {"boxes": box, "scores": torch.ones(1), "labels": one, "images": one}
    case |= {"object_boxes": box, "object_labels": one, "object_images": one}
    with pytest.raises(ValueError, match=complaint):
        average_precision(**case | change, classes=2)


def test_reversed_corners_overlap_nothing_they_do_not_share(box_iou):
    assert box_iou(torch.tensor([[30.0, 30, 10, 10]]), torch.tensor([[0.0, 0, 40, 40]])).tolist() == [[0.0]]
