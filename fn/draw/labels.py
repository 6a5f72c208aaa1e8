"""Where the texts of boxes go: inside the image, and on no other text where that can be helped."""

from collections.abc import Sequence

from fn.domains import Positive
from fn.draw.figures import LETTER, folded

Corners = tuple[float, float, float, float]
LINE = 1.45
"""the height of a line with its background, in font sizes"""
CROWD = 8
"""labels in one image, beyond which one that finds no free place is left out"""


def place_labels(
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
    *,
    image: tuple[Positive, Positive],
    point: Positive,
    size: Positive,
    low: Sequence[bool] = (),
) -> list[tuple[float, float, str]]:
    """Return (x, y, text) of each label's upper left corner, in pixels of the image (width, height), long ones folded.

    `point` is the pixels in a point, `size` the font size in points. Each label goes to the first place beside its box
    that is free, those of `low` boxes below before above; if none is, to the place with the least overlap, or in
    a crowd nowhere: its text is empty.

    >>> place_labels([[2, 20, 30, 40]], ["cat"], image=(100, 100), point=1.0, size=8)
    [(2, 8.4, 'cat')]
    """
    width, height = image
    taken: list[Corners] = []
    placed: list[tuple[float, float, str]] = []
    for n, ((x1, y1, x2, y2), text) in enumerate(zip(boxes, texts, strict=True)):
        text = folded(text, width / point / 72, size)
        lines = text.split("\n")
        wide = min(width, (LETTER * max(map(len, lines)) + 0.2) * size * point)
        tall = min(height, LINE * size * len(lines) * point)
        downs = [y1 - tall, y1, y2, y2 - tall]
        if low and low[n]:
            downs = [y2, y2 - tall, y1 - tall, y1]
        tries = [(x, y) for y in downs for x in (x1, x2 - wide, (x1 + x2 - wide) / 2)]
        tries += [(x, y) for x in (x2, x1 - wide) for y in (y1, y2 - tall)]
        inside = [(min(max(x, 0), width - wide), min(max(y, 0), height - tall)) for x, y in tries]
        order = sorted(range(len(tries)), key=lambda i: inside[i] != tries[i])  # places that need no shift first
        areas = [(*inside[i], inside[i][0] + wide, inside[i][1] + tall) for i in order]
        best = min(areas, key=lambda area: sum(_overlap(area, other) for other in taken))
        if len(taken) >= CROWD and any(_overlap(best, other) for other in taken):
            text = ""
        if text:
            taken.append(best)
        placed.append((best[0], best[1], text))
    return placed


def _overlap(a: Corners, b: Corners) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
