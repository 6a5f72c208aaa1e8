"""Anchors from the data: the clusters of sizes, their levels, and what Lab 5 makes of them."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor
from torchvision import ops

from experiments import lab5_detection
from experiments.lab_helpers.lab5 import detection_pictures, detection_task
from experiments.shared import detection_report
from fn.data.scenes import Scenes, SceneSet
from fn.detection import anchor_clusters
from fn.detection.anchor_clusters import anchor_recall, cluster_sizes, size_iou, split_by_level
from fn.detection.anchors import anchor_grid, sizes_by_ratio
from fn.detection.average_precision import average_precision
from fn.models.ssd import ANCHOR_SIZES, ssd
from fn.rng import generator

PHOTO_SIZES = sizes_by_ratio((40, 60, 80, 105, 135), ratios=(0.8, 1.2, 1.8))
"""what all photographs had before their boxes were asked"""


def spread_sizes(n: int, seed: int, low: float = 10, high: float = 100) -> Tensor:
    """Sides from `low` to `high`, as many small as large ones on a scale of logarithms; heights 0.5 to 2 of widths."""
    side, ratio = torch.rand(2, n, generator=generator(seed))
    side, ratio = low * (high / low) ** side, 2 ** (2 * ratio - 1)
    return torch.stack([side / ratio.sqrt(), side * ratio.sqrt()], dim=1)


def centred(sizes: Tensor) -> Tensor:
    return torch.cat([-sizes / 2, sizes / 2], dim=1)


def distinct(sizes: Tensor) -> int:
    return len(sizes.unique(dim=0))


@given(st.integers(0, 10_000))
def test_the_overlap_of_sizes_is_that_of_boxes_with_one_centre(seed):
    first, second = spread_sizes(7, seed).double(), spread_sizes(5, seed + 1).double()
    torch.testing.assert_close(size_iou(first, second), ops.box_iou(centred(first), centred(second)))


CLUSTERS = [
    [[10.0, 10], [40, 40], [90, 90]],
    [[12.0, 24], [24, 12], [60, 90], [90, 60]],
    [[5.0, 5], [5, 60], [60, 5], [60, 60], [150, 150]],
    [[30.0, 40]],
]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("centres", CLUSTERS, ids=len)
def test_clusters_that_were_made_are_found(centres, seed):
    rng, members = generator(seed), torch.tensor(centres).repeat(40, 1)
    sizes = members * (1 + 0.1 * (torch.rand(members.shape, generator=rng) - 0.5))
    means = torch.stack([sizes[i :: len(centres)].mean(dim=0) for i in range(len(centres))])
    found = cluster_sizes(sizes[torch.randperm(len(sizes), generator=rng)], len(centres), rng=rng)
    torch.testing.assert_close(found, means[means.prod(dim=1).argsort()])


@pytest.mark.parametrize("seed", range(5))
def test_each_mean_is_that_of_the_sizes_which_overlap_it_most(seed):
    sizes = spread_sizes(300, seed).double()
    means = cluster_sizes(sizes, 9, rng=generator(seed), steps=10_000)
    nearest = ops.box_iou(centred(sizes), centred(means)).argmax(dim=1)
    torch.testing.assert_close(torch.stack([sizes[nearest == i].mean(dim=0) for i in range(9)]), means)
    assert means.prod(dim=1).tolist() == sorted(means.prod(dim=1).tolist())


def test_clusters_follow_from_the_generator():
    sizes = spread_sizes(300, 0)
    first, again, other = (cluster_sizes(sizes, 9, rng=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == sizes.dtype


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=20), st.integers(1, 12))
def test_of_few_distinct_sizes_there_are_few_clusters_and_none_is_empty(rows, k):
    sizes = torch.tensor(rows).float()
    means = cluster_sizes(sizes, k, rng=generator(len(rows)))
    assert len(means) == distinct(means) == min(k, distinct(sizes))
    if k >= distinct(sizes):
        assert size_iou(sizes, means).amax(dim=1).tolist() == [1] * len(sizes)


@pytest.mark.parametrize("far", [1, 2])
def test_a_cluster_that_lost_all_its_sizes_starts_anew(monkeypatch, far):
    first = torch.tensor([[11.0, 11], *[[1e4, 1e-4 * (i + 1)] for i in range(far)]], dtype=torch.float64)
    monkeypatch.setattr(anchor_clusters, "_spread_out", lambda *_: first)
    sizes = torch.tensor([[10.0, 10], [11, 11], [12, 12], [70, 70], [72, 72], [5, 90]])
    means = cluster_sizes(sizes, 1 + far, rng=generator(0))
    assert set(size_iou(sizes, means).argmax(dim=1).tolist()) == set(range(1 + far))
    assert means.max() < 100


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fixed", [PHOTO_SIZES, [size for level in ANCHOR_SIZES for size in level]], ids=len)
def test_clusters_fit_boxes_of_ten_to_a_hundred_pixels_better_than_fixed_anchors(fixed, seed):
    sizes, others = spread_sizes(500, seed), spread_sizes(500, seed + 100)
    means = cluster_sizes(sizes, len(fixed), rng=generator(seed))
    for boxes in (sizes, others):  # others were not fitted
        ours, theirs = (size_iou(boxes, anchors).amax(dim=1) for anchors in (means, torch.tensor(fixed)))
        assert ours.mean() > theirs.mean() + 0.1
        assert (ours >= 0.5).float().mean() > (theirs >= 0.5).float().mean() + 0.1


@pytest.mark.parametrize(
    ("f", "complaint"),
    [
        (partial(cluster_sizes, torch.zeros(0, 2), 3, rng=generator(0)), "sizes holds no box"),
        *(
            (partial(cluster_sizes, torch.tensor([[3.0, 4], [bad, 5]]), 1, rng=generator(0)), "sizes has a width")
            for bad in (0.0, -1.0, math.nan, math.inf)
        ),
        (partial(cluster_sizes, torch.ones(3, 2), 0, rng=generator(0)), "k"),
        (partial(cluster_sizes, torch.ones(3, 2), 1, rng=generator(0), steps=0), "steps"),
        (partial(split_by_level, torch.zeros(0, 2), (8, 16)), "sizes holds no size"),
        *((partial(split_by_level, torch.ones(3, 2), bad), "strides") for bad in ((), (16, 8), (8, 8), (0, 8), (-8,))),
        (partial(anchor_recall, torch.ones(3, 4), torch.ones(3, 4), iou_threshold=1.5), "iou_threshold"),
        (partial(ssd, (1, 32, 32), 3, anchor_sizes=()), "parameter 'anchor_sizes'"),
        (partial(ssd, (1, 32, 32), 3, anchor_sizes=[[(9.0, 9.0)]] * 4), "anchor_sizes has 4 levels"),
        *(
            (partial(ssd, (1, 32, 32), 3, anchor_sizes=[[(9.0, 9.0)], bad]), "anchor_sizes")
            for bad in ([], [(0.0, 9.0)], [(9.0, -1.0)], [(9.0, math.nan)], [(math.inf, 9.0)])
        ),
    ],
)
def test_what_gives_no_anchors_is_refused_by_name(f, complaint):
    with pytest.raises((ValueError, TypeCheckError), match=complaint):
        f()


# levels


def worst_overlap(size: tuple[float, float], stride: int) -> float:
    """Return the least IoU of a box of that size with its best anchor, over all places of its centre in a cell."""
    anchors = anchor_grid((5 * stride, 5 * stride), (5, 5), [size])
    steps = torch.linspace(2 * stride, 3 * stride, 17)
    centre = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).reshape(-1, 2)
    boxes = torch.cat([centre - torch.tensor(size) / 2, centre + torch.tensor(size) / 2], dim=1)
    return float(ops.box_iou(boxes.double(), anchors.double()).amax(dim=1).min())


@given(st.integers(6, 120), st.integers(6, 120))
def test_an_anchor_is_on_the_coarsest_level_where_no_box_of_its_size_slips_through(width, height):
    tiny, huge = (1.0, 1.0), (1000.0, 1000.0)
    fine, coarse = split_by_level(torch.tensor([huge, (float(width), float(height)), tiny]), (8, 16))
    assert (tiny in fine, huge in coarse) == (True, True)
    assert ((width, height) in coarse) == (worst_overlap((width, height), 16) >= 0.5)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 1000), st.sampled_from([(10, 20), (10, 300), (200, 300)]))
def test_no_anchor_is_lost_and_no_level_is_empty(k, levels, seed, span):
    sizes = spread_sizes(k, seed, *span)
    split = split_by_level(sizes, [8 * 2**i for i in range(levels)])
    assert 1 <= len(split) <= levels
    assert all(split)
    assert sorted(size for level in split for size in level) == sorted(map(tuple, sizes.tolist()))


@given(st.integers(0, 1000))
def test_the_share_of_boxes_that_are_reached_is_torchvisions(seed):
    corner, (sizes, anchors) = torch.rand(60, 2, generator=generator(seed)) * 60, spread_sizes(120, seed).split(60)
    boxes, anchors = (torch.cat([corner, corner + part], dim=1) for part in (sizes, anchors))
    expected = (ops.box_iou(boxes, anchors).amax(dim=1) >= 0.5).double().mean()
    assert anchor_recall(boxes, anchors) == pytest.approx(float(expected))
    assert anchor_recall(boxes, anchors, iou_threshold=0) == 1
    assert math.isnan(anchor_recall(boxes[:0], anchors))


def test_the_anchors_of_the_canvases_are_squares_and_twice_as_high():
    expected = [[(9, 9), (9, 18), (13, 13), (13, 26)], [(18, 18), (18, 36), (25, 25), (25, 50)]]
    for level, sizes in zip(ANCHOR_SIZES, expected, strict=True):
        for (w, h), (square, high) in zip(level, sizes, strict=True):
            assert (w * h, h / w) == pytest.approx((square**2, high / square))


# Lab 5


def photographs(sizes: Tensor, side: int = 160) -> SceneSet:
    """Three objects an image, anywhere in it, as large as `sizes` say."""
    sizes = sizes[: len(sizes) // 3 * 3].clamp(max=side - 1)
    corner = torch.rand(len(sizes), 2, generator=generator(0)) * (side - sizes)
    objects = torch.cat([corner, corner + sizes, torch.zeros(len(sizes), 1)], dim=1).reshape(-1, 3, 5)
    objects = torch.cat([objects, torch.tensor([0.0, 0, 0, 0, -1]).expand(len(objects), 1, 5)], dim=1)
    scenes = Scenes(torch.zeros(1, 3, 1, 1).expand(len(objects), 3, side, side), objects)
    return SceneSet(scenes, scenes, ["thing"])


@pytest.mark.parametrize(("span", "least"), [((10, 100), 0.9), ((10, 20), 0.7), ((90, 150), 0.99), ((50, 50), 0.99)])
def test_the_anchors_of_photographs_are_fitted_and_what_they_reach_is_said(capsys, tmp_path, span, least):
    """The share is counted anew with the anchors that the detector puts out. Boxes of 10 to 20 pixels slip through the
    grid, whose cells are 8 apart."""
    scenes = photographs(spread_sizes(150, 0, *span))
    detector = detection_task.build_detector("anchor", scenes, tmp_path / "photographs", None)
    out = capsys.readouterr().out
    output, _ = detector.model.apply(*detector.model.init(generator(0)), scenes.train.images[:1], train=False)
    boxes = scenes.train.objects[:, :3, :4].reshape(-1, 4)
    share = (ops.box_iou(boxes, output["anchors"]).amax(dim=1) >= 0.5).double().mean()
    assert f"15 anchors, from {len(boxes)} training boxes: " in out
    assert f" {float(share):.1%} of the boxes reach IoU 0.5 with one\n" in out
    fixed = [anchor_grid((160, 160), (n, n), sizes) for n, sizes in ((20, PHOTO_SIZES[:6]), (10, PHOTO_SIZES[6:]))]
    assert float(share) >= max(least, anchor_recall(boxes, torch.cat(fixed)))


def test_centernet_takes_no_anchors(capsys, tmp_path):
    detection_task.build_detector("center", photographs(spread_sizes(30, 0)), tmp_path / "photographs", None)
    assert "anchor" not in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(3))
def test_each_band_of_sizes_has_a_third_of_the_boxes(seed):
    scenes = photographs(spread_sizes(300, seed))
    boxes, bands = scenes.train.objects[:, :3, :4].reshape(-1, 4), detection_task.thirds(scenes)
    area = ops.box_area(boxes)
    assert list(bands) == ["all", "small", "medium", "large"]
    shares = [float(((area >= low) & (area <= high)).float().mean()) for low, high in bands.values()]
    assert shares == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3], abs=0.01)
    zero = torch.zeros(len(boxes)).long()
    perfect = (boxes, torch.ones(len(boxes)), zero, torch.arange(len(boxes)))
    ap = average_precision(*perfect, boxes, zero, perfect[3], classes=1, sizes=bands)
    assert (ap == 1).all()


def test_of_boxes_of_one_size_no_band_is_empty():
    bands = detection_task.thirds(photographs(torch.full((30, 2), 20.0)))
    assert bands == {"all": (0, 1e10), "small": (0, 400), "large": (400, 1e10)}


@pytest.mark.parametrize("flavor", ["anchor", "center"])
@pytest.mark.parametrize(
    ("dataset", "flag", "ap", "targets", "ok"),
    [
        ("voc", None, 0.1, ["> 0.1"], [False]),
        ("voc", None, 0.3, ["> 0.1"], [True]),
        ("voc", 0, 0.3, ["> 0.1"], [True]),
        ("voc", 0.7, 0.69, [">= 0.7"], [False]),
        ("voc", 0.7, 0.71, [">= 0.7"], [True]),
        ("digits", None, 0.89, [">= 0.9", ">= 0.6"], [False, True]),
        ("digits", 0.5, 0.89, [">= 0.5", ">= 0.6"], [True, True]),
    ],
)
def test_the_target_of_other_peoples_photographs_is_theirs(
    monkeypatch, tmp_path, flavor, dataset, flag, ap, targets, ok
):
    monkeypatch.setattr(lab5_detection, "predict", lambda *_: None)
    seen: list[dict] = []

    def evaluate(*_, sizes):
        seen.append(sizes)
        return torch.full((10, len(sizes), 1), ap, dtype=torch.float64)

    monkeypatch.setattr(lab5_detection, "evaluate_detections", evaluate)
    recipe = lab5_detection.RECIPES[dataset]._replace(epochs={flavor: 0})
    monkeypatch.setitem(lab5_detection.RECIPES, dataset, recipe)
    for module, shown in (
        (detection_report, "show_parts"),
        (detection_report, "show_average_precision"),
        (detection_pictures, "draw_flavor"),
    ):
        monkeypatch.setattr(module, shown, lambda *_: None)
    scenes = photographs(spread_sizes(30, 0), side=112)
    config = lab5_detection.Config(out=tmp_path, dataset=dataset, target_ap50=flag, compile=False)
    detector = detection_task.build_detector(flavor, scenes, Path(tmp_path) / "photographs", None)
    checks = lab5_detection.train_and_test(config, flavor, detector, scenes, {"random boxes": 0.1})
    assert [(check.target, check.ok) for check in checks] == list(zip(targets, ok, strict=True))
    assert seen == [recipe.sizes or detection_task.thirds(scenes)]
