"""Pictures: each function returns a matplotlib Figure, and `save` writes it. No global state, no window."""

from fn.draw.figures import save
from fn.draw.heat import attention_maps, confusion, heat_maps, heat_over
from fn.draw.images import image_grid, photo_grid
from fn.draw.lines import curves, spread
from fn.draw.outlines import Drawn, boxes

__all__ = [
    "Drawn",
    "attention_maps",
    "boxes",
    "confusion",
    "curves",
    "heat_maps",
    "heat_over",
    "image_grid",
    "photo_grid",
    "save",
    "spread",
]
