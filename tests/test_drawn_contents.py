"""A drawing shows what it was given: boxes at their corners, matrices upright, red for positive."""

import numpy
import torch

from fn import draw
from fn.draw.outlines import Drawn


def test_a_box_is_drawn_at_its_corners():
    figure = draw.boxes(torch.zeros(1, 1, 20, 30), [[Drawn((2.0, 3.0, 25.0, 9.0), "a", "false")]], columns=1)
    [axes] = figure.axes
    x, y = (torch.as_tensor(numbers) for numbers in axes.lines[0].get_data())
    assert (x.min(), x.max(), y.min(), y.max()) == (2.0, 25.0, 3.0, 9.0)
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 30), (20, 0))


def test_attention_is_drawn_with_queries_as_rows():
    weights = torch.rand(1, 2, 3, 4)
    figure = draw.attention_maps(weights, "abc", "wxyz")
    for head, axes in enumerate(figure.axes):
        torch.testing.assert_close(torch.as_tensor(numpy.asarray(axes.images[0].get_array())), weights[0, head])
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b", "c"]


def test_red_is_positive_and_blue_negative():
    figure = draw.heat_maps({"m": torch.tensor([[1.0, -1.0]])}, xlabels=["x"], ylabels=["y"])
    image = figure.axes[0].images[0]
    (red, _, blue, _), (red_, _, blue_, _) = image.to_rgba(numpy.asarray(image.get_array()))[0]
    assert red > blue
    assert blue_ > red_


def test_a_confusion_is_written_at_its_row_and_column():
    matrix = torch.tensor([[5, 1], [2, 7]])
    axes = draw.confusion(matrix, ["cat", "dog"]).axes[0]
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert written == {(i, j): str(matrix[i, j].item()) for i in range(2) for j in range(2)}
