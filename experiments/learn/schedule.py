"""Choose what is due: FSRS spaces the concepts, and the last named mistake goes before all.

Everything is computed from the events that `experiments.shared.attempts` keeps.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from experiments.drill import spacing
from experiments.drill.catalogue import WHOLES
from experiments.drill.spacing import DIFFICULTY, Event, tries, under_way
from experiments.learn.concepts import CONCEPTS, case, concept_of, failures_of, rewrites
from experiments.learn.mistakes import MISTAKES, remedies
from experiments.shared.attempts import DAY

if TYPE_CHECKING:
    from fsrs import Card

REMEMBERED = 14 * DAY
"""seconds for which a mistake calls for its remedies"""
MISTAKES_AT_ONCE = 2
"""the latest ones; what was made before comes back by its concept"""


def cards(events: list[Event]) -> "dict[str, Card]":
    """Return FSRS's card of every concept that was practised or placed."""
    reviews = [(t.at, concept_of(t.task), t.rating) for t in tries(events)]
    reviews += [
        (event["at"], concept, "Good" if event.get("known") is True else "Again") for concept, event in _placed(events)
    ]
    return spacing.cards((at, concept, rating) for at, concept, rating in reviews if concept is not None)


PLACED = "placement"
"""the task of the event that ends a placement"""


def is_placed(events: list[Event]) -> bool:
    """Return whether the placement is over, or was made needless by passes."""
    return any(e["drill"] == PLACED for e in events) or sum(t.passed for t in tries(events)) >= 5


def due_concepts(events: list[Event], now: float) -> list[str]:
    """Return the concepts that are due: those that a placement found forgotten, then the most overdue."""
    forgotten = _forgotten(events)
    due = {name: card.due.timestamp() for name, card in cards(events).items()}
    late = sorted((at, name) for name, at in due.items() if at <= now and name not in forgotten)
    return [*forgotten, *(name for _, name in late)]


def _placed(events: list[Event]) -> Iterator[tuple[str, Event]]:
    """Yield each concept that a placement asked for, with the event."""
    for event in events:
        concept = concept_of(event["drill"])
        if event["event"] == "place" and concept and event["drill"] != PLACED:
            yield concept, event


def _forgotten(events: list[Event]) -> list[str]:
    """Return the concepts placed as forgotten and not passed since, the easiest first."""
    last: dict[str, float] = {}
    for concept, event in _placed(events):
        if event.get("known") is True:
            last.pop(concept, None)
        else:
            last[concept] = event["at"]
    for t in tries(events):
        concept = concept_of(t.task)
        if t.passed and concept in last and t.at >= last[concept]:
            del last[concept]
    return [name for name in CONCEPTS if name in last]


def pending_remedies(events: list[Event], now: float) -> list[tuple[str, str]]:
    """Return each (task, mistake) that a named mistake calls for and that was not ended since, the latest first."""
    latest: dict[str, float] = {}
    for event in events:
        mistake = event.get("mistake")
        if (
            event["event"] == "check"
            and isinstance(mistake, str)
            and mistake in MISTAKES
            and now - event["at"] < REMEMBERED
        ):
            latest[mistake] = event["at"]
    ended: dict[str, float] = {}
    for t in tries(events):
        ended[t.task] = t.at
    found: dict[str, str] = {}
    for mistake, at in sorted(latest.items(), key=lambda item: -item[1])[:MISTAKES_AT_ONCE]:
        for task in remedies(mistake):
            if ended.get(task, 0.0) < at:
                found.setdefault(task, mistake)
    return list(found.items())


def tasks_of(concept: str, kinds: Iterable[str], day: int | None = None) -> list[str]:
    """Return the tasks that practise a concept, drills first; of shapes that of a day, which is another each day."""
    known, c = set(kinds), CONCEPTS[concept]
    tasks = [*c.drills, f"question:{c.question}"]
    for failure in failures_of(concept):
        tasks += [f"{kind}:{case(failure)}" for kind in ("bug", "failure") if kind in known]
    if concept == "convolution" and day is not None:
        tasks.append(f"shape:{day}")
    if concept == "idioms" and "rewrite" in known:
        tasks = [*(f"rewrite:{name}" for name in rewrites()), *tasks]
    return tasks


def _asked(events: list[Event]) -> dict[str, float]:
    """Return when a placement asked each question, and told the answer: another task comes first."""
    asked = ((concept, event) for concept, event in _placed(events) if event.get("asked", True) is True)
    return {f"question:{CONCEPTS[concept].question}": event["at"] for concept, event in asked}


class Next(NamedTuple):
    task: str
    why: str


def next_task(events: list[Event], now: float, kinds: Iterable[str]) -> Next | None:
    """Return the next task; None if all is done.

    It is what is under way, a mistake's remedy, a concept that is due, a new one, a whole lab that is due, or else what
    was never done: drills, then bugs, questions and rewrites, at last whole labs.
    """
    kinds = list(kinds)
    last = _asked(events) | {t.task: t.at for t in tries(events)}
    open_ = next(reversed(under_way(events)), None)
    if open_ and open_.rpartition(":")[0] in kinds and (open_ in DIFFICULTY or ":" in open_):
        return Next(open_, "under way")
    for task, mistake in pending_remedies(events, now):
        if task.rpartition(":")[0] in kinds:
            return Next(task, f"after a mistake: {mistake}")
    seen, due = cards(events), due_concepts(events, now)
    fresh = [name for name in CONCEPTS if name not in seen]
    for concept, why in [*((c, "due") for c in due), *((c, "new") for c in fresh)]:
        tasks = tasks_of(concept, kinds, int(now // DAY))
        if tasks:
            return Next(min(tasks, key=lambda task: last.get(task, 0.0)), f"{why}: {CONCEPTS[concept].title}")
    whole = {name: at for name, at in spacing.due(t for t in tries(events) if t.task in WHOLES).items() if at <= now}
    if whole:
        return Next(min(whole, key=whole.__getitem__), "due: the whole of a lab")
    new = [task for task in every_task(kinds) if task not in last]
    return Next(new[0], "nothing is due: something new") if new else None


def every_task(kinds: Iterable[str]) -> list[str]:
    """Return all that can be practised: drills, the easiest first; what belongs to each concept; whole labs."""
    drills = sorted((d for concept in CONCEPTS.values() for d in concept.drills), key=DIFFICULTY.__getitem__)
    others = [task for concept in CONCEPTS for task in tasks_of(concept, kinds) if ":" in task]
    return [*drills, *others, *WHOLES]
