"""What Lab 5 prints, draws and refuses, and how `overfit` takes detectors."""

from functools import partial

import pytest
import torch
from torch import Tensor

from experiments import lab5_detection, overfit
from experiments.shared import cli, show
from experiments.shared import detection_report as detecting
from fn import tree
from fn.data.scenes import Scenes, SceneSet
from fn.detection.average_precision import THRESHOLDS
from fn.detection.train import Detections
from fn.files import write_atomic
from fn.models.squeezenet import squeezenet
from fn.pretrained import to_state_dict
from fn.rng import generator
from fn.train import TrainState
from tests.test_experiments import CPU, launch

NONE = [0.0, 0, 0, 0, -1]
OBJECTS = torch.tensor([[0.0, 0, 10, 10, 1], NONE, [20, 0, 30, 10, 2], [0, 20, 10, 30, 1]])
RACCOON = Scenes(torch.zeros(1, 3, 32, 32), torch.tensor([[[0.0, 0, 9, 9, 0]]]))
RACCOONS = SceneSet(RACCOON, RACCOON, ["raccoon"])


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
    wrong, missed = detecting.mistakes(OBJECTS, found, 0, 0.3)
    assert wrong == {1: "double", 2: "class", 3: "place", 4: "nothing"}
    assert missed == [2, 3]
    assert set(wrong.values()) == set(detecting.KINDS)
    assert detecting.mistakes(OBJECTS, found, 1, 0.3) == ({}, [0, 2, 3])  # of another image
    assert detecting.mistakes(OBJECTS, found, 0, 0.1)[1] == [2]


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
    lab5_detection.show_ap("", ap, SceneSet(scenes, scenes, ["a", "b"]), sizes)
    [(_, columns, rows)] = tables
    assert columns == ("objects", "AP50", "AP75", "AP50:95")
    assert rows == [
        ("all", "0.550", "0.800", "0.775"),
        ("small, up to 196 px²", "0.000", "0.000", "0.000"),
        ("a (0 of them)", "0.500", "0.750", "0.725"),
        ("b (1 of them)", "0.600", "0.850", "0.825"),
    ]


@pytest.mark.parametrize(("ap", "seconds", "ok"), [(0.9, 240, [True] * 3), (0.59, 241, [False] * 3)])
@pytest.mark.parametrize("flavor", ["anchor", "center"])
def test_what_is_asked_of_a_detector_of_digits(monkeypatch, tmp_path, flavor, ap, seconds, ok):
    clock = iter([0.0, seconds])
    monkeypatch.setattr(lab5_detection.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(show, "follow", lambda *_: (TrainState({}, {}, {}), []))
    monkeypatch.setattr(lab5_detection, "predict", lambda *_: None)
    monkeypatch.setattr(lab5_detection, "judge", lambda *_, **__: torch.full((10, 4, 1), ap, dtype=torch.float64))
    for shown in ("show_ap", "draw"):
        monkeypatch.setattr(lab5_detection, shown, lambda *_: None)
    monkeypatch.setattr(detecting, "show_parts", lambda *_: None)
    config = lab5_detection.Config(out=tmp_path, compile=False)
    checks = lab5_detection.generalise(config, flavor, lab5_detection.build(config, flavor, RACCOONS), RACCOONS)
    assert [check.target for check in checks] == [">= 0.9", ">= 0.6", "<= 240"]
    assert [check.ok for check in checks] == ok


def test_what_is_asked_of_photographs_and_of_who_knows_nothing():
    assert lab5_detection.RECIPES["voc"].least == {"AP50": 0.7}
    checks = lab5_detection.know_nothing(lab5_detection.Config(), RACCOONS)
    assert [(check.name, check.target) for check in checks] == [
        ("all background: AP50", "<= 0.05"),
        ("random boxes: AP50", "<= 0.05"),
    ]
    assert checks[0].value == 0
    assert not checks[1].ok  # the one object fills a tenth of its picture, and a hundred guesses meet it


def test_bands_of_sizes_say_where_they_end():
    assert lab5_detection._band("medium", 196, 400) == "medium, 196 to 400 px²"
    assert lab5_detection._band("large", 400, 1e10) == "large, from 400 px²"


def test_what_a_part_of_the_loss_amounts_to_is_taken_from_the_run(monkeypatch, capsys, tmp_path):
    tables = printed(monkeypatch)
    history = [{"loss": 4.0, "class": 3.0, "box": 1.0}] * 10 + [{"loss": 0.4, "class": 0.1, "box": 0.3}]
    detecting.show_parts("", history, tmp_path / "parts.png")
    out = capsys.readouterr().out
    assert "It is 75% of the loss at first, 25% at last." in out
    assert "It is 25% of the loss at first, 75% at last." in out
    assert tables[0][2] == [("class", "3.000", "3.000", "3.000", "0.100"), ("box", "1.000", "1.000", "1.000", "0.300")]


@pytest.mark.parametrize("flavor", ["anchor", "center"])
def test_photographs_start_from_the_squeezenet_beside_them(flavor, tmp_path):
    """As published, where it is; from scratch where it is not; in one line if it is none."""
    params, state = squeezenet((3, 32, 32), 1000).init(generator(7))
    where = tmp_path / "weights" / lab5_detection.WEIGHTS
    config = lab5_detection.Config(dataset="voc", data=tmp_path / "raccoon")
    fresh = lab5_detection.build(config, flavor, RACCOONS).model.init(generator(0))[0]
    where.parent.mkdir()
    torch.save(to_state_dict(params, state, {}), where)
    started = lab5_detection.build(config, flavor, RACCOONS).model.init(generator(0))[0]
    tree.map(partial(torch.testing.assert_close, rtol=0, atol=0), started["pyramid"]["backbone"], params["features"])
    assert not torch.equal(fresh["pyramid"]["backbone"]["0"]["weight"], params["features"]["0"]["weight"])
    write_atomic(where, "no weights")
    with pytest.raises(cli.UsageError, match=lab5_detection.WEIGHTS):
        lab5_detection.build(config, flavor, RACCOONS)
    torch.save({"conv1.weight": torch.zeros(3)}, where)
    with pytest.raises(cli.UsageError, match=f"^--weights {where} are not a SqueezeNet 1.1: "):
        lab5_detection.build(config, flavor, RACCOONS)


def test_dropped_boxes_are_told_if_there_are_any(monkeypatch, capsys, tmp_path):
    config = lab5_detection.Config(dataset="voc", data=tmp_path)
    for dropped, said in ((0, ""), (2, "2 boxes dropped, as none of their area is in the image\n")):
        monkeypatch.setattr(lab5_detection, "voc", lambda *_, n=dropped, **__: RACCOONS._replace(dropped=n))
        lab5_detection.load(config, CPU)
        assert capsys.readouterr().out == said


def test_a_folder_that_is_not_there_is_named(monkeypatch, capsys, tmp_path):
    flags = ("--dataset", "voc", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path))
    status, _, err = launch(monkeypatch, capsys, "lab5", *flags)
    assert (status, err) == (2, f"error: voc: there is no folder {tmp_path / 'nowhere' / 'annotations'}\n")


def test_outputs_that_are_not_finite_are_no_step_of_training(monkeypatch, capsys, tmp_path):
    def stop(*_):
        raise FloatingPointError("prediction: an output of the model is not finite")

    monkeypatch.setattr(overfit, "detectors", stop)
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
    seen, compiled_for = [], []

    def learn(detector, canvases, *, step, seed, steps, enough, every, each):
        seen.append((step.keywords["optimizer"].keywords["lr"], len(canvases.images), seed, steps))
        each(None, {"loss": 1.0}, {})
        return None, torch.ones(10, 4, 10).double()

    monkeypatch.setattr(overfit, "overfit_detector", learn)
    monkeypatch.setattr(overfit, "compiled", lambda step, n: compiled_for.append(n) or step)
    config = overfit.Config(out=tmp_path, family=family, lr=lr, steps=7, compile=lr is not None)
    checks = overfit.main(config, CPU)
    assert seen == [(expected, 8, seed, 7) for seed in range(5)]
    assert compiled_for == ([8] if lr else [])
    assert [check.name for check in checks] == [f"{family}: {ap}, worst of 5 seeds" for ap in ("AP50", "AP50:95")]
    assert (tmp_path / "detectors.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["ssd", "centernet"])
def test_overfit_learns_eight_canvases(monkeypatch, tmp_path, family):
    monkeypatch.setattr(cli, "seeds", lambda config, n: range(1))
    checks = overfit.main(overfit.Config(out=tmp_path, family=family), CPU)
    assert [check.name for check in checks if not check.ok] == []


def test_pictures_of_mistakes_stand_below_what_is_there(monkeypatch, tmp_path):
    drawn: list[tuple[Tensor, list, list, int]] = []
    monkeypatch.setattr(
        detecting.draw, "boxes", lambda x, boxes, titles, *, columns, title: drawn.append((x, boxes, titles, columns))
    )
    monkeypatch.setattr(detecting.draw, "save", lambda figure, path: None)
    scenes = Scenes(torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 40, 40), torch.stack([OBJECTS] * 3))
    found = detections(([0.0, 0, 10, 9], 0.9, 1), ([40.0, 40, 50, 50], 0.5, 2))
    kinds, missed = detecting.draw_mistakes(scenes, found, "abc", tmp_path / "m.png", least=0.3, title="", columns=2)
    [(images, boxes, titles, columns)] = drawn
    assert (dict(kinds), missed) == ({"nothing": 1}, 2 + 3 + 3)
    assert columns == 2
    assert images[:, 0, 0, 0].tolist() == [0, 1, 0, 1]
    assert titles == ["there", "there", "1 false, 2 missed", "0 false, 3 missed"]
    texts = [[box.text for box in some] for some in boxes]
    assert texts == [["b", "c", "b"], ["b", "c", "b"], ["c 0.50 nothing", "c", "b"], ["b", "c", "b"]]
