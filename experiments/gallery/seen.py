"""Print what a program of the gallery returns: numbers, texts, curves."""

from collections.abc import Sequence

from experiments.gallery.failures import Seen
from experiments.shared.show import console, spark, wrapped
from fn.gradcheck import largest


def show_seen(seen: Seen) -> None:
    """Print a line per number, text or curve."""
    label = max(map(len, seen)) + 4
    for name, value in seen.items():
        if isinstance(value, list):
            ends = "  " + " → ".join(landmarks(value))
            shown = spark(value, max(8, min(40, console.width - label - len(ends) - 7))) + ends
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        wrapped(f"  {name}".ljust(label), shown, style="")


def landmarks(curve: Sequence[float]) -> list[str]:
    """Return the first and the last value, and between them the greatest if it is neither."""
    first, greatest, last = (f"{v:.3g}" for v in (curve[0], largest(curve), curve[-1]))
    return [first, last] if greatest in (first, last) else [first, greatest, last]
