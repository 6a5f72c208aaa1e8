"""How each task went, and when it comes back: FSRS spaces drills here, and concepts in `experiments.learn.schedule`.

Everything is computed from the events that `experiments.shared.attempts` keeps.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.drill.catalogue import DRILLS, WHOLES
from experiments.shared.attempts import DAY

if TYPE_CHECKING:
    from fsrs import Card

Event = dict[str, Any]
DIFFICULTY = {name: drill.difficulty for name, drill in DRILLS.items()} | dict.fromkeys(WHOLES, 4)


class Try(NamedTuple):
    """One task from its beginning to a pass, or to where it was skipped."""

    task: str
    at: float
    """when it ended"""
    seconds: float
    checks: int
    hints: int
    passed: bool
    star: bool = False

    @property
    def first_try(self) -> bool:
        return self.passed and self.checks == 1 and not self.hints

    @property
    def rating(self) -> str:
        """Return one of FSRS's four ratings, from checks, hints and time."""
        usual = 60.0 * 2 ** DIFFICULTY.get(self.task, 0)
        if not self.passed or self.hints >= 3 or self.checks > 5:
            return "Again"
        if self.hints or self.checks > 2:
            return "Hard"
        return "Easy" if self.checks == 1 and self.seconds <= usual else "Good"


def tries(events: Iterable[Event]) -> list[Try]:
    """Return every try that has ended, in order."""
    return _ended_and_open(events)[0]


def under_way(events: Iterable[Event]) -> list[str]:
    """Return the tasks begun and neither passed nor skipped, the latest last."""
    return list(_ended_and_open(events)[1])


def _ended_and_open(events: Iterable[Event]) -> tuple[list[Try], dict[str, list[Event]]]:
    """Return (the tries that have ended, the events of each task since it was begun, where it is under way)"""
    open_: dict[str, list[Event]] = {}
    ended = []
    for event in events:
        task, what = event["drill"], event["event"]
        if what == "start":
            open_.pop(task, None)
            open_[task] = [event]
        elif task in open_:
            open_[task].append(event)
            passed = what == "check" and event.get("passed") is True
            if passed or what == "skip":
                since = open_.pop(task)
                kinds = [e["event"] for e in since]
                seconds = max(event["at"] - since[0]["at"], 0.0)
                star = event.get("star", True) is True
                ended.append(Try(task, event["at"], seconds, kinds.count("check"), kinds.count("hint"), passed, star))
    return ended, open_


def cards(reviews: Iterable[tuple[float, str, str]]) -> "dict[str, Card]":
    """Return FSRS's card of each name, from its reviews (when, name, rating)."""
    from fsrs import Card, Rating, Scheduler

    scheduler = Scheduler(learning_steps=(), relearning_steps=(), enable_fuzzing=False)  # days, and the same each time
    found: dict[str, Card] = {}
    for at, name, rating in sorted(reviews, key=lambda review: review[0]):
        when = datetime.fromtimestamp(at, UTC)
        found[name], _ = scheduler.review_card(found.get(name) or Card(card_id=1, due=when), Rating[rating], when)
    return found


def due(ended: Iterable[Try]) -> dict[str, float]:
    """Return when each task that was passed is due again, by its own tries."""
    ended = list(ended)
    passed = {t.task for t in ended if t.passed}
    spaced = cards((t.at, t.task, t.rating) for t in ended if t.task in passed)
    return {task: card.due.timestamp() for task, card in spaced.items()}


def clock(seconds: float | None) -> str:
    """Return minutes and seconds.

    >>> clock(75.0), clock(None)
    ('1:15', '-')
    """
    return "-" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def in_days(at: float | None, now: float) -> str:
    """Return in words how long it is until `at`.

    >>> in_days(3 * DAY, DAY), in_days(0.0, DAY)
    ('2 days', 'now')
    """
    if at is None:
        return "-"
    days = (at - now) / DAY
    return "now" if days <= 0 else "tomorrow" if days < 1.5 else f"{days:.0f} days"


def next_drill(names: Iterable[str], events: Iterable[Event], now: float) -> str:
    """Return the drill under way; else the most overdue; else the easiest never passed; else the one due soonest."""
    names, events = list(names), list(events)
    if open_ := [name for name in under_way(events) if name in names]:
        return open_[-1]
    again = due(t for t in tries(events) if t.task in names)
    soonest = min(again, key=again.__getitem__, default=None)
    fresh = [name for name in names if name not in again]
    if soonest and (again[soonest] <= now or not fresh):
        return soonest
    return min(fresh, key=DIFFICULTY.__getitem__)
