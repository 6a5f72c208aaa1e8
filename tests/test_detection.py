"""Scenes and what moves their boxes; the detectors' losses beside loops over anchors and objects; what is bad input."""

import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
import torchvision.ops as ops
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.func import grad

from fn import tree
from fn.data import datasets
from fn.data.datasets import DatasetUnavailable
from fn.data.loader import batches
from fn.data.scene_transforms import compose, flip_boxes, random_flip, random_zoom, zoom
from fn.data.scenes import Scenes, canvas, digits, require_valid
from fn.data.transforms import horizontal_flip
from fn.data.voc import first_copies, read_voc, voc
from fn.detection.anchors import anchor_grid
from fn.detection.average_precision import summarize
from fn.detection.boxes import box_iou, object_table
from fn.detection.heatmaps import gaussian_radius
from fn.detection.train import (
    Detections,
    collect,
    detection_loss,
    detector_step,
    evaluate_detections,
    predict,
)
from fn.gradcheck import smallest
from fn.jit import jit
from fn.models import Detector
from fn.models.centernet import SIZE_WEIGHT, centernet
from fn.models.pyramid import (
    backbone_apply,
    pyramid_apply,
    pyramid_init,
    small_backbone,
    squeezenet_backbone,
    squeezenet_maps,
)
from fn.models.squeezenet import squeezenet
from fn.models.ssd import ssd
from fn.optim import adam, adam_init
from fn.rng import fold_in, generator, key
from fn.train import TrainState, check_finite, init_train_state, run_key

CLASSES, SHAPE = 3, (1, 32, 48)
DETECTORS = {"ssd": ssd, "centernet": centernet}
each_detector = pytest.mark.parametrize("name", DETECTORS)


def detector(name: str) -> Detector:
    return DETECTORS[name](SHAPE, CLASSES, width=8)


def random_objects(seed: int, batch: int, most: int = 3, empty: bool = False) -> Tensor:
    """Boxes of 6 to 20 pixels in images of SHAPE, some images with fewer than `most`"""
    rng = generator(seed)
    size = 6 + 14 * torch.rand(batch, most, 2, generator=rng)
    corner = torch.rand(batch, most, 2, generator=rng) * (torch.tensor(SHAPE[:0:-1]) - size)
    label = torch.randint(CLASSES, (batch, most, 1), generator=rng)
    objects = torch.cat([corner, corner + size, label], dim=2)
    none = torch.rand(batch, most, generator=rng) < (2 if empty else 0.3)
    return torch.where(none.unsqueeze(2), torch.tensor([0.0, 0, 0, 0, -1]), objects)


# data


def test_canvases_are_functions_of_their_generator_and_hold_what_they_say():
    images, labels = datasets.digits().train
    ink = (images - images.min()) / (images.max() - images.min())
    again = [canvas(ink, labels, rng=generator(s), size=64) for s in range(40)]
    for seed, (image, objects) in enumerate(again):
        assert torch.equal(image, canvas(ink, labels, rng=generator(seed), size=64)[0])
        boxes, found, _ = object_table(objects[None])
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= 64).all()
        assert (boxes[:, 3] - boxes[:, 1] >= 8).all()
        overlap = box_iou(boxes, boxes)
        assert (overlap - torch.eye(len(boxes)) <= 0.2).all()
        for x1, y1, x2, y2 in boxes.long().tolist():  # tight: there is ink in its outermost rows and columns
            inside = image[0, y1:y2, x1:x2].float() / 255
            assert smallest(x.max() for x in (inside[0], inside[-1], inside[:, 0], inside[:, -1])) > 0.15
        assert set(found.tolist()) <= set(range(10))
    counts = torch.stack([objects for _, objects in again])[..., 4].ge(0).sum(dim=1).bincount()
    assert len(counts) == 6
    assert counts[0] > 0


def drawn(objects: Tensor, height: int, width: int) -> Tensor:
    """Return an image per batch, a channel per object: ones inside its box."""
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    x1, y1, x2, y2 = (edge[..., None, None] for edge in objects[..., :4].unbind(-1))
    inside = (x1 < x) & (x < x2) & (y1 < y[:, None]) & (y[:, None] < y2)
    return inside.float()


@settings(max_examples=50)
@given(st.integers(0, 1000), st.floats(0.6, 1.6), st.floats(-10, 10), st.floats(-10, 10))
def test_zoom_moves_boxes_as_it_moves_pixels(seed, scale, right, down):
    """Masks of the boxes are zoomed as images: their area is the new box's, and so are their outermost pixels.

    An edge is a ramp of `scale` pixels: between two samples a pixel apart it can lie (1 - 0.6) / 2 off.
    """
    objects = random_objects(seed, 2)
    objects[..., :4] = objects[..., :4].round()  # so that a mask is its box, to the pixel
    masks = drawn(objects, *SHAPE[1:])
    masks = F.pad(masks, (0, 0, 0, 0, 0, 1))  # a channel of background, what moves in from outside
    moved, after = zoom(masks, objects, torch.tensor([[right, down]] * 2), torch.tensor([scale] * 2), visible=0)
    for i, n in (objects[..., 4] >= 0).nonzero().tolist():
        mask, (x1, y1, x2, y2, label) = moved[i, n], after[i, n].tolist()
        if label == -1:  # wholly outside: the nearest pixel, half a pixel away, sees less than half of the ramp
            assert mask.max() < 0.5
            continue
        assert label == objects[i, n, 4]
        assert (x2 - x1) * (y2 - y1) == pytest.approx(float(mask.sum()), abs=0.4 * (x2 - x1 + y2 - y1) + 0.2)
        if min(x2 - x1, y2 - y1) >= 2:
            solid = (mask > 0.5).nonzero()
            (top, left), (bottom, last) = solid.amin(dim=0).tolist(), (solid.amax(dim=0) + 1).tolist()
            assert (left, top, last, bottom) == pytest.approx((x1, y1, x2, y2), abs=0.51)


def test_zoom_drops_what_is_hardly_left_and_keeps_padding_as_padding():
    objects = torch.tensor([[[40.0, 10, 48, 20, 2], [0.0, 0, 10, 10, 1], [0.0, 0, 0, 0, -1]]])
    moved = torch.tensor([[6.0, 0.0]])
    _, after = zoom(torch.zeros(1, *SHAPE), objects, moved, torch.ones(1), visible=0.3)
    assert after[0].tolist() == [[0, 0, 0, 0, -1], [6, 0, 16, 10, 1], [0, 0, 0, 0, -1]]
    _, after = zoom(torch.zeros(1, *SHAPE), objects, moved, torch.ones(1), visible=0.2)
    assert after[0, 0].tolist() == [46, 10, 48, 20, 2]


def test_flip_moves_boxes_as_it_moves_pixels():
    objects = random_objects(0, 4)
    objects[..., :4] = objects[..., :4].round()
    masks = drawn(objects, *SHAPE[1:])
    assert torch.equal(horizontal_flip(masks), drawn(flip_boxes(objects, SHAPE[2]), *SHAPE[1:]))
    x, after = random_flip(masks, objects, torch.arange(4))
    flipped = [not torch.equal(a, b) for a, b in zip(x, masks, strict=True)]
    assert 0 < sum(flipped) < 4
    present = objects[..., 4] >= 0
    assert torch.equal(x[present], drawn(after, *SHAPE[1:])[present])
    assert torch.equal(after[~present], objects[~present])


def test_a_scene_is_varied_by_its_own_key_alone_in_the_loader_too():
    split = Scenes(torch.randn(6, *SHAPE, generator=generator(0)), random_objects(0, 6))
    vary = partial(compose, transforms=[random_flip, random_zoom])
    whole, parts = (list(batches(split, n, seed=3, augment=vary, moves_targets=True)) for n in (6, 4))
    for together, apart in zip(whole[0], zip(*parts, strict=True), strict=True):
        assert torch.equal(together, torch.cat(apart))
    assert not torch.equal(whole[0][1], next(batches(split, 6, seed=3))[1])


def test_each_part_of_a_composition_has_keys_of_its_own():
    seen = []

    def note(x, objects, key):
        seen.append(key)
        return x, objects

    compose(torch.zeros(3, *SHAPE), random_objects(0, 3), torch.arange(3), transforms=[note, note, note])
    assert len(torch.cat(seen).unique()) == 9


def test_held_out_canvases_hold_held_out_digits_alone(monkeypatch):
    """Every training image is relabelled 3, every held-out one 7."""
    dataset = datasets.digits()
    train, test = (
        split._replace(labels=torch.full_like(split.labels, label))
        for split, label in ((dataset.train, 3), (dataset.test, 7))
    )
    monkeypatch.setattr(datasets, "digits", lambda: dataset._replace(train=train, test=test))
    scenes = digits(8, 8)
    assert set(scenes.train.objects[..., 4].unique().tolist()) == {-1, 3}
    assert set(scenes.test.objects[..., 4].unique().tolist()) == {-1, 7}


def turn(path: Path) -> None:
    """Say of a photograph, as cameras do, that it is to be turned by a quarter to be seen upright."""
    with Image.open(path) as photograph:
        exif = photograph.getexif()
        exif[0x0112] = 6
        photograph.save(path, exif=exif)


XML = """<annotation><filename>{name}</filename><size><width>{width}</width><height>40</height></size>{objects}
</annotation>"""
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def make_voc(root: Path, objects: dict[int, list[tuple]], photographs: int = 5) -> Path:
    """Photographs of 80×40; `objects` are those of some"""
    for folder in ("annotations", "images"):
        (root / folder).mkdir()
    for i in range(photographs):
        Image.new("RGB", (80, 40), (50 * i, 0, 0)).save(root / "images" / f"{i}.png")
        part = "".join(OBJECT.format(*row) for row in objects.get(i, []))
        (root / "annotations" / f"{i}.xml").write_text(XML.format(name=f"{i}.png", width=80, objects=part))
    return root


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_voc_scales_clips_drops_and_counts(tmp_path):
    rows = [("cat", 1, 1, 40, 20), ("dog", 41, 21, 200, 60)]  # the second reaches beyond the image
    bad = [("cat", 90, 1, 99, 9), ("cat", 11, 5, 10, 9), ("dog", 30, 30, 10, 35)]  # outside, no area, reversed
    root = make_voc(tmp_path, {0: rows, 1: bad, 4: [("dog", 1, 1, 80, 40)]})
    with pytest.warns(UserWarning, match=r"^voc: boxes with reversed corners dropped: 1, the first of .*1\.xml$"):
        scenes = voc(root, image_size=40, stats=([100.0] * 3, [50.0] * 3))
    assert scenes.classes == ["cat", "dog"]
    assert scenes.dropped == 3
    assert scenes.train.objects[0].tolist() == [[0, 0, 20, 20, 0], [20, 20, 40, 40, 1]]
    assert (scenes.train.objects[1:, :, 4] == -1).all()  # XMLs without objects are images of background
    assert scenes.test.objects.tolist() == [[[0, 0, 40, 40, 1], [0, 0, 0, 0, -1]]]
    assert scenes.shape == (3, 40, 40)
    assert scenes.train.images[:, 0].mean(dim=(1, 2)).tolist() == pytest.approx([-2, -1, 0, 1])
    with pytest.warns(UserWarning, match="reversed corners"):
        own = voc(root, image_size=40).train.images[:, 0].mean(dim=(1, 2))
    assert float(own.mean()) == pytest.approx(0, abs=1e-6)


def test_copies_are_not_torn_apart_by_the_split(tmp_path):
    """Of ten photographs the fifth and the tenth are held out, and with the fifth the one that was scaled from it."""
    root, rng = make_voc(tmp_path, {i: [("cat", 1 + i, 1, 80, 40)] for i in range(10)}, 10), generator(0)
    for i in range(10):
        pixels = torch.randint(256, (5, 10, 3), generator=rng, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((80, 40), Image.Resampling.BICUBIC).save(root / "images" / f"{i}.png")
    whole = voc(root, image_size=32)
    with Image.open(root / "images" / "4.png") as fifth:
        fifth.resize((120, 60), Image.Resampling.BICUBIC).save(root / "images" / "6.png")
    (root / "annotations" / "6.xml").write_text(
        XML.format(name="6.png", width=120, objects=OBJECT.format("cat", 1, 1, 60, 20)).replace(">40<", ">60<")
    )
    (root / "images" / "9.png").write_bytes((root / "images" / "0.png").read_bytes())  # is held out no more
    split = voc(root, image_size=32)
    assert [len(part.images) for part in whole[:2] + split[:2]] == [8, 2, 8, 2]
    left = split.test.objects[:, 0, 0].tolist()  # told apart by their left edges
    assert left == pytest.approx([4 * 32 / 80, 0])
    assert split.train.objects[-1, 0, 0] == pytest.approx(9 * 32 / 80)


def test_the_first_like_it_is_the_first_of_all():
    rng = generator(0)
    images = torch.randint(256, (6, 3, 32, 32), generator=rng, dtype=torch.uint8)
    images[3], images[5] = images[1], images[3]
    images[4] = (images[0].float() + 3).clamp(0, 255).byte()
    assert first_copies(images).tolist() == [0, 1, 2, 1, 0, 1]
    assert first_copies(images[:0]).tolist() == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda root: (root / "annotations" / "0.xml").write_text("<annotation>"), "0.xml cannot be read as a VOC"),
        (lambda root: (root / "annotations" / "0.xml").write_text("<a></a>"), "<a> has no size/height"),
        (
            lambda root: (root / "annotations" / "0.xml").write_text(
                XML.format(name="0.png", width=80, objects=OBJECT.format("", 1, 1, 2, 2))
            ),
            "<object> has no name",
        ),
        (
            lambda root: (root / "annotations" / "0.xml").write_text(
                XML.format(name="0.png", width=80, objects=OBJECT.format("cat", 1, "nan", 2, 2))
            ),
            "bndbox/ymin is nan",
        ),
        (
            lambda root: (root / "annotations" / "0.xml").write_text(
                '<?xml version="1.0" encoding="klingon"?>' + XML.format(name="0.png", width=80, objects="")
            ),
            r"0.xml cannot be read as a VOC annotation \(unknown encoding",
        ),
        (
            lambda root: (root / "annotations" / "0.xml").write_text(
                XML.format(name="0.png", width=79, objects=OBJECT.format("cat", 1, 1, 40, 20))
            ),
            r"0.xml says 79×40 pixels \(width×height\), but .*0.png has 80×40",
        ),
        (
            lambda root: turn(root / "images" / "0.png"),
            r"0.xml says 80×40 pixels \(width×height\), but .*0.png has 40×80",
        ),
        (lambda root: (root / "images" / "0.png").unlink(), r"0\.xml is of no photograph: .*0\.png is not there"),
        (lambda root: (root / "images" / "0.png").write_bytes(b"no png"), "0.png cannot be read as an image"),
        (lambda root: (root / "annotations" / "4.xml").unlink(), "holds 4 XML files"),
    ],
)
def test_voc_says_in_one_line_what_is_wrong(tmp_path, spoil, complaint):
    root = make_voc(tmp_path, {0: [("cat", 1, 1, 40, 20)]})
    spoil(root)
    with pytest.raises(DatasetUnavailable, match=complaint) as refusal:
        voc(root)
    assert "\n" not in str(refusal.value)


def test_voc_refuses_a_class_that_was_never_declared_and_a_folder_of_background(tmp_path):
    root = make_voc(tmp_path, {2: [("cat", 1, 1, 40, 20), ("dog", 1, 1, 40, 20)], 4: [("cat", 1, 1, 40, 20)]})
    assert voc(root, classes=["dog", "cat", "emu"]).train.objects[2, :, 4].tolist() == [1, 0]
    with pytest.raises(DatasetUnavailable, match=r"2\.xml has a 'dog', which is not among the classes \['cat'\]"):
        voc(root, classes=["cat"])
    (tmp_path / "other").mkdir()
    with pytest.raises(DatasetUnavailable, match="has an object"):
        voc(make_voc(tmp_path / "other", {}))


def test_voc_refuses_a_split_without_objects(tmp_path):
    for i, kind in ((4, "training"), (0, "held-out")):
        (tmp_path / kind).mkdir()
        with pytest.raises(DatasetUnavailable, match=f"no {kind} photograph of .* has an object") as refusal:
            voc(make_voc(tmp_path / kind, {i: [("cat", 1, 1, 40, 20)]}))
        assert "\n" not in str(refusal.value)


def test_a_photograph_is_read_as_it_is_shown(tmp_path):
    root = make_voc(tmp_path, {i: [("cat", 1, 1, 20, 40)] for i in (0, 4)})
    image = Image.new("RGB", (80, 40))
    image.paste((255, 255, 255), (0, 0, 40, 40))  # white on the left, which is shown at the top
    image.save(root / "images" / "0.png")
    turn(root / "images" / "0.png")
    upright = XML.format(name="0.png", width=40, objects=OBJECT.format("cat", 1, 1, 40, 40)).replace(
        "<height>40", "<height>80"
    )
    (root / "annotations" / "0.xml").write_text(upright)
    x, objects = (part[0] for part in voc(root, image_size=32).train)
    assert objects.tolist() == [[0, 0, 32, 16, 0]]
    assert x[:, :14].min() > x[:, 18:].max()


RACCOONS = Path(os.environ.get("FN_DATA", "../shared/data")) / "raccoon"


@pytest.mark.skipif(not RACCOONS.exists(), reason=f"{RACCOONS} is not there")
def test_the_raccoons_are_all_there():
    parsed = [read_voc(file) for file in (RACCOONS / "annotations").glob("*.xml")]
    assert len(parsed) == 200
    assert sum(len(annotation.boxes) for annotation in parsed) == 217
    assert {name for annotation in parsed for name in annotation.names} == {"raccoon"}


@pytest.mark.slow
@pytest.mark.skipif(not RACCOONS.exists(), reason=f"{RACCOONS} is not there")
def test_no_raccoon_is_on_both_sides_of_the_split():
    train, test = (part.images for part in voc(RACCOONS, image_size=32)[:2])
    assert [len(train), len(test)] == [159, 41]
    apart = torch.cdist(test.flatten(1), train.flatten(1)) / math.sqrt(train[0].numel())
    assert float(apart.min()) > 0.2  # of a standard deviation


# detectors


@each_detector
def test_outputs_have_the_shapes_that_the_losses_take(name):
    model, loss, detect, _ = detector(name)
    params, state = model.init(generator(0))
    x = torch.randn(2, *SHAPE, generator=generator(1))
    output, new_state = model.apply(params, state, x, train=True)
    assert tree.map(lambda a, b: a.shape == b.shape, state, new_state)
    assert all(part.isfinite() for part in loss(**output, objects=random_objects(0, 2)).values())
    boxes, scores, labels = detect(**output)[0]
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert set(labels.tolist()) <= set(range(CLASSES))
    assert len(scores) <= 100


def test_an_anchor_is_judged_by_what_is_around_it():
    """The pixels that move an anchor's logits lie on its side of the image, on average; its kind is its head's."""
    model, _, _, _ = detector("ssd")
    params, state = model.init(generator(0))
    x = torch.randn(1, *SHAPE, generator=generator(1))
    anchors = model.apply(params, state, x, train=False)[0]["anchors"]
    middle = torch.tensor([SHAPE[2], SHAPE[1]]) / 2
    for corner in ([0.0, 0.0], [SHAPE[2], 0.0], [0.0, SHAPE[1]], [SHAPE[2], SHAPE[1]]):
        a = int((ops.box_convert(anchors, "xyxy", "cxcywh")[:, :2] - torch.tensor(corner)).norm(dim=1).argmin())
        effect = grad(lambda x, a=a: model.apply(params, state, x, train=False)[0]["logits"][0, a].norm())(x).abs()
        down, along = (effect[0, 0].sum(dim=d) for d in (1, 0))
        centre = [float((part * torch.arange(len(part))).sum() / part.sum()) for part in (along, down)]
        assert [c > m for c, m in zip(centre, middle.tolist(), strict=True)] == [c > 0 for c in corner]

    bias = torch.arange(4.0 * (CLASSES + 1))
    kinds = params | {f"class{i}": {"weight": 0 * params[f"class{i}"]["weight"], "bias": bias} for i in (0, 1)}
    logits = model.apply(kinds, state, x, train=False)[0]["logits"][0]
    torch.testing.assert_close(logits, bias.reshape(4, CLASSES + 1).repeat(len(logits) // 4, 1))


def ssd_by_loops(logits: Tensor, offsets: Tensor, anchors: Tensor, objects: Tensor) -> tuple[float, float]:
    """Return one image and one anchor after the other, with torch's and torchvision's functions."""
    in_class, in_box, matched = 0.0, 0.0, 0
    centre_size = ops.box_convert(anchors, "xyxy", "cxcywh")
    for part, moves, rows in zip(logits, offsets, objects, strict=True):
        rows = rows[rows[:, 4] >= 0]
        overlap = ops.box_iou(rows[:, :4], anchors)
        match = [-1] * len(anchors)
        for a in range(len(anchors)) if len(rows) else []:
            best = int(overlap[:, a].argmax())
            match[a] = best if overlap[best, a] >= 0.5 else -1
        for o in range(len(rows)):
            match[int(overlap[o].argmax())] = o
        target = torch.tensor([0 if o < 0 else int(rows[o, 4]) + 1 for o in match])
        losses = F.cross_entropy(part, target, reduction="none")
        positive = [a for a, o in enumerate(match) if o >= 0]
        negative = sorted((a for a in range(len(match)) if match[a] < 0), key=lambda a: -float(losses[a]))
        mined = negative[: 3 * max(len(positive), 1)]
        in_class += float(losses[positive + mined].sum())
        for a in positive:
            (cx, cy, w, h), (ax, ay, aw, ah) = (
                ops.box_convert(rows[match[a], :4], "xyxy", "cxcywh").tolist(),
                centre_size[a].tolist(),
            )
            wanted = [(cx - ax) / aw / 0.1, (cy - ay) / ah / 0.1, math.log(w / aw) / 0.2, math.log(h / ah) / 0.2]
            in_box += float(F.smooth_l1_loss(moves[a].double(), torch.tensor(wanted).double(), reduction="sum"))
        matched += len(positive)
    return in_class / max(matched, 1), in_box / max(matched, 1)


def centernet_by_loops(heat: Tensor, size: Tensor, offset: Tensor, objects: Tensor) -> tuple[float, float, float]:
    """Return one cell and one object after the other."""
    _, classes, rows, columns = heat.shape
    in_center, in_size, in_offset, count = 0.0, 0.0, 0.0, 0
    for b in range(len(heat)):
        present = []
        for x1, y1, x2, y2, label in objects[b].double().tolist():
            if label < 0:
                continue
            cx, cy, w, h = (x1 + x2) / 8, (y1 + y2) / 8, (x2 - x1) / 4, (y2 - y1) / 4
            column, row = math.floor(cx), math.floor(cy)
            radius = float(gaussian_radius(torch.tensor([w, h], dtype=torch.float64)))
            present.append((int(label), row, column, (2 * radius + 1) / 6))
            in_size += abs(float(size[b, 0, row, column]) - w) + abs(float(size[b, 1, row, column]) - h)
            in_offset += abs(float(offset[b, 0, row, column]) - (cx - column))
            in_offset += abs(float(offset[b, 1, row, column]) - (cy - row))
            count += 1
        for c in range(classes):
            for i in range(rows):
                for j in range(columns):
                    bumps = [
                        math.exp(-((i - r) ** 2 + (j - k) ** 2) / (2 * s**2)) for of, r, k, s in present if of == c
                    ]
                    y, p = max(bumps, default=0.0), 1 / (1 + math.exp(-float(heat[b, c, i, j])))
                    here = (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
                    in_center -= here
    return in_center / max(count, 1), SIZE_WEIGHT * in_size / max(count, 1), in_offset / max(count, 1)


@pytest.mark.parametrize(("name", "by_loops"), [("ssd", ssd_by_loops), ("centernet", centernet_by_loops)])
def test_losses_are_those_of_loops_over_anchors_and_objects(name, by_loops):
    model, loss, _, _ = detector(name)
    params, state = (tree.to(part, torch.float64) for part in model.init(generator(0)))
    for seed in range(3):
        x, objects = torch.randn(3, *SHAPE, generator=generator(seed)).double(), random_objects(seed, 3).double()
        output, _ = model.apply(params, state, x, train=True)
        parts = [float(part) for part in loss(**output, objects=objects).values()]
        assert parts == pytest.approx(by_loops(*(part.detach() for part in output.values()), objects), rel=1e-6)


def perfect_ssd(objects: Tensor) -> dict[str, Tensor]:
    """Return what an SSD would have to say.

    A certain class and the exact offset at the anchor nearest to each object.
    """
    model, _, _, _ = detector("ssd")
    output, _ = model.apply(*model.init(generator(0)), torch.zeros(len(objects), *SHAPE), train=False)
    anchors = output["anchors"]
    logits = torch.zeros(len(objects), len(anchors), CLASSES + 1)
    logits[..., 0], offsets = 20, torch.zeros(len(objects), len(anchors), 4)
    for b, o in (objects[..., 4] >= 0).nonzero().tolist():
        a = int(ops.box_iou(objects[b, o : o + 1, :4], anchors).argmax())
        (cx, cy, w, h), (ax, ay, aw, ah) = (
            ops.box_convert(box, "xyxy", "cxcywh").tolist() for box in (objects[b, o, :4], anchors[a])
        )
        logits[b, a, int(objects[b, o, 4]) + 1] = 40
        offsets[b, a] = torch.tensor(
            [(cx - ax) / aw * 10, (cy - ay) / ah * 10, 5 * math.log(w / aw), 5 * math.log(h / ah)]
        )
    return {"logits": logits, "offsets": offsets, "anchors": anchors}


def perfect_centernet(objects: Tensor) -> dict[str, Tensor]:
    """Heat at the centres alone, and there the exact size and offset."""
    rows, columns = SHAPE[1] // 4, SHAPE[2] // 4
    heat = torch.full((len(objects), CLASSES, rows, columns), -20.0)
    size, offset = torch.zeros(2, len(objects), 2, rows, columns)
    for b, o in (objects[..., 4] >= 0).nonzero().tolist():
        cx, cy, w, h = (ops.box_convert(objects[b, o, :4], "xyxy", "cxcywh") / 4).tolist()
        heat[b, int(objects[b, o, 4]), int(cy), int(cx)] = 20
        size[b, :, int(cy), int(cx)] = torch.tensor([w, h])
        offset[b, :, int(cy), int(cx)] = torch.tensor([cx - int(cx), cy - int(cy)])
    return {"heat": heat, "size": size, "offset": offset}


@pytest.mark.parametrize(("name", "perfect"), [("ssd", perfect_ssd), ("centernet", perfect_centernet)])
def test_a_perfect_output_costs_nothing_and_is_read_without_a_mistake(name, perfect):
    _, loss, detect, _ = detector(name)
    objects = torch.tensor(  # far enough apart that no anchor, and no cell, is wanted by two
        [
            [[2.0, 3, 12, 14, 0], [30.0, 8, 44, 30, 2]],
            [[20.0, 4, 29, 15, 1], [0.0, 0, 0, 0, -1]],
            [[0.0, 0, 0, 0, -1], [0.0, 0, 0, 0, -1]],
        ]
    )
    output = perfect(objects)
    ap = evaluate_detections(collect(detect(**output)), objects, CLASSES)
    assert summarize(ap) == {"AP": 1, "AP50": 1, "AP75": 1}
    if name == "centernet":  # other anchors match too, and ought to say so
        assert all(float(part) < 1e-4 for part in loss(**output, objects=objects).values())


def a_cell(x: Tensor, *, maps_of: Callable, at: tuple[int, int, int]) -> Tensor:
    level, row, column = at
    return maps_of(x)[level][0, :, row, column].sum()


def test_cells_of_squeezenet_look_where_their_anchors_are():
    """The middle of the pixels that move a cell is the centre of its anchors, but for half a pixel: of the cells that
    are far enough from the border to see no end of the image, the first and the last of each level."""
    backbone, height, width = squeezenet_backbone(1), 320, 352
    params, state = backbone.init(generator(0))
    maps_of = lambda x: backbone.apply(params, state, x, train=False)[0]  # noqa: E731
    x = torch.rand(1, 1, height, width, generator=generator(1))
    maps = maps_of(x)
    assert [tuple(m.shape[2:]) for m in maps] == [(height // 8, width // 8), (height // 16, width // 16)]
    for level, margin in ((0, 4), (1, 7)):
        rows, columns = maps[level].shape[2:]
        anchors = anchor_grid((height, width), (rows, columns), [(8, 8)]).reshape(rows, columns, 4)
        for row, column in ((margin, margin), (rows - 1 - margin, columns - 1 - margin)):
            seen = grad(partial(a_cell, maps_of=maps_of, at=(level, row, column)))(x)[0, 0].nonzero().double()
            top, left, bottom, right = *seen.amin(dim=0).tolist(), *(seen.amax(dim=0) + 1).tolist()
            assert min(top, left, height - bottom, width - right) > 0
            x1, y1, x2, y2 = anchors[row, column].tolist()
            assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2), abs=0.5)


def test_squeezenets_maps_are_those_of_torchvisions_layers():
    """Its own, with the first convolution padded and the last pooling by 2×2; in training and after."""
    model = torchvision.models.squeezenet1_1().eval()
    layers, params = model.features, tree.unflatten(dict(model.state_dict()))["features"]
    layers[0].padding, layers[8] = (3, 3), torch.nn.MaxPool2d(2)  # pyright: ignore
    x = torch.randn(2, 3, 64, 96, generator=generator(0))
    expected = [layers[:8](x), layers(x)]
    for train in (True, False):
        maps, _ = squeezenet_maps(params, {}, x, train=train)
        for ours, reference in zip(maps, expected, strict=True):
            torch.testing.assert_close(ours, reference)


@each_detector
def test_a_detector_starts_from_the_weights_it_is_given(name):
    weights, _ = squeezenet(SHAPE, 10).init(generator(5))
    make = partial(DETECTORS[name], SHAPE, CLASSES, width=8)
    given, fresh = (
        make(backbone=squeezenet_backbone(1, weights=w)).model.init(generator(0))[0] for w in (weights, None)
    )
    assert tree.flatten(given["pyramid"]["backbone"]).keys() == tree.flatten(weights["features"]).keys()
    tree.map(torch.testing.assert_close, given["pyramid"]["backbone"], weights["features"])
    assert not torch.equal(fresh["pyramid"]["backbone"]["0"]["weight"], weights["features"]["0"]["weight"])


@pytest.mark.parametrize(("name", "perfect"), [("ssd", perfect_ssd), ("centernet", perfect_centernet)])
def test_what_is_found_lies_in_the_image(name, perfect):
    output = perfect(torch.tensor([[[-6.0, -4, 10, 14, 0], [30, 16, 60, 40, 2]]]))
    [(boxes, scores, labels)] = detector(name).detect(**output)
    sure = scores > 0.9
    order = labels[sure].argsort()
    torch.testing.assert_close(boxes[sure][order], torch.tensor([[0.0, 0, 10, 14], [30, 16, 48, 32]]))
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([48, 32, 48, 32])).all()


def test_of_what_overlaps_ssd_keeps_the_best_of_each_class():
    box = torch.tensor([10.0, 8, 20, 21])
    anchors = torch.stack([box, box + 1, box + torch.tensor([15.0, 0, 15, 0])])  # an IoU of 0.71, and none
    logits = torch.tensor([[[0.0, 5, 0, 0], [0, 6, 4, 0], [0, 4, 0, 0]]])
    [(boxes, scores, labels)] = detector("ssd").detect(logits=logits, offsets=torch.zeros(1, 3, 4), anchors=anchors)
    sure = scores > 0.05
    assert labels[sure].tolist() == [0, 0, 1]
    torch.testing.assert_close(boxes[sure], anchors[[0, 2, 1]])


def test_centernet_finds_one_object_in_a_bump_of_heat():
    objects = torch.tensor([[[12.0, 8, 28, 24, 1]]])
    output = perfect_centernet(objects)
    row, column = 4, 5
    output["heat"][0, 1, row - 1 : row + 2, column - 1 : column + 2] = 1.0
    output["heat"][0, 1, row, column] = 3.0
    [(boxes, _, labels)] = detector("centernet").detect(**output)
    assert labels.tolist() == [1]
    torch.testing.assert_close(boxes, objects[0, :, :4])


@each_detector
def test_a_prediction_does_not_depend_on_the_other_images(name):
    """As it would if batch norm stood on the batch."""
    det = detector(name)
    params, state = det.model.init(generator(0))
    x = torch.randn(3, *SHAPE, generator=generator(1))
    together, alone = predict(det, params, state, x), predict(det, params, state, x[1:2])
    for a, b in zip(together[:3], alone[:3], strict=True):
        torch.testing.assert_close(a[together.images == 1], b, rtol=1e-3, atol=1e-3)


@each_detector
def test_images_without_objects_train_without_nan(name):
    det = detector(name)
    params, state = det.model.init(generator(0))
    objective = partial(detection_loss, apply=det.model.apply, loss=det.loss)
    x = torch.randn(2, *SHAPE, generator=generator(1))
    grads, (metrics, _) = grad(objective, has_aux=True)(params, state, x, random_objects(0, 2, empty=True))
    assert all(g.isfinite().all() for g in tree.leaves(grads))
    assert all(value.isfinite() for value in metrics.values())
    assert float(metrics["loss"]) > 0
    assert all(float(metrics[part]) == 0 for part in ("box", "size", "offset") if part in metrics)


@each_detector
def test_padding_changes_nothing(name):
    det = detector(name)
    params, state = det.model.init(generator(0))
    output, _ = det.model.apply(params, state, torch.randn(2, *SHAPE, generator=generator(1)), train=True)
    objects = random_objects(1, 2)
    padded = torch.cat([torch.tensor([7.0, 7, 7, 7, -1]).expand(2, 4, 5), objects], dim=1)
    for a, b in zip(*(det.loss(**output, objects=part).values() for part in (objects, padded)), strict=True):
        torch.testing.assert_close(a, b)


@each_detector
def test_predictions_that_are_not_finite_are_refused(name):
    det = detector(name)
    params, state = det.model.init(generator(0))
    with pytest.raises(FloatingPointError, match=r"^prediction: an output of the model is not finite, \w+: f32\[.*NaN"):
        predict(det, params, state, torch.full((1, *SHAPE), math.nan))


def test_predictions_come_as_one_table():
    one, two = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.0, 0, 2, 2], [0.0, 0, 3, 3]])
    none = (one[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    table = collect([(one, torch.ones(1), torch.tensor([2])), none, (two, torch.ones(2), torch.tensor([0, 1]))])
    assert isinstance(table, Detections)
    assert table.images.tolist() == [0, 2, 2]
    assert table.labels.tolist() == [2, 0, 1]


@pytest.mark.longest
@pytest.mark.slow
def test_a_compiled_step_is_the_step():
    """Of the flavor that sorts, scatters and matches; compiling the other takes as long again."""
    det = detector("ssd")
    params, state = (tree.to(part, torch.float64) for part in det.model.init(generator(0)))
    step = detector_step(det, adam(lr=1e-2))
    batch: Any = (torch.randn(3, *SHAPE, generator=generator(1)).double(), random_objects(0, 3).double())
    results = [run(TrainState(params, state, adam_init(params)), *batch, key=key(0)) for run in (step, jit(step))]
    tree.map(
        partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9),
        *({"ts": ts._asdict(), "metrics": metrics} for ts, metrics in results),
    )


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ([5, 5, 5, 20, 0], "has reversed corners or no area"),
        ([5, 20, 15, 10, 0], "has reversed corners or no area"),
        ([40, 5, 60, 15, 0], "is not within the image of 32×48 pixels"),
        ([-1, 5, 10, 15, 0], "is not within the image of 32×48 pixels"),
        ([5, 25, 10, 33, 0], "is not within the image of 32×48 pixels"),
        ([5, 5, math.nan, 15, 0], "is not of finite numbers"),
        ([5, 5, 10, 15, math.nan], "is not of finite numbers"),
        ([5, 5, 10, 15, 3], "is of a class that is not among the 3"),
        ([5, 5, 10, 15, 0.5], "is of a class that is not among the 3"),
    ],
)
@each_detector
def test_objects_that_no_detector_can_learn_are_refused(name, row, complaint):
    objects = random_objects(0, 4)
    objects[2, 1] = torch.tensor(row)
    message = "image 2, object 1: (" + ", ".join(f"{value:g}" for value in row) + f") {complaint}"
    with pytest.raises(ValueError, match=re.escape(message)):
        require_valid(Scenes(torch.zeros(4, *SHAPE), objects), detector(name).classes)


def test_whatever_padding_says_and_a_rounding_error_at_the_border_is_sound():
    objects = torch.tensor([[[0, 0, 48.0001, 32, 2], [9, 9, 3, 3, -1], [math.inf, 0, 0, 99, -1]]])
    require_valid(Scenes(torch.zeros(1, *SHAPE), objects), CLASSES)
    require_valid(Scenes(torch.zeros(1, *SHAPE), objects[:, :0]), CLASSES)


@pytest.mark.parametrize("box", [[5.0, 5, 5, 20], [15.0, 5, 5, 20], [15.0, 20, 5, 5], [90.0, 90, 99, 99]])
@each_detector
def test_a_box_that_nothing_overlaps_leaves_the_loss_finite(name, box):
    """A step with objects that were not validated puts no NaN into the weights: no anchor is matched to the box."""
    det = detector(name)
    params, state = det.model.init(generator(0))
    objective = partial(detection_loss, apply=det.model.apply, loss=det.loss)
    objects = torch.tensor([[[*box, 1.0], [2, 3, 12, 14, 0]]])
    x = torch.randn(1, *SHAPE, generator=generator(1))
    grads, (metrics, _) = grad(objective, has_aux=True)(params, state, x, objects)
    assert all(value.isfinite() for value in [*metrics.values(), *(g.sum() for g in tree.leaves(grads))])


@each_detector
def test_of_no_images_there_are_no_predictions(name):
    det = detector(name)
    params, state = det.model.init(generator(0))
    found = predict(det, params, state, torch.zeros(0, *SHAPE))
    assert [tuple(column.shape) for column in found] == [(0, 4), (0,), (0,), (0,)]
    assert found.labels.dtype == found.images.dtype == torch.int64
    ap = evaluate_detections(found, random_objects(0, 2), CLASSES)
    assert ap.nan_to_num(0).eq(0).all()


@each_detector
def test_a_detector_trains_on_scenes_whose_boxes_move(name):
    det, optimizer = detector(name), adam(lr=1e-3)
    split = Scenes(torch.randn(4, *SHAPE, generator=generator(0)), random_objects(0, 4))
    step, losses = check_finite(detector_step(det, optimizer)), []
    ts = init_train_state(det.model, optimizer, seed=0)
    for epoch in range(2):
        for x, y in batches(split, 2, seed=0, epoch=epoch, augment=random_zoom, moves_targets=True):
            ts, metrics = step(ts, x, y, key=run_key(0))
            losses.append(metrics["loss"])
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))


def test_what_is_moved_out_of_the_image_is_no_object_however_little_may_be_visible():
    objects = torch.tensor([[[1.0, 2.0, 4.0, 10.0, 1.0], [20.0, 2.0, 24.0, 10.0, 2.0]]])
    moved = zoom(torch.zeros(1, 1, 32, 32), objects, torch.tensor([[-10.0, 0.0]]), torch.ones(1), visible=0.0)[1]
    assert moved.tolist() == [[[0, 0, 0, 0, -1], [10, 2, 14, 10, 2]]]


def test_the_gradient_of_a_pyramid_is_that_of_plain_torch():
    """The coarser maps are added to the finer ones, so the gradient flows back through them too."""
    params, state = pyramid_init(generator(0), small_backbone(1, widths=(4, 4, 6, 6, 8, 8)), 5, levels=2)
    params, x = tree.to(params, torch.float64), torch.randn(2, 1, 32, 32, dtype=torch.float64)
    state = tree.to(state, torch.float64)

    def ours(params):
        maps, _ = pyramid_apply(params, state, x, train=False, backbone_apply=backbone_apply, levels=2)
        return sum(m.square().sum() for m in maps)

    def torchs(params):
        maps, _ = backbone_apply(params["backbone"], state["backbone"], x, train=False)
        laterals = [F.conv2d(m, **params[f"lateral{i}"]) for i, m in enumerate(maps)]
        middle = laterals[1] + F.interpolate(laterals[2], laterals[1].shape[2:])
        fine = laterals[0] + F.interpolate(middle, laterals[0].shape[2:])
        total = 0
        for i, merged in enumerate((fine, middle)):
            y = F.conv2d(merged, params[f"conv{i}"]["weight"], padding="same")
            total = total + F.batch_norm(y, **state[f"bn{i}"], **params[f"bn{i}"]).relu().square().sum()
        return total

    tree.map(torch.testing.assert_close, grad(ours)(params), grad(torchs)(params))


def test_a_zoom_moves_by_shares_of_width_and_height():
    """On an image of 10 by 200: sideways by up to 30, down by up to 1.5."""
    objects = torch.tensor([[[90.0, 4.0, 110.0, 6.0, 0.0]]]).expand(400, 1, 5)
    _, moved = random_zoom(
        torch.zeros(400, 1, 10, 200), objects, fold_in(key(0).expand(400), torch.arange(400)), scale=(1, 1)
    )
    sideways, down = (moved[:, 0, 0] - 90).abs().max(), (moved[:, 0, 1] - 4).abs().max()
    assert 25 < sideways <= 30
    assert 1.2 < down <= 1.5
