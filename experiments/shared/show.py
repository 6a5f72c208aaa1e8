"""Tables on stdout and progress on stderr, for a person who watches an experiment."""

import io
import math
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Span, Text

from experiments.shared.report import record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")
console = Console(highlight=False)
log = Console(stderr=True, highlight=False)


def print_anything() -> None:
    """Let a terminal that lacks a sign, θ or an undecodable byte of a file's name, show a question mark, not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


bars_on: Console | None = None
"""where bars are drawn, without the loss, while what is printed waits for predictions"""


@contextmanager
def progress(total: int, title: str, *, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yield advance(loss, examples), to be called after each step: a bar on a terminal, five lines elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
    screen = bars_on or log
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)
        began, step, seen = time.perf_counter(), done, 0

        def advance(loss: float, examples: int = 0) -> None:
            nonlocal step, seen
            step, seen = step + 1, seen + examples
            rate = f", {seen / (time.perf_counter() - began):,.0f} images/s" if seen else ""
            said = "" if bars_on else f"  loss {loss:.4f}"
            bar.update(task, advance=1, description=f"{title}{said}{rate}")
            if not screen.is_terminal and step % max(1, total // 5) == 0:
                log.print(f"{title}: step {step} of {total}, loss {loss:.4f}{rate}", soft_wrap=True)

        yield advance


failures: list[Exception] = []
"""what went wrong with pictures; `cli.run` raises the first once the results are saved"""


def picture(draw: Callable[P, T]) -> Callable[P, T | None]:
    """Let a function that draws fail without an end to the run: no picture is worth the results of a training."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return draw(*args, **kwargs)
        except Exception as error:
            failures.append(error)
            log.print(f"{draw.__name__} failed ({type(error).__name__}); the results come first", markup=False)

    return drawn


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG, see `fn.draw.save`, and keep it for report.html."""
    from fn import draw  # here, not above: it imports torch, which --help need not wait for

    draw.save(figure, path)
    record.picture(figure, path)


def parameters(params: dict[str, Any], title: str) -> None:
    """Keep the tree of parameters for report.html: shapes, histograms, and what is not finite."""
    record.parameters(params, title)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as the terminal allows, and keep it for report.html; long words are folded.

    Where it is too wide, the columns stand closer, a dotted name breaks at its dots, and columns of single words give
    way last.
    """
    rows = list(rows)
    record.table(title, columns, rows)
    cells = list(zip(columns, *rows, strict=True))
    too_wide = sum(max(map(len, column)) + 2 for column in cells) > console.width
    words = [max((len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    roomy = too_wide and sum(words) + len(words) < console.width
    drawn = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD,
        padding=(0, 0 if too_wide else 1, 0, 0),
        pad_edge=False,
    )
    for column, longest in zip(cells, words, strict=True):
        head = column[0].replace(".", ".\n") if too_wide else column[0]
        drawn.add_column(head, overflow="fold", no_wrap=roomy and max(map(len, column)) == longest)
    widest = max(16, console.width // max(len(columns) - 1, 1) - 4)
    for row in rows:
        drawn.add_row(*(" ".join(at_dots(word, widest) for word in cell.split(" ")) for cell in row))
    console.print()
    console.print(drawn, markup=False)


def at_dots(word: str, width: int) -> str:
    """Return a word that is wider in lines that end in dots of its name; a number stays whole.

    >>> at_dots("torch.nn.functional.cross_entropy(x,", 24)
    'torch.nn.functional.\\ncross_entropy(x,'
    """
    if len(word) <= width:
        return word
    lines = [""]
    for part in re.split(r"(?<=[a-zA-Z_]\.)(?=[a-zA-Z_])", word):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def wrapped(label: str, text: str, *, style: str = "bold") -> None:
    """Print the label and beside it the text, folded at the width of the terminal, each line below the first."""
    width = min(console.width, 100)
    below = " " * len(label)
    lines = textwrap.wrap(
        text, width, initial_indent=label, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )
    console.print(Text("\n".join(lines), spans=[Span(0, len(label), style)]), soft_wrap=True)


def say(text: str) -> None:
    """Print a text as it stands; on a terminal a line that is too wide goes on below, from a whole word on."""
    lines = text.split("\n")
    if console.is_terminal:
        lines = [part for line in lines for part in _folded(line)]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _folded(line: str, width: int | None = None, *, further: int = 0) -> list[str]:
    """Return the parts of a line that stand below each other: broken at spaces alone, the inset kept or deepened."""
    width = width or console.width
    if len(line) <= width:
        return [line]
    inset = " " * (len(line) - len(line.lstrip()) + further)
    return textwrap.wrap(line, width, subsequent_indent=inset, break_long_words=False, break_on_hyphens=False)


def folded_code(text: str, width: int | None = None) -> str:
    """Return code whose lines fit the terminal: one that is too wide goes on below, further in, from a whole word on.

    In a pipe it stays as it is.
    """
    if not console.is_terminal:
        return text
    return "\n".join(part for line in text.split("\n") for part in _folded(line, width, further=8))


BARS = "▁▂▃▄▅▆▇█"


def spark(values: Sequence[float], width: int = 40) -> str:
    """Return a curve in one line, from 0, or the least value below it, to the greatest; × is not finite.

    Of several values in one place the greatest is shown, so that no leap is missed. Where positive values range over
    a factor of more than 1,000, the logarithm is drawn, and the line says so.
    """
    columns = min(width, len(values))
    edges = [i * len(values) // columns for i in range(columns + 1)]
    picked = [max(values[a:b], key=_rank) for a, b in pairwise(edges)]
    finite = [v for v in picked if math.isfinite(v)]
    logarithmic = is_wide(finite)
    scale = math.log if logarithmic else float
    low, high = (scale(min(finite)) if logarithmic else min(0.0, *finite), scale(max(finite))) if finite else (0, 0)
    step = (high - low) / (len(BARS) - 1) or 1.0
    bars = [BARS[round((scale(v) - low) / step)] if math.isfinite(v) else "×" for v in picked]
    return "".join(bars) + (" (log)" if logarithmic else "")


def _rank(value: float) -> float:
    """Return a key to compare by, a NaN above all."""
    return math.inf if math.isnan(value) else value


def is_wide(values: Sequence[float]) -> bool:
    """Return whether all values are positive and range over a factor of more than 1,000."""
    return bool(values) and min(values) > 0 and max(values) > 1000 * min(values)
