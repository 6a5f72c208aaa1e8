"""The record of a run: what it prints and draws, kept as plain data until report.html is written.

A lab does not mention it. `show.table`, `show.save` and the printers of shapes and of attention keep what they show.
A process has one run at a time, and `reset` begins the next.
"""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

P = ParamSpec("P")
BINS = 24
"""of a histogram"""
STRETCHES = 500
"""of a line with more points than twice as many, of each of which the least and the greatest value are kept"""

kept: dict[str, list[dict[str, Any]]] = {}
"""the entries of each section of the page, in the order in which they were shown"""


def reset() -> None:
    kept.clear()


def keep(section: str, **entry: Any) -> None:
    """Keep an entry of a section of report.html; `entry` is what JSON can hold."""
    kept.setdefault(section, []).append(entry)


def harmless(keeper: Callable[P, None]) -> Callable[P, None]:
    """Let a function that keeps something fail without an end to the run: the page will lack it, and stderr says so."""

    @wraps(keeper)
    def kept_if_possible(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            keeper(*args, **kwargs)
        except Exception as error:
            print(f"report.html will lack {keeper.__name__} ({type(error).__name__}: {error})", file=sys.stderr)

    return kept_if_possible


@harmless
def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Keep a table of texts."""
    keep("tables", title=title, columns=list(columns), rows=[list(row) for row in rows])


@harmless
def picture(figure: "Figure", path: Path) -> None:
    """Keep a picture by its path, with a title and what it shows in words; and its lines as numbers, if it has any."""
    panels = [curve_panel(axes) for axes in figure.axes if axes.lines and not axes.images]
    titles = [_text(axes.get_title()) for axes in figure.axes if axes.get_title()]
    heading = _text(str(figure.get_label()) or figure.get_suptitle())
    drawn = [f"{panel['ylabel']} over {panel['xlabel']}: {_names(panel)}" for panel in panels]
    title = heading or "; ".join(titles[:4]) or "; ".join(panel["ylabel"] for panel in panels) or path.stem
    keep("pictures", path=path, title=title, alt="; ".join([title, *drawn, *titles[:12]]))
    if panels:
        keep("curves", path=path, title=heading, panels=panels)


def curve_panel(axes: Any) -> dict[str, Any]:
    """Return what a panel of a figure draws as lines: names, steps and values, as they were drawn."""
    logarithmic = {"log_x": axes.get_xscale() == "log", "log_y": axes.get_yscale() == "log"}
    names = {"xlabel": _text(axes.get_xlabel()), "ylabel": _text(axes.get_ylabel() or axes.get_title())}
    lines = [_line(line) for line in axes.lines if line.get_transform() == axes.transData]  # not those across the panel
    return {**names, **logarithmic, "lines": lines}


def _line(line: Any) -> dict[str, Any]:
    label = str(line.get_label())
    x, y = (list(map(float, data)) for data in line.get_data())
    picked = thin(y)
    return {
        "name": "" if label.startswith("_") else _text(label),
        "dots": line.get_linestyle() == "None",
        "color": _slot(line),
        "x": [short(x[i]) for i in picked],
        "y": [short(y[i]) for i in picked],
        "points": len(y),
    }


def _slot(line: Any) -> str:
    """Return the name that the line's colour has in the palette, by which the page draws it too; "" if it has none."""
    from fn.draw import PALETTE  # here, not above: torch takes seconds, which --help need not wait for

    return next((slot for slot, color in PALETTE.items() if color == line.get_color()), "")


def _names(panel: dict[str, Any]) -> str:
    names = dict.fromkeys(line["name"] for line in panel["lines"] if line["name"])
    return ", ".join(names) or "one line"


def _text(text: str) -> str:
    """Return a text without the backslashes by which `draw.save` keeps matplotlib from reading a formula."""
    return text.replace("\\$", "$")


def thin(values: Sequence[float], stretches: int = STRETCHES) -> list[int]:
    """Return the places to keep of a long line: of each stretch its least, its greatest, and one that is not finite.

    The first and the last stay too.

    >>> thin([0.0, 5.0, 1.0, 2.0, 3.0, -4.0, 2.0, 1.0], stretches=2)
    [0, 1, 4, 5, 7]
    """
    if len(values) <= 2 * stretches:
        return list(range(len(values)))
    edges = [i * len(values) // stretches for i in range(stretches + 1)]
    picked: set[int] = set()
    for a, b in pairwise(edges):
        finite = [i for i in range(a, b) if math.isfinite(values[i])]
        picked |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)} if finite else set()
        picked |= set([i for i in range(a, b) if not math.isfinite(values[i])][:1])
    return sorted(picked | {0, len(values) - 1})


def short(value: float) -> float | int:
    """Return the value with six significant digits, whole numbers as such: half the bytes of the page."""
    return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.6g}")


@harmless
def attention(weights: "Tensor", tokens: Sequence[str], title: str) -> None:
    """Keep attention weights (layers, heads, queries, keys) of the tokens."""
    rounded = [[[[round(w, 4) for w in row] for row in head] for head in layer] for layer in weights.tolist()]
    keep("attention", title=title, tokens=list(tokens), weights=rounded)


@harmless
def parameters(params: dict[str, Any], title: str) -> None:
    """Keep the tree of parameters: of each leaf its shape and how its values are spread, not the values."""
    from fn import tree  # here, not above: torch takes seconds, which --help need not wait for

    keep("parameters", title=title, leaves=[_leaf(name, leaf) for name, leaf in tree.flatten(params).items()])


def _leaf(name: str, leaf: "Tensor") -> dict[str, Any]:
    values = leaf.detach().flatten().cpu().double()
    entry = {"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
    entry |= {"nan": 0, "inf": 0}
    if not (len(values) and all(math.isfinite(bound) for bound in values.aminmax())):  # with a NaN, both bounds are NaN
        entry |= {"nan": int(values.isnan().sum()), "inf": int(values.isinf().sum())}
        values = values[values.isfinite()]
    if not len(values):
        return entry
    low, high = values.aminmax()
    moments = {"min": low, "max": high, "mean": values.mean(), "std": values.std(correction=0)}
    bins = list(map(int, values.histc(BINS).tolist()))
    return entry | {key: short(float(value)) for key, value in moments.items()} | {"bins": bins}
