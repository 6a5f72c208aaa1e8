"""The pictures of cells: boxes of every size in one picture, read as VOC reads them."""

import random

import pytest
import torch
from PIL import Image

from experiments.cells.__main__ import KINDS, SIDE, Config, main, place, shared
from fn.data.voc import voc


@pytest.mark.parametrize("seed", range(20))
def test_each_cell_has_a_size_of_its_class_and_hides_little_of_another(seed):
    cells = place(random.Random(seed))
    for i, (name, (left, top, right, bottom)) in enumerate(cells):
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
        least, most = KINDS[name].sides
        assert all(least <= side <= most for side in (right - left, bottom - top))
        assert all(shared(cells[i].box, other.box) < 0.2 for other in cells[:i])
    names = [cell.name for cell in cells]
    assert all(names.count(name) <= kind.pieces[1] for name, kind in KINDS.items())


def test_the_shared_part_is_of_the_smaller_box():
    assert shared((0, 0, 10, 10), (5, 5, 7, 7)) == 1
    assert shared((0, 0, 10, 10), (5, 0, 15, 10)) == 0.5
    assert shared((0, 0, 10, 10), (20, 20, 30, 30)) == 0


def test_the_pictures_are_photographs_with_voc_xml(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one, again, other = (tmp_path / name for name in ("one", "again", "other"))
    for out, seed in ((one, 0), (again, 0), (other, 1)):
        assert main(Config(out=out, count=10, seed=seed)) == 0
    assert f"just lab 5 --dataset voc --root {one}" in capsys.readouterr().out.replace("\n", "")
    images = [[Image.open(out / "images" / f"{i:04}.png").tobytes() for i in range(10)] for out in (one, again, other)]
    assert images[0] == images[1]
    assert all(a != b for a, b in zip(images[0], images[2], strict=True))
    scenes = voc(one, image_size=SIDE)
    assert (list(scenes.classes), scenes.dropped) == (sorted(KINDS), 0)
    assert (len(scenes.train.images), len(scenes.test.images)) == (8, 2)
    objects = torch.cat([scenes.train.objects, scenes.test.objects])
    placed = [place(random.Random(f"0 {i}")) for i in (0, 1, 2, 3, 5, 6, 7, 8, 4, 9)]
    for rows, cells in zip(objects, placed, strict=True):
        assert [tuple(row) for row in rows[rows[:, 4] >= 0, :4].tolist()] == [cell.box for cell in cells]
