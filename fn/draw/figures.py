"""Write a figure to a file; its title; sizes of letters that can be read."""

import io
import re
import textwrap
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fn.domains import Positive
from fn.files import write_atomic

DPI = 120
SHOWN = 830
"""the width in pixels in which a README shows a wide picture"""
LETTER = 0.6
"""the width of an average letter, in font sizes, rounded up"""


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all; ValueError without a title, see `set_title`.

    Texts are drawn as they stand, see `plain`; no formula is read in them.
    """
    if not figure.get_suptitle():
        raise ValueError(f"{path.name}: a picture needs a title that says what to see")
    for text in figure.findobj(Text):  # labels of ticks are set later, by matplotlib itself
        text.set_text(plain(text.get_text()))
    drawn, png = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").save(png, "png")  # a tenth smaller; all of it is opaque
    write_atomic(path, png.getvalue())
    return path


def set_title(figure: Figure, title: str) -> None:
    """Write the title above all panels, in as many lines as it needs; the figure's label keeps it in one piece."""
    width = figure.get_figwidth()
    size = readable(width, at_least=10)
    figure.suptitle(folded(title, width, size), fontsize=size)
    figure.set_label(plain(title))


def readable(width: Positive, *, at_least: Positive = 8, pixels: Positive = 10) -> float:
    """Return the font size, in points, that a picture of that width in inches needs: `pixels` high when it is SHOWN.

    >>> round(readable(11.4), 1), readable(3.0)
    (9.9, 8)
    """
    return max(at_least, pixels * max(1.0, width * DPI / SHOWN) * 72 / DPI)


def folded(text: str, width: Positive, size: Positive) -> str:
    """Return the text in lines of at most `width` inches at that font size.

    >>> folded("Ankle boot, read as Sneaker", 1.0, 8)
    'Ankle boot,\\nread as Sneaker'
    """
    letters = max(1, int(width * 72 / (LETTER * size)))
    return "\n".join(textwrap.fill(line, letters, break_on_hyphens=False) for line in text.split("\n"))


def plain(text: str) -> str:
    r"""Return matplotlib's text for a name: a $ begins no formula, a byte that is no text is a question mark.

    >>> plain("US$ to A$")
    'US\\$ to A\\$'
    """
    return re.sub(r"(?<!\\)\$", r"\\$", text.encode("utf-8", "replace").decode())
