"""Write a figure to a file."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from fn.files import write_atomic


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    write_atomic(path, png.getvalue())
    return path
