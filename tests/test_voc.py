"""Annotations as people have them: layouts, names, odd boxes; and the objects that the devkit calls difficult."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from fn.data.datasets import DatasetUnavailable
from fn.data.scenes import SceneSet
from fn.data.voc import read_voc, voc
from fn.detection.average_precision import AT_50, area_under_curve, average_precision, summarize
from fn.detection.boxes import box_iou
from fn.detection.train import collect, evaluate_detections
from fn.rng import generator


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


BOX = (1, 1, 40, 20)


def xml_of(filename: str | None, *boxes: tuple, difficult: tuple[int, ...] = ()) -> str:
    named = "" if filename is None else f"<filename>{filename}</filename>"
    hard = [f"<difficult>{d}</difficult>" for d in difficult] or [""] * len(boxes)
    objects = "".join(
        f"<object><name>cat</name>{h}<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for (a, b, c, d), h in zip(boxes, hard, strict=True)
    )
    return f"<annotation>{named}<size><width>80</width><height>40</height></size>{objects}</annotation>"


def write(xml: Path, image: Path, i: int, filename: str | None = "", **options) -> None:
    """Write a photograph, of its number, and its XML, whose box begins there too."""
    for path in (xml, image):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 40), (20 * i, 0, 0)).save(image)
    xml.write_text(xml_of(image.name if filename == "" else filename, (1 + i, 1, 40, 20), **options))


def numbers(scenes: SceneSet) -> tuple[list[int], list[int]]:
    """Return the numbers of the photographs of both splits, as their boxes say."""
    train, test = ([round(x * 80 / 160) for x in part.objects[:, 0, 0].tolist()] for part in scenes[:2])
    return train, test


def beside(annotations: str, images: str, suffix: str = "xml") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for i in range(10):
            write(root / annotations / f"{i}.{suffix}", root / images / f"{i}.png", i)

    return make


def in_splits(annotations: str, images: str, train: str, test: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for i in range(10):
            part = root / (train if i < 7 else test)
            write(part / annotations / f"{i}.xml", part / images / f"{i}.png", i)

    return make


def devkit(suffix: str = "", **lists: list[int]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        beside("Annotations", "JPEGImages")(root)
        (root / "ImageSets" / "Main").mkdir(parents=True)
        for name, which in lists.items():
            (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{i}{suffix}\n" for i in which))
        (root / "ImageSets" / "Main" / "cat_train.txt").write_text("0  1\n")

    return make


FIFTHS = ([0, 1, 2, 3, 5, 6, 7, 8], [4, 9])
PARTS = ([0, 1, 2, 3, 4, 5, 6], [7, 8, 9])
LAYOUTS = {
    "ours": (beside("annotations", "images"), FIFTHS),
    "annots": (beside("annots", "images"), FIFTHS),
    "Annotations": (beside("Annotations", "Images"), FIFTHS),
    "the pets": (beside("annotations/xmls", "images"), FIFTHS),
    "labelImg": (beside("", ""), FIFTHS),
    "XML beside a folder": (beside("", "images"), FIFTHS),
    "a folder beside images": (beside("annotations", ""), FIFTHS),
    "capitals": (beside("annotations", "images", "XML"), FIFTHS),
    "devkit without lists": (beside("Annotations", "JPEGImages"), FIFTHS),
    "devkit": (devkit(train=[0, 1, 2, 3, 4, 5, 6], val=[7, 8, 9], trainval=list(range(10))), PARTS),
    "devkit of 2007": (devkit(train=[0, 1, 2], val=[3, 4, 5, 6], test=[7, 8, 9]), PARTS),
    "devkit, names of images": (devkit(".jpg", train=[0, 1, 2, 3, 4, 5, 6], val=[7, 8, 9, 9]), PARTS),
    "devkit, without the annotations of its test": (devkit(train=PARTS[0], val=PARTS[1], test=[98, 99]), PARTS),
    "devkit, two lists": (devkit(trainval=[0, 1, 2, 3, 4, 5, 6], test=[7, 8, 9]), PARTS),
    "devkit, one list": (devkit(trainval=[0, 1, 2, 3, 4]), ([0, 1, 2, 3], [4])),
    "Roboflow": (in_splits("", "", "train", "valid"), PARTS),
    "splits of folders": (in_splits("Annotations", "JPEGImages", "Train", "test"), PARTS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_photographs_and_annotations_lie_as_people_have_them(tmp_path, layout):
    make, expected = LAYOUTS[layout]
    make(tmp_path)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._0.xml").write_bytes(b"\0\5\x16\7")
    (tmp_path / "._1.xml").write_bytes(b"\0\5\x16\7")
    scenes = voc(tmp_path)
    assert numbers(scenes) == expected
    reds = torch.cat([part.images[:, 0].mean(dim=(1, 2)) for part in scenes[:2]])
    assert reds.argsort().argsort().tolist() == expected[0] + expected[1]


def test_a_photograph_in_the_lists_of_both_parts_is_refused(tmp_path):
    devkit(train=[0, 1, 2, 3], val=[3, 4])(tmp_path)
    said = "3.xml is in the list of the training images and in that of the held-out ones"
    assert said in refusal_of(tmp_path)


def test_two_names_of_one_xml_are_one(tmp_path):
    devkit(train=PARTS[0], val=PARTS[1])(tmp_path)
    with (tmp_path / "ImageSets" / "Main" / "val.txt").open("a") as file:
        file.write("9.jpg\n")
    assert numbers(voc(tmp_path)) == PARTS


def test_names_of_a_list_without_an_xml_are_counted(tmp_path):
    devkit(train=[*PARTS[0], 98, 99], val=PARTS[1])(tmp_path)
    with pytest.warns(UserWarning, match=r"train\.txt: 2 of its 9 names have no XML, 98 first$"):
        assert numbers(voc(tmp_path)) == PARTS


@pytest.mark.parametrize(
    "filename", [None, "", " ", "3", "other.jpg", r"C:\pictures\3.png", "3.jpg", "/home/me/3.jpg", "../3.png"]
)
def test_the_name_of_the_xml_stands_in_for_one_that_names_no_file(tmp_path, filename):
    beside("annotations", "images")(tmp_path)
    write(tmp_path / "annotations" / "3.xml", tmp_path / "images" / "3.png", 3, filename or None)
    assert numbers(voc(tmp_path)) == FIFTHS


def refusal_of(root: Path) -> str:
    with pytest.raises(DatasetUnavailable, match=r"^voc: ") as refusal:
        voc(root)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_xmls_of_no_photograph_of_two_or_two_of_one_are_refused(tmp_path):
    beside("annotations", "images")(tmp_path)
    xml, png = tmp_path / "annotations" / "3.xml", tmp_path / "images" / "3.png"
    text = xml.read_text()
    xml.write_text(text.replace("3.png", "2.png"))
    assert "2.xml and " in refusal_of(tmp_path)
    assert "3.xml are both of " in refusal_of(tmp_path)
    xml.write_text(text.replace("3.png", "x.png"))
    shutil.copy(png, png.with_suffix(".jpg"))
    assert "3.xml may be of " in refusal_of(tmp_path)
    for path in (png, png.with_suffix(".jpg")):
        path.unlink()
    assert "3.xml is of no photograph: " in refusal_of(tmp_path)


def test_a_root_without_annotations_is_refused(tmp_path):
    assert "No such file" in refusal_of(tmp_path / "missing")
    assert "there is no folder" in refusal_of(tmp_path)
    (tmp_path / "annotations").mkdir()
    assert "annotations holds no XML file" in refusal_of(tmp_path)


@pytest.mark.parametrize(
    ("box", "refused"),
    [
        ((0.1, 0.2, 0.5, 0.9), True),
        ((0, 0, 0.5, 1), True),
        ((0.25, 0, 1, 1), True),
        ((1, 1, 1, 1), False),  # a pixel
        ((0.5, 0.5, 20.5, 20), False),
    ],
)
def test_boxes_in_fractions_are_refused(tmp_path, box, refused):
    beside("annotations", "images")(tmp_path)
    (tmp_path / "annotations" / "3.xml").write_text(xml_of("3.png", BOX, box))
    if refused:
        assert "3.xml has boxes in fractions of the image, from 0 to 1; VOC counts pixels" in refusal_of(tmp_path)
    else:
        assert voc(tmp_path).dropped == 0


def test_reversed_corners_are_said(tmp_path):
    beside("annotations", "images")(tmp_path)
    (tmp_path / "annotations" / "3.xml").write_text(xml_of("3.png", BOX, (40, 1, 20, 9), (1, 20, 9, 3)))
    with pytest.warns(UserWarning, match=r"^voc: boxes with reversed corners dropped: 2, the first of .*3\.xml$"):
        assert voc(tmp_path).dropped == 2


def test_where_all_photographs_are_copies_of_one_nothing_can_be_held_out(tmp_path):
    beside("annotations", "images")(tmp_path)
    for path in (tmp_path / "images").iterdir():
        Image.new("RGB", (80, 40), (9, 9, 9)).save(path)
    assert "nothing is left to hold out: of 10 photographs 9 are copies of others" in refusal_of(tmp_path)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_images_are_refused_as_in_folders(tmp_path, mode):
    beside("annotations", "images")(tmp_path)
    for path in (tmp_path / "images").glob("3.*"):
        path.unlink()
    Image.new(mode, (80, 40), 300).save(tmp_path / "images" / "3.tif")
    assert f"3.tif cannot be read as an image (its pixels are of mode {mode}, not of 8 bits)" in refusal_of(tmp_path)


# difficult


def test_difficult_objects_are_read(tmp_path):
    beside("annotations", "images")(tmp_path)
    (tmp_path / "annotations" / "4.xml").write_text(xml_of("4.png", BOX, (50, 1, 70, 9), difficult=(1, 0)))
    (tmp_path / "annotations" / "9.xml").write_text(xml_of("9.png", BOX, difficult=(0,)))
    assert read_voc(tmp_path / "annotations" / "4.xml").difficult == [True, False]
    scenes = voc(tmp_path)
    assert scenes.difficult is not None
    assert scenes.difficult.tolist() == [[True, False], [False, False]]
    assert (scenes.test.objects[..., 4] >= 0).tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("said", "difficult"), [("1", True), (" 1 ", True), ("01", True), ("2", True), ("0", False), ("", False)]
)
def test_difficult_is_a_number_that_is_not_0(tmp_path, said, difficult):
    (tmp_path / "a.xml").write_text(xml_of("a.png", BOX, difficult=(0,)).replace("0</diff", f"{said}</diff"))
    assert read_voc(tmp_path / "a.xml").difficult == [difficult]


def test_a_word_as_difficult_is_refused(tmp_path):
    (tmp_path / "a.xml").write_text(xml_of("a.png", BOX, difficult=(0,)).replace("0</diff", "true</diff"))
    with pytest.raises(DatasetUnavailable, match=r"a\.xml cannot be read as a VOC annotation \(difficult is 'true'"):
        read_voc(tmp_path / "a.xml")


def test_one_found_and_one_difficult_missed_is_a_perfect_score():
    boxes = torch.tensor([[0.0, 0, 20, 20], [40, 40, 70, 70]])
    objects = torch.cat([boxes, torch.zeros(2, 1)], dim=1)[None]
    detections = collect([(boxes[:1], torch.tensor([0.9]), torch.tensor([0]))])
    assert summarize(evaluate_detections(detections, objects, 1))["AP50"] == pytest.approx(51 / 101)
    difficult = torch.tensor([[False, True]])
    assert summarize(evaluate_detections(detections, objects, 1, difficult))["AP50"] == 1.0


def devkits_score(
    found: Tensor, scores: Tensor, images: Tensor, objects: Tensor, object_images: Tensor, difficult: Tensor
) -> float:
    """Return AP50 of one class by the loop of the devkit, VOCevaldet.m.

    Right, wrong, or, of a difficult object, neither.
    """
    taken = torch.zeros(len(objects), dtype=torch.bool)
    right, left_out = (torch.zeros(1, 1, len(found), dtype=torch.bool) for _ in range(2))
    for place, d in enumerate(scores.argsort(descending=True).tolist()):
        candidates = (object_images == images[d]).nonzero().squeeze(1)
        if len(candidates):
            overlaps = box_iou(found[d, None], objects[candidates])[0]
            j = int(candidates[overlaps.argmax()])
            if overlaps.max() >= 0.5:
                left_out[..., place] = difficult[j]
                right[..., place] = not difficult[j] and not taken[j]
                taken[j] = True
    return float(area_under_curve(right, left_out, (~difficult).sum()[None]))


@pytest.mark.parametrize("seed", range(30))
def test_difficult_objects_count_as_in_the_devkit(seed):
    """Objects found once, several times or not at all, and false detections.

    Difficult objects lie upon others. Of those that count, none overlaps another, as there COCO's rule differs: a
    detection takes the best of those not taken.
    """
    rng = generator(seed)
    pick = lambda low, high, n: torch.randint(low, high, (n,), generator=rng)  # noqa: E731
    corners = torch.tensor([[40.0 * i, 40.0 * j] for i in range(3) for j in range(3)])
    places = torch.cat([corners, corners + 30], dim=1).repeat(4, 1)
    counted, hard = torch.rand(2, 36, generator=rng) < 0.6
    objects = torch.cat([places[counted], places[hard] + pick(-8, 9, 144).reshape(36, 4)[hard] / 1.7])
    object_images = torch.cat([torch.arange(4).repeat_interleave(9)[which] for which in (counted, hard)])
    difficult = torch.arange(len(objects)) >= counted.sum()
    which = pick(0, len(objects), 40)
    found = objects[which] + pick(-8, 9, 160).reshape(40, 4)
    images = torch.where(torch.rand(40, generator=rng) < 0.1, (object_images[which] + 1) % 4, object_images[which])
    scores = torch.rand(40, generator=rng)
    zeros = torch.zeros(40, dtype=torch.int64), torch.zeros(len(objects), dtype=torch.int64)
    ap = average_precision(
        found, scores, zeros[0], images, objects, zeros[1], object_images, difficult=difficult, classes=1
    )
    assert float(ap[AT_50, 0, 0]) == devkits_score(found, scores, images, objects, object_images, difficult)
