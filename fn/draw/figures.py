"""Write a figure to a file."""

import io
import re
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text

from fn.files import write_atomic


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all. Texts are drawn as they stand, see `plain`; no formula is read in them."""
    for text in figure.findobj(Text):  # labels of ticks are set later, by matplotlib itself
        text.set_text(plain(text.get_text()))
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    write_atomic(path, png.getvalue())
    return path


def plain(text: str) -> str:
    r"""Return matplotlib's text for a name: a $ begins no formula, a byte that is no text is a question mark.

    >>> plain("US$ to A$")
    'US\\$ to A\\$'
    """
    return re.sub(r"(?<!\\)\$", r"\\$", text.encode("utf-8", "replace").decode())
