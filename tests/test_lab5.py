"""Lab 5: its tables, pictures and refusals; detectors in `overfit`."""

from functools import partial

import pytest
import torch
from torch import Tensor

from experiments import lab5_detection, overfit
from experiments.lab_helpers.lab5 import detection_pictures, detection_task
from experiments.lab_helpers.lab5.baselines import score_baselines
from experiments.shared import cli, detection_report, show
from fn import tree
from fn.data.scenes import Scenes, SceneSet
from fn.detection.average_precision import THRESHOLDS
from fn.detection.train import Detections
from fn.files import write_atomic
from fn.models.squeezenet import squeezenet
from fn.optim import adam
from fn.pretrained import to_state_dict
from fn.rng import generator
from fn.train import TrainState
from tests.frames import RACCOON, RACCOONS
from tests.test_experiments import CPU, launch

NONE = [0.0, 0, 0, 0, -1]
OBJECTS = torch.tensor([[0.0, 0, 10, 10, 1], NONE, [20, 0, 30, 10, 2], [0, 20, 10, 30, 1]])


def detections(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), torch.zeros(len(rows)).long())


def test_mistakes_are_told_apart_by_class_and_overlap():
    found = detections(
        ([0.0, 0, 10, 9], 0.9, 1),  # right
        ([0.0, 0, 10, 10], 0.8, 1),  # the same once more, and fits better
        ([20.0, 0, 30, 10], 0.7, 1),  # where there is another class
        ([0.0, 24, 10, 34], 0.6, 1),  # an IoU of 0.43
        ([40.0, 40, 50, 50], 0.5, 2),
        ([0.0, 20, 10, 30], 0.2, 1),  # right, but not sure enough
    )
    wrong, missed = detection_pictures.mistakes(OBJECTS, found, 0, 0.3)
    assert wrong == {1: "double", 2: "class", 3: "place", 4: "nothing"}
    assert missed == [2, 3]
    assert set(wrong.values()) == set(detection_pictures.KINDS)
    assert detection_pictures.mistakes(OBJECTS, found, 1, 0.3) == ({}, [0, 2, 3])  # of another image
    assert detection_pictures.mistakes(OBJECTS, found, 0, 0.1)[1] == [2]


def printed(monkeypatch: pytest.MonkeyPatch) -> list:
    tables: list = []
    monkeypatch.setattr(show, "table", lambda title, columns, rows: tables.append((title, columns, list(rows))))
    return tables


def test_the_table_of_average_precision_holds_what_its_columns_say(monkeypatch):
    """The AP at a threshold is the threshold itself, a tenth more for the second class, of small objects 0."""
    tables, scenes = printed(monkeypatch), Scenes(torch.zeros(1, 1, 40, 40), OBJECTS[None, :2])
    ap = torch.tensor(THRESHOLDS).double().view(-1, 1, 1) + torch.tensor([[0, 0.1], [0, 0]])
    ap[:, 1] = 0
    sizes = {"all": (0.0, 1e10), "small": (0.0, 196.0)}
    detection_report.show_average_precision("anchor", ap, SceneSet(scenes, scenes, ["a", "b"]), sizes)
    [(title, columns, rows)] = tables
    assert title == "anchor: 1 held-out images"
    assert columns == ("objects", "AP50", "AP75", "AP50:95")
    assert rows == [
        ("all", "0.550", "0.800", "0.775"),
        ("small, up to 196 px²", "0.000", "0.000", "0.000"),
        ("a (0 of them)", "0.500", "0.750", "0.725"),
        ("b (1 of them)", "0.600", "0.850", "0.825"),
    ]


@pytest.mark.parametrize(("ap", "ok"), [(0.9, [True] * 2), (0.59, [False] * 2)])
@pytest.mark.parametrize("flavor", ["anchor", "center"])
def test_what_is_asked_of_a_detector_of_digits(monkeypatch, tmp_path, flavor, ap, ok):
    recipe = lab5_detection.RECIPES["digits"]._replace(epochs={flavor: 0})
    monkeypatch.setitem(lab5_detection.RECIPES, "digits", recipe)
    monkeypatch.setattr(lab5_detection, "predict", lambda *_: None)
    precision = torch.full((10, 4, 1), ap, dtype=torch.float64)
    scored = []
    monkeypatch.setattr(lab5_detection, "evaluate_detections", lambda *given, **_: scored.append(given) or precision)
    for module, shown in (
        (detection_report, "show_parts"),
        (detection_report, "show_average_precision"),
        (detection_pictures, "draw_flavor"),
    ):
        monkeypatch.setattr(module, shown, lambda *_: None)
    config = lab5_detection.Config(out=tmp_path, compile=False)
    detector = detection_task.build_detector(flavor, RACCOONS, None, None)
    scenes = RACCOONS._replace(test=RACCOON._replace(objects=RACCOON.objects + 1), difficult=torch.tensor([[True]]))
    checks = lab5_detection.train_and_test(config, flavor, detector, scenes, {})
    [(_, objects, classes, difficult)] = scored
    assert objects is scenes.test.objects
    assert classes == 1
    assert difficult is scenes.difficult
    assert [check.target for check in checks] == [">= 0.9", ">= 0.6"]
    assert [check.ok for check in checks] == ok


def test_what_is_asked_of_photographs_and_of_detectors_that_know_nothing():
    assert not lab5_detection.RECIPES["voc"].targets  # what to reach is for their owner to say
    checks = lab5_detection.check_baselines(lab5_detection.Config(), score_baselines(RACCOONS, 0))
    assert [(check.name, check.target) for check in checks] == [
        ("all background: AP50", "<= 0.05"),
        ("random boxes: AP50", "<= 0.05"),
    ]
    assert checks[0].value == 0
    assert not checks[1].ok  # the one object fills a tenth of its picture, and a hundred guesses meet it


UNSOUND = [5.0, 5, 5, 20, 0]


@pytest.mark.parametrize(
    "learn", [lab5_detection.overfit_few, partial(lab5_detection.train_and_test, baselines={})], ids=["few", "all"]
)
def test_objects_that_no_detector_can_learn_are_refused_before_the_first_step(monkeypatch, tmp_path, learn):
    monkeypatch.setattr(lab5_detection, "check_finite", lambda step: lambda *_, **__: pytest.fail("a step was made"))
    scenes = Scenes(torch.zeros(1, 3, 32, 32), torch.tensor([[UNSOUND]]))
    detector = detection_task.build_detector("center", RACCOONS, None, None)
    with pytest.raises(ValueError, match=r"image 0, object 0: \(5, 5, 5, 20, 0\) has reversed corners or no area"):
        learn(lab5_detection.Config(out=tmp_path), "center", detector, SceneSet(scenes, RACCOON, ["raccoon"]))


@pytest.mark.parametrize("flavor", ["anchor", "center"])
def test_the_boxes_move_as_the_images_of_training_do(monkeypatch, tmp_path, flavor):
    """A step gets images and objects of one and the same zoom; and the last state is the one tested."""
    seen, tested = [], []

    def step(ts, x, y, *, key):
        seen.append((x, y))
        return ts._replace(opt_state=len(seen)), {"loss": 0.0}

    monkeypatch.setattr(lab5_detection, "check_finite", lambda _: step)
    recipe = lab5_detection.RECIPES["digits"]._replace(epochs={flavor: 2}, augment=double)
    monkeypatch.setitem(lab5_detection.RECIPES, "digits", recipe)
    monkeypatch.setattr(detection_report, "show_parts", lambda title, history, path: tested.append(len(history)))
    monkeypatch.setattr(detection_report, "show_average_precision", lambda *_: None)
    monkeypatch.setattr(detection_pictures, "draw_flavor", lambda *arguments: tested.append(arguments[2].opt_state))
    detector = detection_task.build_detector(flavor, RACCOONS, None, None)
    lab5_detection.train_and_test(lab5_detection.Config(out=tmp_path, compile=False), flavor, detector, RACCOONS, {})
    assert [(x.shape, y.tolist()) for x, y in seen] == [((1, 3, 32, 32), [[[0.0, 0, 18, 18, 0]]])] * 2
    assert tested == [2, 2]


def double(x: Tensor, objects: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return x, torch.cat([2 * objects[..., :4], objects[..., 4:]], dim=-1)


def test_bands_of_sizes_say_where_they_end():
    assert detection_report._size_range("medium", 196, 400) == "medium, 196 to 400 px²"
    assert detection_report._size_range("large", 400, 1e10) == "large, from 400 px²"


def test_what_a_part_of_the_loss_amounts_to_is_taken_from_the_run(monkeypatch, capsys, tmp_path):
    tables = printed(monkeypatch)
    history = [{"loss": 4.0, "class": 3.0, "box": 1.0}] * 10 + [{"loss": 0.4, "class": 0.1, "box": 0.3}]
    detection_report.show_parts("", history, tmp_path / "parts.png")
    out = capsys.readouterr().out
    assert "It is 75% of the loss at first, 25% at last." in out
    assert "It is 25% of the loss at first, 75% at last." in out
    assert tables[0][2] == [("class", "3.000", "3.000", "3.000", "0.100"), ("box", "1.000", "1.000", "1.000", "0.300")]


@pytest.mark.parametrize("flavor", ["anchor", "center"])
def test_photographs_start_from_the_squeezenet_beside_them(flavor, tmp_path):
    """As published, where it is; from scratch where it is not; in one line if it is none."""
    params, state = squeezenet((3, 32, 32), 1000).init(generator(7))
    where = tmp_path / "weights" / detection_task.WEIGHTS

    def start() -> tree.Params:
        detector = detection_task.build_detector(flavor, RACCOONS, tmp_path / "raccoon", None)
        return detector.model.init(generator(0))[0]["pyramid"]["backbone"]

    fresh = start()
    where.parent.mkdir()
    torch.save(to_state_dict(params, state, {}), where)
    tree.map(partial(torch.testing.assert_close, rtol=0, atol=0), start(), params["features"])
    assert not torch.equal(fresh["0"]["weight"], params["features"]["0"]["weight"])
    write_atomic(where, "no weights")
    with pytest.raises(cli.UsageError, match=detection_task.WEIGHTS):
        start()
    torch.save({"conv1.weight": torch.zeros(3)}, where)
    with pytest.raises(cli.UsageError, match=f"^--weights {where} are not a SqueezeNet 1.1: "):
        start()


def test_dropped_boxes_are_told_if_there_are_any(monkeypatch, capsys, tmp_path):
    for dropped, said in ((0, ""), (2, "2 boxes dropped, as none of their area is in the image\n")):
        monkeypatch.setattr(detection_task, "voc", lambda *_, n=dropped, **__: RACCOONS._replace(dropped=n))
        detection_task.load_scenes("voc", tmp_path, None, None, CPU)
        assert capsys.readouterr().out == said


def test_a_folder_that_is_not_there_is_named(monkeypatch, capsys, tmp_path):
    flags = ("--dataset", "voc", "--root", str(tmp_path / "nowhere"), "--out", str(tmp_path))
    status, _, err = launch(monkeypatch, capsys, "lab5", *flags)
    assert (status, err) == (2, f"error: voc: {tmp_path / 'nowhere'}: No such file or directory\n")


def test_outputs_that_are_not_finite_are_no_step_of_training(monkeypatch, capsys, tmp_path):
    def stop(*_):
        raise FloatingPointError("prediction: an output of the model is not finite")

    monkeypatch.setattr(overfit, "overfit_detectors", stop)
    status, _, err = launch(monkeypatch, capsys, "overfit", "--family", "ssd", "--out", str(tmp_path))
    assert (status, err) == (1, "error: prediction: an output of the model is not finite\n")


@pytest.mark.parametrize("flags", [["--dataset", "mnist"], ["--root", "."]])
def test_overfit_refuses_for_a_detector_what_it_would_ignore(monkeypatch, capsys, tmp_path, flags):
    status, _, err = launch(monkeypatch, capsys, "overfit", "--family", "centernet", *flags, "--out", str(tmp_path))
    line = "error: --family centernet learns canvases of digits: it takes no --dataset and no --root\n"
    assert (status, err) == (2, line)


@pytest.mark.parametrize("family", ["ssd", "centernet"])
@pytest.mark.parametrize(("lr", "expected"), [(None, 3e-3), (0.02, 0.02)])
def test_overfit_trains_detectors_at_the_rate_it_is_given(monkeypatch, tmp_path, family, lr, expected):
    """And compiles their step if told to; nothing is learned here."""
    rates, seeds, steps, compiled_for = [], [], [], []

    def step(ts, images, objects, *, key):
        steps.append((len(images), len(objects)))
        return ts, {"loss": 1.0}

    def start(model, optimizer, *, seed, device):
        seeds.append(seed)
        return TrainState({}, {}, {})

    monkeypatch.setattr(overfit, "adam", lambda *, lr: rates.append(lr) or adam(lr=lr))
    monkeypatch.setattr(overfit, "init_train_state", start)
    monkeypatch.setattr(overfit, "check_finite", lambda _: step)
    monkeypatch.setattr(overfit, "predict", lambda *_: None)
    monkeypatch.setattr(overfit, "evaluate_detections", lambda *_: torch.ones(10, 4, 10).double())
    monkeypatch.setattr("fn.train_variants.compiled", lambda step, n: compiled_for.append(n) or step)
    config = overfit.Config(out=tmp_path, family=family, lr=lr, steps=7, compile=lr is not None)
    checks = overfit.main(config, CPU)
    assert (rates, seeds, steps) == ([expected], list(range(5)), [(8, 8)] * 7 * 5)
    assert compiled_for == ([8] if lr else [])
    assert [check.name for check in checks] == [f"{family}: {ap}, worst of 5 seeds" for ap in ("AP50", "AP50:95")]
    assert (tmp_path / "detectors.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ssd", "centernet"])
def test_overfit_learns_eight_canvases(monkeypatch, tmp_path, family):
    monkeypatch.setattr(cli, "seeds", lambda config, n: range(1))
    checks = overfit.main(overfit.Config(out=tmp_path, family=family), CPU)
    assert [check.name for check in checks if not check.ok] == []


def test_pictures_of_mistakes_stand_below_their_objects(monkeypatch, tmp_path):
    drawn: list[tuple[Tensor, list, list, int]] = []

    def boxes(x, drawn_boxes, titles, *, columns, title):
        drawn.append((x, drawn_boxes, titles, columns))

    monkeypatch.setattr(detection_pictures.draw, "boxes", boxes)
    monkeypatch.setattr(detection_pictures.draw, "save", lambda figure, path: None)
    scenes = Scenes(torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 40, 40), torch.stack([OBJECTS] * 3))
    found = detections(([0.0, 0, 10, 9], 0.9, 1), ([40.0, 40, 50, 50], 0.5, 2))
    options = {"score_threshold": 0.3, "title": "", "columns": 2}
    kinds, missed = detection_pictures.draw_mistakes(scenes, found, "abc", tmp_path / "m.png", **options)
    [(images, outlined, titles, columns)] = drawn
    assert (dict(kinds), missed) == ({"nothing": 1}, 2 + 3 + 3)
    assert columns == 2
    assert images[:, 0, 0, 0].tolist() == [0, 1, 0, 1]
    assert titles == ["objects", "objects", "1 false, 2 missed", "0 false, 3 missed"]
    texts = [[box.text for box in image] for image in outlined]
    assert texts == [["b", "c", "b"], ["b", "c", "b"], ["c 0.50 nothing", "c", "b"], ["b", "c", "b"]]
