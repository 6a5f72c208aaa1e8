"""Pictures: each function returns a matplotlib Figure, and `save` writes it. No global state, no window."""

from fn.draw.figures import save, set_title
from fn.draw.heat import attention_maps, confusion, heat_maps, heat_over
from fn.draw.images import image_grid, photo_grid
from fn.draw.lines import Seeds, curves, spread
from fn.draw.outlines import Drawn, boxes
from fn.draw.palette import PALETTE, color, colors

__all__ = [
    "PALETTE",
    "Drawn",
    "Seeds",
    "attention_maps",
    "boxes",
    "color",
    "colors",
    "confusion",
    "curves",
    "heat_maps",
    "heat_over",
    "image_grid",
    "photo_grid",
    "save",
    "set_title",
    "spread",
]
