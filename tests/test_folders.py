"""Folders of photographs as people have them; and whatever their names are, the results of a training are kept."""

import io
import json
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from experiments.shared import cli, show, training_pictures
from fn import draw
from fn.data import datasets
from fn.data.datasets import Dataset, DatasetUnavailable, folder
from fn.draw.figures import plain
from fn.files import as_label

SIZE = 8


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets, "normalize", lambda x, mean, std: x)


def fill(root: Path, **levels: list[int]) -> Path:
    """Return a folder per class, with a photograph of one level of grey for each number."""
    for name, greys in levels.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for grey in greys:
            Image.new("RGB", (SIZE, SIZE), (grey,) * 3).save(root / name / f"{grey:03}.png")
    return root


def greys(data: Dataset) -> tuple[list[int], list[int]]:
    train, test = ([int(x) for x in split.images[:, 0, 0, 0]] for split in (data.train, data.test))
    return train, test


def refusal_of(root: Path) -> str:
    with pytest.raises(DatasetUnavailable) as refusal:
        folder(root, image_size=SIZE)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("train", ["train", "Train", "training", "TRAIN"])
@pytest.mark.parametrize("held_out", ["valid", "validation", "val", "Val", "dev", "test", "TEST", "Testing", "eval"])
def test_a_split_has_any_of_its_names_in_any_case(tmp_path, train, held_out):
    fill(tmp_path / train, cat=[1, 2], dog=[3])
    fill(tmp_path / held_out, cat=[4], dog=[5, 6])
    data = folder(tmp_path, image_size=SIZE)
    assert data.classes == ["cat", "dog"]
    assert greys(data) == ([1, 2, 3], [4, 5, 6])


def test_of_several_splits_that_are_held_out_the_test_set_is_taken_if_it_has_labels(tmp_path):
    for i, part in enumerate(("train", "valid", "test")):
        fill(tmp_path / part, cat=[10 * i], dog=[10 * i + 1])
    assert greys(folder(tmp_path, image_size=SIZE)) == ([0, 1], [20, 21])
    for path in sorted((tmp_path / "test").rglob("*.png")):
        path.rename(tmp_path / "test" / path.name)  # as in a contest: images without classes
        path.parent.rmdir()
    assert greys(folder(tmp_path, image_size=SIZE)) == ([0, 1], [10, 11])
    fill(tmp_path / "VALID", cat=[1], dog=[2])
    assert "VALID and valid: which is the split?" in refusal_of(tmp_path)


@pytest.mark.parametrize("parts", [("train", "other"), ("a", "b"), ("2023", "2024")])
def test_a_root_whose_folders_hold_folders_is_the_wrong_one(tmp_path, parts):
    for part in parts:
        fill(tmp_path / part, cat=[1] * 5, dog=[2])
    assert "holds no image of its own, but folders (cat, dog): " in refusal_of(tmp_path)


def test_a_class_may_keep_its_images_in_folders_beside_others_or_in_one_named_images(tmp_path):
    """As Tiny ImageNet does."""
    fill(tmp_path / "cat", images=[1, 2, 3, 4, 5])
    fill(tmp_path, dog=[6, 7, 8, 9])
    fill(tmp_path / "dog", puppies=[10])
    assert greys(folder(tmp_path, image_size=SIZE)) == ([1, 2, 3, 4, 6, 7, 8, 9], [5, 10])


def test_what_is_hidden_is_left_out(tmp_path):
    fill(tmp_path, cat=[1, 2, 3, 4, 5], dog=[6, 7, 8, 9, 10], __MACOSX=[11], **{".ipynb_checkpoints": [12]})
    fill(tmp_path / "cat", **{".ipynb_checkpoints": [13], "@eaDir": [14]})
    (tmp_path / "cat" / "._001.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"\0")
    data = folder(tmp_path, image_size=SIZE)
    assert data.classes == ["cat", "dog"]
    assert greys(data) == ([1, 2, 3, 4, 6, 7, 8, 9], [5, 10])


SUFFIXES = {"jpg": "JPEG", "JPEG": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "gif": "GIF", "avif": "AVIF", "webp": "WEBP"}
SUFFIXES |= {"bmp": "BMP", "TIF": "TIFF", "tiff": "TIFF", "png": "PNG", "ppm": "PPM", "pgm": "PPM"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_of_a_photograph_is_read(tmp_path, suffix):
    fill(tmp_path, cat=[1, 2, 3, 4], dog=[250] * 5)
    Image.new("RGB", (40, 30), (100, 100, 100)).save(tmp_path / "cat" / f"x.{suffix}", SUFFIXES[suffix])
    [test] = folder(tmp_path, image_size=SIZE).test.images
    assert float((test - 100).abs().max()) <= 2


def test_what_is_not_read_is_counted(tmp_path):
    fill(tmp_path, cat=[1, 2, 3, 4, 5], dog=[6, 7])
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/c.heic", "dog/labels.csv", "dog/README"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r": 5 files \(2 \.heic, 1 \.HEIC, 1 no suffix, 1 \.csv\) not read as images$"):
        folder(tmp_path, image_size=SIZE)
    for path in (tmp_path / "dog").glob("*.png"):
        path.unlink()
    assert "dog holds no image, but 3 files (1 no suffix, 1 .heic, 1 .csv)" in refusal_of(tmp_path)


def test_links_are_followed_and_loops_end(tmp_path):
    """Two links to a folder above them would be 2^40 paths."""
    root = fill(tmp_path / "root", cat=[1, 2, 3, 4, 5], dog=[6])
    fill(tmp_path / "elsewhere", more=[7, 8, 9, 10])
    for i in range(3):
        (root / "cat" / f"up{i}").symlink_to("..")
        (root / "dog" / f"loop{i}").symlink_to(".")
        (root / "dog" / f"more{i}").symlink_to(tmp_path / "elsewhere" / "more")
    (root / "ant").symlink_to("dog")
    data = folder(root, image_size=SIZE)
    assert data.classes == ["ant", "cat", "dog"]
    assert greys(data) == ([6, 7, 8, 9, 1, 2, 3, 4, 6, 7, 8, 9], [10, 5, 10])


@pytest.mark.parametrize(
    ("name", "to", "reason"), [("gone.png", "nowhere", "No such file"), ("itself.png", "itself.png", "Too many levels")]
)
def test_a_link_to_nothing_is_refused(tmp_path, name, to, reason):
    fill(tmp_path, cat=[1, 2, 3, 4, 5], dog=[6])
    (tmp_path / "cat" / name).symlink_to(to)
    assert f"{tmp_path}/cat/{name} cannot be read ({reason}" in refusal_of(tmp_path)


# Names

NAMES = ["$x^$", "[bold]x", "a\nb", os.fsdecode(b"caf\xe9")]
NAMES += ["US$", "$", "a$b$c", r"\$ and \alpha", "_{", "[red]", "日本", "😀", "\x1b[31mred"]


@pytest.mark.filterwarnings("ignore:Glyph .* missing:UserWarning")
@pytest.mark.parametrize("name", [*NAMES[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[2:])])
def test_a_class_of_any_name_reaches_pictures_tables_and_files(monkeypatch, tmp_path, name):
    terminal = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", terminal)
    show.print_anything()
    fill(tmp_path / "root", zebra=[6], **{name: [1, 2, 3, 4, 5]})
    data = folder(tmp_path / "root", image_size=SIZE)
    label = as_label(name)
    assert len(label.splitlines()) == 1
    assert "\x1b" not in label
    assert sorted(data.classes) == sorted(["zebra", label])
    logits, labels = torch.eye(2), torch.tensor([0, 1])
    drawn = draw.Drawn((0, 0, 4, 4), name, "false")
    figures = {
        "confusion": draw.confusion(logits.long(), data.classes, title=name),
        "grid": draw.image_grid(data.train.images[:2, 0], [name, f"{name}\n{name}"], title=name),
        "photos": draw.photo_grid(data.train.images[:2], [name, name], title=name),
        "boxes": draw.boxes(data.train.images[:1], [[drawn]], [name], columns=1, title=name),
        "curves": draw.curves({name: {name: [1.0, 2.0]}}, title=name, log=[name]),
        "heat": draw.heat_over(data.train.images[0], torch.rand(2, 2, 2), [name] * 3, title=name),
        "attention": draw.attention_maps(torch.rand(1, 1, 1, 1), [name], [name], title=name),
    }
    for which, figure in figures.items():
        assert imread(draw.save(figure, tmp_path / f"{which}.png")).ndim == 3
    show.table(label, (label, "x"), [(label, "1")])
    show.console.print(label, markup=False)
    terminal.flush()
    assert labels.tolist() == [0, 1]
    printed = terminal.buffer.getvalue().decode()
    assert label.encode("utf-8", "replace").decode() in printed


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_as_it_stands(name):
    """As matplotlib draws it where no formula is looked for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def pixels(text: str, **options) -> np.ndarray:
        figure = Figure(figsize=(3, 1))
        canvas = FigureCanvasAgg(figure)
        figure.text(0.1, 0.4, text, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            canvas.draw()
        return np.asarray(canvas.buffer_rgba())

    shown = name.encode("utf-8", "replace").decode()
    np.testing.assert_array_equal(pixels(plain(name)), pixels(shown.replace("\\$", "$"), parse_math=False))


# Results first


@dataclass(frozen=True)
class Flags(cli.Config):
    out: Path = Path("runs/test")


@pytest.mark.parametrize("error", [ValueError("no such glyph"), OSError(28, "No space left on device"), MemoryError()])
def test_whatever_a_picture_meets_the_results_are_saved_first(monkeypatch, tmp_path, error):
    def fails(*_, **__):
        raise error

    def main(config: Flags, _: torch.device) -> list[cli.Check]:
        monkeypatch.setattr(draw, "save", fails)
        training_pictures.draw_losses({"a": [1.0]}, config.out / "loss.png")
        return [cli.check("accuracy", 0.9, ">=", 0.5)]

    monkeypatch.setattr(show, "failures", [])
    monkeypatch.setattr(sys, "argv", ["lab", "--out", str(tmp_path)])
    with pytest.raises((SystemExit, type(error))) as end:
        cli.run(Flags, main)
    assert json.loads((tmp_path / "summary.json").read_text())["checks"][0]["value"] == 0.9
    assert end.value is error or end.value.code == (2 if isinstance(error, MemoryError) else 1)


def test_a_folder_for_results_that_no_checkpoint_can_be_read_from_is_refused_before_the_work(tmp_path):
    with pytest.raises(cli.UsageError, match="its name is not in UTF-8"):
        cli.prepare(tmp_path / os.fsdecode(b"caf\xe9"))
    assert not list(tmp_path.iterdir())


def test_every_picture_of_a_result_is_drawn_so():
    """A call of `show.save` stands in a function under @show.picture, or is made through it."""
    import ast

    root = Path(cli.__file__).parents[1]
    saves, bare = {"show.save", "draw.save"}, []
    for path in root.rglob("*.py"):
        if {"gallery", "learn"} & {*path.parts}:  # which train nothing
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            guarded = isinstance(node, ast.FunctionDef) and any(
                ast.unparse(decorator) == "show.picture" for decorator in node.decorator_list
            )
            if isinstance(node, ast.FunctionDef) and not guarded:
                calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
                bare += [f"{path.name}:{node.name}" for call in calls if ast.unparse(call.func) in saves]
    assert sorted(bare) == ["detection_pictures.py:draw_mistakes", "show.py:save"]  # draw_flavor calls the former
