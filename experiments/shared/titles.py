"""The title of a picture of curves: one sentence that says what to see, made of the numbers that are drawn."""

import math
from collections.abc import Mapping, Sequence

from fn.draw import Seeds
from fn.draw.lines import band

Line = Sequence[float] | Mapping[int, float] | Seeds


def told(quantity: str, lines: Mapping[str, Line], *, step: str = "step") -> str:
    """Return how each line goes, those that go alike together; of more than two that all fall or rise, only the range.

    >>> told("loss", {"learning": [2.3, 1.0, 0.01], "frozen": [2.3, 2.3, 2.3]})
    'The loss of learning falls from 2.3 to 0.01, that of frozen stays at 2.3.'
    """
    by_course: dict[str, list[str]] = {}
    for name, line in lines.items():
        if line if not isinstance(line, Seeds) else any(line.runs):
            by_course.setdefault(course(line, step), []).append(name)
    ways = {how.partition(" ")[0] for how in by_course}
    if len(by_course) > 2 and len(ways) == 1 and ways <= {"falls", "rises"}:
        ends = [float(how.split(" to ")[1].split()[0]) for how in by_course]
        return f"The {quantity} of all {len(lines)} {ways.pop()}, to between {min(ends):.3g} and {max(ends):.3g}."
    parts = [f"{_of(names)}{how}" for how, names in by_course.items()]
    return f"The {quantity} {', that '.join(parts)}." if parts else f"The {quantity}: nothing to draw."


def _of(names: Sequence[str]) -> str:
    *most, last = ["training" if name == "train" else name for name in names]
    return f"of {', '.join(most)}{' and ' if most else ''}{last} " if any(names) else ""


def course(line: Line, step: str = "step") -> str:
    """Return where a line begins and ends: falls, rises or stays, or where it stops being finite.

    >>> course([2.0, 3.0, math.nan])
    'is NaN from step 3 on'
    """
    if isinstance(line, Seeds):
        steps, (_, mean, _) = band(line)
        points, of = dict(zip(steps, mean, strict=True)), " on average" if len(line.runs) > 1 else ""
    else:
        points, of = line if isinstance(line, Mapping) else dict(enumerate(line, 1)), ""
    broken = [at for at, value in points.items() if not math.isfinite(value)]
    first, *_, last = [*points.values()] * 2
    if broken and not math.isfinite(last):
        finite = [at for at, value in points.items() if math.isfinite(value)]
        since = next(at for at in broken if not finite or at > max(finite))
        return f"is {'NaN' if math.isnan(points[since]) else 'infinite'} from {step} {since} on"
    if broken:
        return f"is not finite at {len(broken)} of {len(points)} {step}s and ends at {last:.3g}"
    if len(points) == 1:
        return f"is {last:.3g}"
    if abs(last - first) <= 0.01 * abs(first):
        return f"stays at {last:.3g}{of}"
    return f"{'falls' if last < first else 'rises'} from {first:.3g} to {last:.3g}{of}"
