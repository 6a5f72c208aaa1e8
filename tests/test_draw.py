"""Pictures: titles, whole steps, bands over seeds, crosses at NaN, labels to be read, one colour for one thing."""

# matplotlib's own types leave open what an artist returns
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

import ast
import math
import re
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import CSS4_COLORS, TABLEAU_COLORS, to_hex

from experiments.shared import show, training_pictures
from experiments.shared.report import record, write
from experiments.shared.titles import course, told
from fn import draw
from fn.data.datasets import digits
from fn.draw.figures import DPI, SHOWN
from fn.draw.labels import place_labels
from fn.draw.lines import band
from fn.draw.palette import NAMES
from fn.models.cnn import cnn
from fn.optim import sgd
from fn.train import init_train_state

ROOT = Path(__file__).parents[1]
DRAWN = {
    "curves",
    "spread",
    "boxes",
    "attention_maps",
    "heat_maps",
    "heat_over",
    "confusion",
    "image_grid",
    "photo_grid",
}


def rendered(figure):
    """Lay the figure out as it will be saved."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def texts_of(figure, renderer):
    """Return the place of each box label, in pixels, by panel."""
    return [[text.get_window_extent(renderer) for text in axes.texts] for axes in figure.axes]


def test_each_row_of_feature_maps_names_its_layer_left_of_it(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(show, "save", lambda figure, path: figures.append(figure))
    data, model = digits(), cnn((1, 8, 8), 10)
    ts = init_train_state(model, sgd(lr=0.1), seed=0)
    training_pictures.draw_feature_maps(model, ts, data, tmp_path / "maps.png")
    [figure] = figures
    renderer = rendered(figure)
    named = {axes: axes.texts[0] for axes in figure.axes if axes.texts}
    assert [text.get_text().split("\n") for text in named.values()] == [
        ["image", "8 × 8"],
        ["conv1", "to relu", "4 × 4"],
        ["conv2", "to relu", "2 × 2"],
        ["conv3", "to relu", "2 × 2"],
    ]
    for axes, text in named.items():
        place, row = text.get_window_extent(renderer), axes.get_window_extent(renderer)
        assert 0 <= place.x0 < place.x1 <= row.x0
        assert row.y0 <= place.y0 < place.y1 <= row.y1


# Titles


def test_a_picture_without_a_title_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"loss\.png: a picture needs a title that says what to see"):
        draw.save(draw.curves({"loss": {"train": [1.0, 2.0]}}), tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())


def test_every_picture_of_the_experiments_is_given_a_title():
    seen, untitled = set(), []
    for path in (ROOT / "experiments").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("draw.") in DRAWN:
                if not ast.unparse(node.func).startswith("draw."):
                    continue
                seen.add(ast.unparse(node.func).removeprefix("draw."))
                if "title" not in {word.arg for word in node.keywords}:
                    untitled.append(f"{path.name}:{node.lineno}")
            if isinstance(node, ast.FunctionDef):
                own = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
                if "Figure" in own and "draw.set_title" not in own:
                    untitled.append(f"{path.name}:{node.name}")
    assert untitled == []
    assert seen == DRAWN


def test_a_long_title_stays_on_the_canvas_and_is_kept_in_one_piece(tmp_path):
    title = "The loss of the learning network falls, that of the frozen one stays where it was at first. " * 3
    figure = draw.curves({"loss": {"train": [2.0, 1.0]}}, title=title.strip())
    place = figure._suptitle.get_window_extent(rendered(figure))
    assert place.x0 >= 0
    assert place.x1 <= figure.get_figwidth() * DPI
    record.reset()
    record.picture(figure, tmp_path / "loss.png")
    assert record.kept["pictures"][0]["title"] == title.strip()
    record.reset()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([2.3, 1.0, 0.01], "falls from 2.3 to 0.01"),
        ([0.1, 0.5, 1.0], "rises from 0.1 to 1"),
        ([2.3, 9.0, 2.301], "stays at 2.3"),
        ([0.0, 0.0], "stays at 0"),
        ([5.0], "is 5"),
        ([math.nan], "is NaN from step 1 on"),
        ([1.0, 2.0, math.inf], "is infinite from step 3 on"),
        ([1.0, math.nan, 0.5], "is not finite at 1 of 3 steps and ends at 0.5"),
        ({10: 1.0, 20: math.nan}, "is NaN from step 20 on"),
        (draw.Seeds([[2.0, 1.0], [4.0, 3.0]]), "falls from 3 to 2 on average"),
        (draw.Seeds([[2.0, 1.0]]), "falls from 2 to 1"),
    ],
)
def test_a_title_says_how_a_line_goes(line, said):
    assert course(line) == said


def test_lines_that_go_alike_are_told_together():
    lines = {"classic": [2.0, 1.0], "functional": [2.0, 1.0], "frozen": [2.0, 2.0]}
    assert told("loss", lines) == "The loss of classic and functional falls from 2 to 1, that of frozen stays at 2."
    assert told("loss", {"": [2.0, 1.0]}) == "The loss falls from 2 to 1."
    fallen = told("loss", {"a": [2.0, 1.0], "b": [2.0, 0.5], "c": [2.0, 1e-4]})
    assert fallen == "The loss of all 3 falls, to between 0.0001 and 1."


# Axes


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 12, 32, 100, 938, 12_345])
def test_ticks_of_steps_are_whole(steps):
    figure = draw.curves({"loss": {"train": [1.0] * steps}, "accuracy": {"test": {steps: 1.0}}}, title="steps")
    rendered(figure)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == int(tick) for tick in ticks)


def test_a_single_step_is_seen():
    figure = draw.curves({"loss": {"train": [1.0]}}, title="one step")
    assert figure.axes[0].lines[0].get_marker() == "o"


# Seeds and NaN


def test_the_band_reaches_from_the_least_to_the_greatest():
    runs = [[4.0, 3.0, 2.0], [2.0, 1.0, 1.0], [3.0, 2.0]]  # the last ended early and keeps its value
    figure = draw.curves({"loss": {"train": draw.Seeds(runs)}}, title="seeds")
    [axes] = figure.axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines if line.get_label()[0] != "_"}
    assert lines == {"train": [3.0, 2.0, pytest.approx(5 / 3)]}
    edges = axes.collections[0].get_paths()[0].vertices
    assert [edges[edges[:, 0] == step, 1].min() for step in (1, 2, 3)] == [2, 1, 1]
    assert [edges[edges[:, 0] == step, 1].max() for step in (1, 2, 3)] == [4, 3, 2]
    assert axes.get_legend().get_title().get_text() == "mean of 3 seeds, band from least to greatest"


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), min_size=1, max_size=4))
@settings(max_examples=50)
def test_the_mean_lies_in_the_band(runs):
    steps, (least, mean, greatest) = band(draw.Seeds(runs))
    assert steps == list(range(1, max(map(len, runs)) + 1))
    assert all(a - 1e-9 <= b <= c + 1e-9 for a, b, c in zip(least, mean, greatest, strict=True))


@pytest.mark.parametrize("log", [[], ["loss"]])
@pytest.mark.parametrize(
    ("line", "crosses", "said"),
    [
        ([3.0, 2.0, math.nan, math.nan], [(3, 2.0)], "NaN at 3"),
        ([3.0, math.inf, 2.0, math.nan], [(2, 3.0), (4, 2.0)], "infinite at 2"),
        ([math.nan, math.nan], [(1, 0.5)], "NaN at 1"),
        ({10: 1.0, 20: math.nan}, [(20, 1.0)], "NaN at 20"),
        (draw.Seeds([[2.0, math.nan], [4.0, 4.0]]), [(2, 3.0)], "NaN at 2"),
        ([3.0, 2.0], [], None),
    ],
)
def test_a_cross_says_where_a_line_stops_being_finite(line, crosses, said, log):
    figure = draw.curves({"loss": {"broken": line}}, log=log, title="NaN")
    [axes] = figure.axes
    marks = [
        tuple(mark.get_offsets().data[0])
        for mark in axes.collections
        if len(mark.get_offsets()) and mark.get_zorder() == 3
    ]
    assert marks == crosses
    assert [text.get_text() for text in axes.texts] == ([said] if said else [])
    rendered(figure)


# Labels of boxes

CORNER = st.floats(-10, 70)
BOX = st.tuples(CORNER, CORNER, CORNER, CORNER).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


@given(st.lists(st.tuples(BOX, st.sampled_from(["3", "raccoon 0.95", "6 0.88 double"]), st.booleans()), max_size=6))
@settings(max_examples=8, deadline=None)
def test_labels_stay_inside_their_image(boxes):
    drawn = [draw.Drawn(box, text, "false", dashed) for box, text, dashed in boxes]
    figure = draw.boxes(torch.rand(1, 1, 64, 64), [drawn], ["objects"], columns=1, title="labels")
    places = texts_of(figure, rendered(figure))[0]
    image = figure.axes[0].get_window_extent()
    for place in places:
        assert image.x0 - 1 <= place.x0
        assert place.x1 <= image.x1 + 1
        assert image.y0 - 1 <= place.y0
        assert place.y1 <= image.y1 + 1


@pytest.mark.parametrize("columns", [1, 4, 6])
def test_labels_of_crowded_boxes_do_not_overlap_and_can_be_read(columns):
    boxes = [
        ((4, 4, 24, 30), "6 0.99"),
        ((5, 5, 25, 31), "6 0.88"),
        ((44, 2, 63, 30), "6 0.50"),
        ((8, 30, 24, 60), "8"),
    ]
    drawn = [draw.Drawn(box, text, "false", dashed=i % 2 == 1) for i, (box, text) in enumerate(boxes)]
    images = torch.rand(columns, 1, 64, 64)
    figure = draw.boxes(images, [drawn] * columns, ["objects"] * columns, columns=columns, title="crowd")
    renderer = rendered(figure)
    scale = min(1, SHOWN / (figure.get_figwidth() * DPI))
    for axes, places in zip(figure.axes, texts_of(figure, renderer), strict=True):
        assert len(places) == 4
        assert not any(a.overlaps(b) for i, a in enumerate(places) for b in places[:i])
        for text in [*axes.texts, axes.title]:
            assert text.get_fontsize() / 72 * DPI * scale >= 9.99
        assert all(text.get_bbox_patch().get_facecolor()[3] >= 0.75 for text in axes.texts)


def test_a_label_wider_than_its_image_is_folded():
    [(x, y, text)] = place_labels([[5, 5, 9, 9]], ["raccoon 0.95 badly placed"], image=(64, 64), point=0.6, size=10)
    assert text == "raccoon 0.95\nbadly placed"
    assert x >= 0 <= y


def test_in_a_crowd_a_label_without_a_place_is_left_out():
    boxes = [[i % 50, i * 7 % 50, i % 50 + 12, i * 7 % 50 + 12] for i in range(100)]
    placed = place_labels(boxes, ["2 1.00 nothing"] * 100, image=(64, 64), point=0.5, size=10)
    assert 8 <= sum(text != "" for *_, text in placed) < 40


# Colours


def test_one_name_has_one_colour_in_every_picture():
    lines = {"validation": [1.0, 2.0], "train": [2.0, 1.0], "unheard of": [3.0, 3.0]}
    first = draw.curves({"loss": lines}, title="a")
    second = draw.curves({"loss": {"train": [1.0]}, "accuracy": {"validation": draw.Seeds([[1.0], [2.0]])}}, title="b")
    seen = [(line.get_label(), line.get_color()) for f in (first, second) for a in f.axes for line in a.lines]
    named = {pair for pair in seen if pair[0][0] != "_"}
    assert len(named) == 3
    assert {("train", draw.color("train")), ("validation", draw.color("validation"))} <= named
    assert len({hue for _, hue in named}) == 3


def test_pictures_and_the_page_have_the_same_colours():
    light = re.findall(r":root \{(.*?)\}", write.TEMPLATE.read_text("utf-8"), re.DOTALL)[0]
    page = dict(re.findall(r"--(\w+): (#\w{6});", light))
    assert {slot: page[slot] for slot in draw.PALETTE} == draw.PALETTE
    figure = draw.curves({"loss": {"fixed": [1.0], "broken": [2.0], "momentum": [3.0]}}, title="colours")
    slots = [line["color"] for line in record.curve_panel(figure.axes[0])["lines"]]
    assert slots == ["c0", "bad", "c1"]


def test_no_picture_names_a_colour_that_is_not_the_palettes():
    """Names and codes of colours, and matplotlib's scales, stand in fn/draw/palette.py alone."""
    files = [path for path in (ROOT / "fn" / "draw").glob("*.py") if path.name != "palette.py"]
    for path in (ROOT / "experiments").rglob("*.py"):
        files += [path] if re.search(r"from fn import draw|from fn\.draw|matplotlib", path.read_text()) else []
    known = {*CSS4_COLORS, *TABLEAU_COLORS, *matplotlib.colormaps} - {"flag"}  # flag is a word too
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            said = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if said in known or re.fullmatch("#[0-9a-fA-F]{3,8}|C[0-9]", said):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {said}")
    assert len(files) > 15
    assert found == []


def test_the_table_names_colours_that_there_are():
    assert set(NAMES.values()) <= set(draw.PALETTE)
    with pytest.raises(ValueError, match="'red' has no colour"):
        draw.color("red")
    drawn = draw.boxes(torch.rand(1, 1, 8, 8), [[draw.Drawn((1, 1, 4, 4), "3", "object")]], columns=1, title="box")
    assert to_hex(drawn.axes[0].lines[0].get_color()) == draw.PALETTE["good"]
