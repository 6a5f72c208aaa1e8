"""Make pictures of cells with VOC XML, on which Lab 5 shows its anchors from the data: `python -m experiments.cells`.

Three classes, as in a smear of blood, from 10 to 100 pixels in one picture of 160: platelets, red cells and white ones.
Shreds of other things lie between them. No photograph is needed.
"""

import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from PIL import Image, ImageDraw, ImageFilter

from experiments.shared import cli
from experiments.shared.show import console
from fn.files import write_atomic

SIDE, ZOOM = 160, 4
"""of a picture, in pixels; how many times larger it is drawn"""
PALE, PINK, VIOLET = (236, 222, 214), (214, 140, 140), (104, 62, 140)


class Kind(NamedTuple):
    sides: tuple[float, float]
    """of its box, in pixels"""
    pieces: tuple[int, int]
    """in a picture, at least and at most"""


KINDS = {"platelet": Kind((10, 16), (1, 6)), "red": Kind((24, 42), (3, 8)), "white": Kind((60, 100), (0, 2))}


class Cell(NamedTuple):
    name: str
    box: tuple[int, int, int, int]
    """left, top, right, bottom, in pixels; the edges are not in it"""


@dataclass(frozen=True)
class Config:
    out: Path = Path("runs/cells")
    """the folder for images/ and annotations/"""
    count: cli.Count = 300
    """pictures; Lab 5 holds every fifth out"""
    seed: Annotated[int, cli.Between(0, 2**62 - 1)] = 0
    """each draws other pictures"""


def main(config: Config) -> int:
    cli.prepare(config.out)
    for number in range(config.count):
        write_picture(config.out, f"{number:04}", random.Random(f"{config.seed} {number}"))
    console.print(
        f"{config.count} pictures in {config.out}: just lab 5 --dataset voc --root {config.out}", soft_wrap=True
    )
    return 0


def write_picture(out: Path, stem: str, rng: random.Random) -> None:
    cells = place(rng)
    image = draw(cells, rng)
    for folder in ("images", "annotations"):
        (out / folder).mkdir(exist_ok=True)
    image.save(out / "images" / f"{stem}.png")
    write_atomic(out / "annotations" / f"{stem}.xml", annotation(f"{stem}.png", cells))


def place(rng: random.Random) -> list[Cell]:
    """Return the cells of a picture, the large ones first; of the smaller of two at most a fifth is covered."""
    cells: list[Cell] = []
    for name, kind in reversed(KINDS.items()):
        for _ in range(rng.randint(*kind.pieces)):
            side, ratio = rng.uniform(*kind.sides), rng.uniform(0.8, 1.25) ** 0.5
            width, height = (round(min(max(s, kind.sides[0]), kind.sides[1])) for s in (side / ratio, side * ratio))
            for _ in range(30):
                left, top = rng.randint(0, SIDE - width), rng.randint(0, SIDE - height)
                box = (left, top, left + width, top + height)
                if all(shared(box, cell.box) < 0.2 for cell in cells):
                    cells.append(Cell(name, box))
                    break
    return cells


def shared(one: Sequence[int], other: Sequence[int]) -> float:
    """Return how much of the smaller box lies in the other."""
    left, top, right, bottom = (f(a, b) for f, a, b in zip((max, max, min, min), one, other, strict=True))
    area = max(right - left, 0) * max(bottom - top, 0)
    return area / min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))


def draw(cells: Sequence[Cell], rng: random.Random) -> Image.Image:
    """Draw the cells, the small ones on top, over shreds; all blurred a little, under the noise of a camera."""
    image = Image.new("RGB", (SIDE * ZOOM, SIDE * ZOOM), shade(PALE, rng))
    brush = ImageDraw.Draw(image)
    for _ in range(rng.randint(2, 8)):
        x, y, length = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(5, 30)
        end = (x + rng.uniform(-length, length), y + rng.uniform(-length, length))
        points = [(ZOOM * a, ZOOM * b) for a, b in ((x, y), end)]
        brush.line(points, fill=shade(rng.choice((PINK, VIOLET)), rng, 30), width=rng.randint(1, 3) * ZOOM)
    for name, box in cells:
        left, top, right, bottom = (ZOOM * edge for edge in box)
        body = shade(VIOLET if name == "platelet" else PINK, rng)
        brush.ellipse((left, top, right - 1, bottom - 1), fill=body)
        if name == "red":  # hollow in the middle
            inset = (right - left) // 3
            pale = tuple((2 * a + b) // 3 for a, b in zip(body, PALE, strict=True))
            brush.ellipse((left + inset, top + inset, right - inset, bottom - inset), fill=pale)
        if name == "white":  # with a nucleus of lobes
            violet = shade(VIOLET, rng)
            for _ in range(rng.randint(2, 4)):
                half = rng.uniform(0.15, 0.25) * (right - left)
                x, y = (rng.uniform(a + 0.3 * (b - a), a + 0.7 * (b - a)) for a, b in ((left, right), (top, bottom)))
                brush.ellipse((x - half, y - half, x + half, y + half), fill=violet)
    image = image.resize((SIDE, SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1)))
    noise = Image.frombytes("RGB", image.size, rng.randbytes(3 * SIDE * SIDE))
    return Image.blend(image, noise, rng.uniform(0.02, 0.12))


def shade(colour: tuple[int, int, int], rng: random.Random, by: int = 18) -> tuple[int, ...]:
    return tuple(value + rng.randint(-by, by) for value in colour)


def annotation(filename: str, cells: Sequence[Cell]) -> str:
    """Return the XML as VOC has it: pixels are counted from 1, and both ends are in the box."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = filename
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", SIDE), ("height", SIDE), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for name, (left, top, right, bottom) in cells:
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = name
        box = ElementTree.SubElement(entry, "bndbox")
        for edge, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
            ElementTree.SubElement(box, edge).text = str(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


if __name__ == "__main__":
    cli.run_tool(Config, main)
