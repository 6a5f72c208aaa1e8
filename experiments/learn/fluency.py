"""Fluency over weeks: seconds to a pass and the share passed at the first try, per concept, as table and picture."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from experiments.drill.spacing import Event, Try, clock, in_days, tries
from experiments.learn.concepts import CONCEPTS, concept_of
from experiments.learn.schedule import cards
from experiments.shared.attempts import DAY
from experiments.shared.show import console, spark, table

WEEK = 7 * DAY
MARKERS = "os^Dv*"
"""of the lines of a picture: the next one where the colours are used up"""


class Week(NamedTuple):
    seconds: float | None
    """the median of those that passed; None if none did"""
    first: float
    """the share passed at the first try, without a hint"""
    tries: int


def weeks(ended: Sequence[Try], began: float) -> dict[str, dict[int, Week]]:
    """Return {concept: {weeks since `began`: Week}}"""
    sorted_: dict[str, dict[int, list[Try]]] = {}
    for t in ended:
        concept = concept_of(t.task)
        if concept:
            sorted_.setdefault(concept, {}).setdefault(int((t.at - began) // WEEK), []).append(t)
    return {c: {w: _week(of) for w, of in sorted(by.items())} for c, by in sorted_.items()}


def _week(of: list[Try]) -> Week:
    passed = [t.seconds for t in of if t.passed]
    return Week(median(passed) if passed else None, sum(t.first_try for t in of) / len(of), len(of))


def show(events: list[Event], now: float, out: Path) -> None:
    """Print a row per concept, and draw the weeks into out/fluency.png."""
    ended = [t for t in tries(events) if concept_of(t.task)]
    if not ended:
        console.print("nothing has been passed or skipped yet: just learn begins", markup=False, soft_wrap=True)
        return
    found, due = weeks(ended, ended[0].at), cards(events)
    rows = []
    for name in CONCEPTS:
        if name in found:
            by = list(found[name].values())
            times = [w.seconds for w in by if w.seconds is not None]
            all_ = [t for t in ended if concept_of(t.task) == name]
            first = sum(t.first_try for t in all_) / len(all_)
            curve = spark(times, 8) if len(times) > 1 else ""
            last = clock(times[-1] if times else None)
            when = in_days(due[name].due.timestamp(), now)
            rows.append((CONCEPTS[name].title, str(len(all_)), last, curve, f"{first:.0%}", when))
    table("Fluency", ("concept", "tries", "time", "weeks", "first try", "due"), rows)
    console.print(f"\n{plot(found, out)}", markup=False, soft_wrap=True)


def plot(found: dict[str, dict[int, Week]], out: Path) -> Path:
    """Return two panels over weeks, a line per concept: seconds to a pass, share passed at the first try."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator

    from fn import draw

    figure = Figure(figsize=(9, 7), layout="constrained")
    draw.set_title(figure, "Each concept over the weeks: is a pass faster, and more often right at once?")
    times, firsts = figure.subplots(2, 1, sharex=True)
    hues = draw.colors(found)
    for n, (concept, by) in enumerate(found.items()):
        style = {"color": hues[concept], "marker": MARKERS[n // len(set(hues.values())) % len(MARKERS)]}
        timed = {w + 1: week.seconds for w, week in by.items() if week.seconds is not None}
        times.plot([*timed], [*timed.values()], label=CONCEPTS[concept].title, **style)
        firsts.plot([w + 1 for w in by], [week.first for week in by.values()], **style)
    times.set(title="Faster from week to week? Seconds from the start to a pass", ylabel="seconds", yscale="log")
    firsts.set(title="Right at once, without a hint: share of tries", xlabel="week", ylabel="share", ylim=(-0.05, 1.05))
    times.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    times.yaxis.set_major_formatter("{x:g}")
    times.minorticks_off()
    firsts.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside right upper", fontsize="small")
    return draw.save(figure, out / "fluency.png")
